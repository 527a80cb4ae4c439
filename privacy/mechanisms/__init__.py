"""Noise that is safe in finite precision, and the randomness it is made of."""

from .noise import add_gaussian as add_gaussian
from .noise import add_rounded_gaussian as add_rounded_gaussian
from .noise import gaussian as gaussian
from .noise import rounded_gaussian as rounded_gaussian
from .randomness import Randomness as Randomness
from .randomness import SeededRandomness as SeededRandomness
from .randomness import SystemRandomness as SystemRandomness
