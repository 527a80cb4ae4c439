"""Data: its sources, its division among clients, and the inputs of models."""

from flower_app.data.cache import cache_folder as cache_folder
from flower_app.data.clients import ClientData as ClientData
from flower_app.data.clients import check_node_folder as check_node_folder
from flower_app.data.clients import load_client_folder as load_client_folder
from flower_app.data.clients import load_node_folder as load_node_folder
from flower_app.data.clients import no_data as no_data
from flower_app.data.clients import simulated_client as simulated_client
from flower_app.data.dataset import DATASETS as DATASETS
from flower_app.data.dataset import TRAIN_SIZE as TRAIN_SIZE
from flower_app.data.dataset import Dataset as Dataset
from flower_app.data.dataset import Split as Split
from flower_app.data.dataset import load_dataset as load_dataset
from flower_app.data.drawn import drawn_images as drawn_images
from flower_app.data.inputs import InputKind as InputKind
from flower_app.data.inputs import Inputs as Inputs
from flower_app.data.inputs import encode as encode
from flower_app.data.inputs import load_inputs as load_inputs
from flower_app.data.partitions import PARTITIONS as PARTITIONS
from flower_app.data.partitions import Partitions as Partitions
from flower_app.data.partitions import PartitionSpec as PartitionSpec
from flower_app.data.partitions import load_partitions as load_partitions
