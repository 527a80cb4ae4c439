r"""Activations replaced by polynomials whose largest error over a range of inputs is proved.

With e the largest error of a layer's inputs, an activation f with Lipschitz constant L and a
polynomial p with |f - p| ≤ s on every value that occurs, the error after it is L·e + s, and after
the affine map that follows |W|·(L·e + s). Values are bounded by interval arithmetic. Between the
points of a grid with step h, |f - p| exceeds its largest value there by h²/8·max|f'' - p''| or
less: where it is largest its derivative is zero.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from privacy.arguments import double_array, shown
from privacy.inference.compiler import Polynomial
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.affine_map import AffineMap, Vector
from privacy.inference.input_range import in_single_precision

_DEGREES = (2, 3, 4, 5, 6, 7)
_GRID = 1 << 15
_ROUNDING = 1e-9
"""Of a bound: far more than doubles lose."""
_LEAST_WIDTH = 1e-3
"""Of an interval around zero in which every activation here changes."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Activation:
    """A non-decreasing activation: its module, its values, and bounds of its derivatives.

    ``curvature`` bounds the second derivative on either side of zero.
    """

    layer: Callable[[], nn.Module]
    values: Callable[[Vector], Vector]
    lipschitz: float
    curvature: float


ACTIVATIONS = {
    "relu": Activation(nn.ReLU, lambda x: np.maximum(x, 0.0), 1.0, 0.0),
    "tanh": Activation(nn.Tanh, np.tanh, 1.0, 0.77),
    "logistic": Activation(nn.Sigmoid, lambda x: 0.5 + 0.5 * np.tanh(x / 2), 0.25, 0.0963),
}


def input_bounds(input_range: Any, size: int) -> tuple[Vector, Vector]:
    """Lowest and highest values of ``size`` inputs: two numbers, or two arrays.

    As :func:`privacy.inference.compile_model` takes the same range, in single precision.
    """
    give = "(low, high), each a number or an array with one value a feature"
    if not isinstance(input_range, tuple | list) or len(input_range) != 2:
        raise TypeError(f"input_range is {shown(input_range)}; give {give}")
    ends = []
    for end in input_range:
        values = double_array("input_range", end, give)
        if values.shape not in ((), (1,), (size,)):
            raise ValueError(
                f"input_range has {values.size} values at an end, the model takes {size} features"
            )
        ends.append(np.broadcast_to(values, size).astype(np.float64))
    low, high = ends
    if not bool((np.isfinite(low) & np.isfinite(high) & (low <= high)).all()):
        raise ValueError(f"input_range is {shown(input_range)}; give finite values, low below high")
    return in_single_precision(low, high)


def polynomials(
    steps: Sequence[AffineMap | str], low: Vector, high: Vector, max_error: float
) -> list[nn.Module]:
    """The layers, with polynomials of the lowest degree that keeps to ``max_error``.

    Raises
    ------
    UnsupportedModelError
        If none up to degree 7 does.
    """
    bounds = {}
    for degree in _DEGREES:
        layers, bounds[degree] = with_polynomials(steps, low, high, degree)
        if bounds[degree] <= max_error:
            _log.info(
                "from_sklearn: activations are polynomials of degree %d; over input_range no "
                "output differs from the estimator's by more than %.3g",
                *(degree, bounds[degree]),
            )
            return layers
    best = min(bounds, key=lambda degree: bounds[degree])
    raise UnsupportedModelError(
        f"with polynomials in place of its activations the model's outputs differ by up to "
        f"{bounds[best]:.3g} over input_range (proved bound at degree {best}), max_error is "
        f"{max_error:g}. Narrow input_range, or train with polynomials: "
        "replace_activations(from_sklearn(estimator), data=...) fits and trains them"
    )


def with_polynomials(
    steps: Sequence[AffineMap | str], low: Vector, high: Vector, degree: int
) -> tuple[list[nn.Module], float]:
    """The layers with polynomials of a degree, and the largest error of an output."""
    layers: list[nn.Module] = []
    error = np.zeros(len(low))
    for step in steps:
        if isinstance(step, AffineMap):
            spread = abs(step.weight)
            centre = step.weight @ ((low + high) / 2) + step.bias
            radius = spread @ ((high - low) / 2)
            low, high, error = centre - radius, centre + radius, spread @ error
            layers.append(step.layer())
            continue
        activation = ACTIVATIONS[step]
        ends = float(low.min()), float(high.max())
        polynomial, largest = _fitted(activation, *ends, degree)
        low, high = activation.values(low) - largest, activation.values(high) + largest
        error = activation.lipschitz * error + largest
        layers.append(polynomial.double())
    return layers, float(error.max()) * (1 + _ROUNDING)


def _fitted(
    activation: Activation, low: float, high: float, degree: int
) -> tuple[Polynomial, float]:
    """A polynomial that interpolates at Chebyshev points, and its largest error in between."""
    least = _LEAST_WIDTH * max(1.0, abs(low), abs(high))
    low, high = min(low, -least), max(high, least)
    series = np.polynomial.Chebyshev.interpolate(activation.values, degree, domain=[low, high])
    power = series.convert(kind=np.polynomial.Polynomial).coef
    if not power[1:].any():  # all points lie where the activation is flat: a line through the ends
        start, end = activation.values(np.array([low, high]))
        slope = (end - start) / (high - low)
        power = np.array([start - slope * low, slope])
    # As Polynomial holds them: in single precision.
    coefficients = np.trim_zeros(power.astype(np.float32), "b").astype(np.float64)
    polynomial = Polynomial(coefficients.tolist())
    most = max(-low, high)
    powers = np.arange(len(coefficients))
    bent = powers * (powers - 1) * abs(coefficients) * most ** np.maximum(powers - 2, 0)
    curvature = activation.curvature + float(bent.sum())
    largest = 0.0
    for ends in ((low, 0.0), (0.0, high)):
        grid = np.linspace(*ends, _GRID)
        step = float(grid[1] - grid[0])
        values = np.polynomial.polynomial.polyval(grid, coefficients)
        at_grid = float(abs(values - activation.values(grid)).max())
        largest = max(largest, at_grid + step**2 / 8 * curvature)
    return polynomial, largest
