"""Where an activation is rescaled: the ways that a plan can name."""

AFTER = -1
"""Stands for an activation whose products are rescaled."""
NEVER = -2
"""Stands for a square that is not rescaled at all."""
FIRST = 0
"""Stands for a square whose input is rescaled before the rotations of its layer are added up."""
SUMMED = 1
"""Stands for a square whose input is rescaled."""
BOTH = 2
"""Stands for an activation whose input is rescaled, and its products too.

It takes a level more, and has two primes to divide by in place of one.
"""


def rescaled_before(rescale: int) -> bool:
    """Whether an activation's input is rescaled."""
    return rescale in (FIRST, SUMMED, BOTH)


def rescaled_after(rescale: int) -> bool:
    """Whether an activation's products are rescaled."""
    return rescale in (AFTER, BOTH)
