"""Encrypted inference on MNIST beside TenSEAL's own ways, with the same weights."""

from benchmarks.encrypted_inference.measure import draw as draw
from benchmarks.encrypted_inference.measure import run as run
