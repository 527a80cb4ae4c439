"""Five hundred rounds in which a fifth of the clients fail at random: survival, memory, ε."""

from benchmarks.soak.measure import draw as draw
from benchmarks.soak.measure import run as run
