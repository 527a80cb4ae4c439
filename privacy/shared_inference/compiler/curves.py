r"""Sigmoid, tanh, GELU and SiLU as straight lines in pieces, with a bound of the error.

Knots lie where :math:`\int \sqrt{|f''|}` grows by equal parts, so that all pieces err about alike
(de Boor, "Good approximation by splines with variable knots", 1973). Slopes are integers, each
chosen so that the next knot is met again, since rounding would add up otherwise. The bound is
measured between the function and the integers' own line, on points that include every knot; between
neighbouring points at distance d it can be larger by d²/8 times the largest curvature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from math import erf

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
PIECES = 24
"""Of a function: a comparison of each element for all but one."""
SLOPE_BITS = 12
_POINTS = 20_001
_CURVATURE = 1.0
"""Above the largest second derivative of each of the functions."""


def _sigmoid(x: Vector) -> Vector:
    return np.asarray(0.5 + 0.5 * np.tanh(x / 2))


def _gelu(x: Vector) -> Vector:
    return np.asarray(x * (0.5 + 0.5 * np.vectorize(erf)(x / np.sqrt(2.0))))


def _gelu_by_tanh(x: Vector) -> Vector:
    return np.asarray(x * (0.5 + 0.5 * np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _silu(x: Vector) -> Vector:
    return x * _sigmoid(x)


_ROUNDING = 2.0**-49  # of a function and of a line, in doubles, beside what they come to

CURVES: dict[str, Callable[[Vector], Vector]] = {
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "gelu": _gelu,
    "gelu by tanh": _gelu_by_tanh,
    "silu": _silu,
}
"""Functions by name."""


@dataclass(frozen=True)
class Line:
    """Y = offset + slope·X + Σ turns·max(X - knots, 0), on integers.

    Attributes
    ----------
    offset, slope : int
    knots, turns : tuple of int
    error : float
        The largest distance from the function, on its whole range, as a value.
    steepest : float
        The largest slope of the line, as a value.
    """

    offset: int
    slope: int
    knots: tuple[int, ...]
    turns: tuple[int, ...]
    error: float
    steepest: float

    def at(self, x: Vector) -> Vector:
        """Y of whole numbers, in doubles."""
        made = self.offset + self.slope * x
        for knot, turn in zip(self.knots, self.turns, strict=True):
            made = made + turn * np.maximum(x - knot, 0.0)
        return made


def line(name: str, low: float, high: float, bits: int) -> Line:
    """A function of values from ``low`` to ``high``, on integers with ``bits`` after the point.

    Y has ``bits + SLOPE_BITS``.
    """
    function, unit = CURVES[name], 2.0**bits
    slopes_unit = 2.0**SLOPE_BITS
    first = np.floor(low * unit)
    last = max(np.ceil(high * unit), first + 1)
    inside = np.rint(_knots(function, low, high)[1:-1] * unit)
    knots = np.unique(np.concatenate([[first, last], inside]))
    heights = function(knots / unit) * unit * slopes_unit
    offset_at_first = height = float(np.rint(heights[0]))
    slopes = []
    for place in range(len(knots) - 1):
        length = knots[place + 1] - knots[place]
        slopes.append(float(np.rint((heights[place + 1] - height) / length)))
        height += slopes[-1] * length
    inner = [int(knot) for knot in knots[1:-1]]
    turns = [int(after - before) for before, after in pairwise(slopes)]
    kept = [place for place, turn in enumerate(turns) if turn]
    bare = Line(
        int(offset_at_first) - int(slopes[0]) * int(knots[0]),
        int(slopes[0]),
        tuple(inner[place] for place in kept),
        tuple(turns[place] for place in kept),
        0.0,
        max(abs(slope) for slope in slopes) / slopes_unit,
    )
    points = np.unique(np.concatenate([np.linspace(low, high, _POINTS), knots / unit]))
    points = points[(points >= low) & (points <= high)]
    between = float(np.diff(points).max(initial=0.0)) ** 2 / 8 * _CURVATURE
    values = function(points)
    off = np.abs(bare.at(points * unit) / (unit * slopes_unit) - values)
    # Processors round these functions otherwise, and the line's terms are rounded too.
    largest = float(np.abs(values).max()) + bare.steepest * max(abs(low), abs(high))
    error = float(off.max()) + between + _ROUNDING * largest
    return Line(bare.offset, bare.slope, bare.knots, bare.turns, error, bare.steepest)


def _knots(function: Callable[[Vector], Vector], low: float, high: float) -> Vector:
    """Ends of the pieces, in rising order."""
    points = np.linspace(low, high, _POINTS)
    curvature = np.abs(np.gradient(np.gradient(function(points), points), points))
    density = np.sqrt(curvature) + 1e-3 / max(high - low, 1e-9)
    grown = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return np.interp(np.linspace(0.0, grown[-1], PIECES + 1), grown, points)
