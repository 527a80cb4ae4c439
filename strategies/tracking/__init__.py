"""Writers of a run's progress, for TensorBoard, MLflow, Weights & Biases and Prometheus."""

from strategies.tracking.writers import MLflowWriter as MLflowWriter
from strategies.tracking.writers import PrometheusExporter as PrometheusExporter
from strategies.tracking.writers import TensorBoardWriter as TensorBoardWriter
from strategies.tracking.writers import WandbWriter as WandbWriter
