"""Secure aggregation: masks, shares and whole rounds, beside Flower's SecAgg+ primitives."""

from benchmarks.secure_aggregation.measure import draw as draw
from benchmarks.secure_aggregation.measure import run as run
