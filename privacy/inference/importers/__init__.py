"""Models from elsewhere, by one call each: PyTorch modules that answer as the originals do."""

from privacy.inference.importers.onnx_models import from_onnx as from_onnx
from privacy.inference.importers.sklearn_models import from_sklearn as from_sklearn
