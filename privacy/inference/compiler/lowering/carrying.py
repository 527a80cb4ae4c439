r"""Carrying values past an activation: finite differences of a polynomial are any lower polynomial.

A network on ciphertexts is a chain: between two affine maps every element goes through the same
polynomial p, of degree d. What skips an activation, as a residual connection does, goes through it
all the same, as a sum of copies that are shifted before: for a square,

.. math:: x = \frac{(x + c)^2 - (x - c)^2}{4c},

and in general Σ wᵢ·p(x + tᵢ) = r(x) + constant has a solution for every polynomial r of degree up
to d and any d different shifts, since p and its derivatives are a basis (Taylor's formula turns the
conditions into a Vandermonde system of the shifts). So does an activation of the same place whose
polynomial is another one.

**Cost.** At most d elements for one: two for a value past a square. A carried value is computed
anew from d products, and takes part in the noise of a square; its shifts are the ends of its range,
where the weights that take the difference are smallest without the copies outgrowing the range, and
it is scaled so that its copies are of the size of the activation's own values.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import Polynomial as Series
from numpy.typing import ArrayLike

from privacy.inference.arithmetic.network import Activation, Vector

_EXACT = 1e-11
"""Residual of the conditions, of their size, up to which fewer copies are a solution."""
_RADII = 10
"""Radii, each twice the one before, that are looked at."""
_NEAR = 4.0
"""Times the least loss of precision is accepted for a smaller radius."""


@dataclass(frozen=True)
class Copies:
    """r(y) = Σ weights·p(y + shifts) + constant."""

    shifts: Vector
    weights: Vector
    constant: float


def copies(activation: Activation, wanted: tuple[float, ...], radius: float) -> Copies:
    """The polynomial ``wanted`` as a sum of shifted copies of another, of no lower degree.

    Shifts are within ± ``radius``; the fewest copies that do are taken.
    """
    degree = activation.degree
    # In units of the radius, so that the conditions are of one size.
    powers = radius ** np.arange(degree + 1)
    p = np.array(activation.coefficients) * powers
    r = np.zeros(degree + 1)
    r[: len(wanted)] = np.array(wanted) * powers[: len(wanted)]
    for count in range(1, degree + 1):
        shifts = np.linspace(-1.0, 1.0, count) if count > 1 else np.zeros(1)
        columns = [_padded(Series(p)(Series([shift, 1.0])).coef, degree) for shift in shifts]
        conditions = np.stack(columns, axis=1)
        scale = np.abs(conditions[1:]).max(axis=1)
        scale[scale == 0.0] = 1.0
        weights, *_ = np.linalg.lstsq(conditions[1:] / scale[:, None], r[1:] / scale, rcond=None)
        rest = np.abs(conditions[1:] @ weights - r[1:])
        size = np.abs(conditions[1:]) @ np.abs(weights) + np.abs(r[1:])
        if bool((rest <= _EXACT * size.max()).all()):
            break
    constant = float(r[0] - conditions[0] @ weights)
    return Copies(shifts * radius, weights, constant)


def fitted(
    activation: Activation, wanted: Callable[[float], tuple[float, ...]], size: float
) -> tuple[float, Copies]:
    """A radius, and copies of the polynomial for what is wanted within that radius.

    Copies lose precision where they are much larger than their weighted sum. The radius is the
    smallest of some, from where the polynomial reaches ``size``, that loses about the least.
    """
    tried = []
    for doubled in range(_RADII if activation.degree > 2 else 1):
        radius = radius_for(activation, size) * 2.0**doubled
        made = copies(activation, wanted(radius), radius)
        reached = Series(np.abs(activation.coefficients))(2 * radius)
        total = Series(np.abs([0.0, *wanted(radius)[1:]]))(radius)
        tried.append((float(np.abs(made.weights).sum() * reached / total), radius, made))
    least = min(loss for loss, _, _ in tried)
    return next((radius, made) for loss, radius, made in tried if loss <= _NEAR * least)


def stretch(activation: Activation, other: Activation) -> float | None:
    """A factor s with other(x) = activation(s·x)/s^degree, both monic; None if there is none."""
    p, q = (np.array(a.coefficients) for a in (activation, other))
    if len(p) != len(q):
        return None
    powers = activation.degree - np.arange(len(p))
    there = np.flatnonzero((p != 0.0) & (q != 0.0) & (powers > 0))
    ratio = p[there[0]] / q[there[0]] if len(there) else 1.0
    if ratio <= 0:
        return None
    factor = float(ratio ** (1 / powers[there[0]])) if len(there) else 1.0
    stretched = p / factor**powers
    return factor if np.allclose(stretched, q, rtol=1e-12, atol=0.0) else None


def radius_for(activation: Activation, size: float) -> float:
    """Where the polynomial, with its coefficients' sizes, reaches ``size``."""
    sizes = Series(np.abs(activation.coefficients))
    low, high = 2.0**-60, 2.0**60
    for _ in range(200):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if sizes(middle) < size else (low, middle)
    return high


def _padded(coefficients: ArrayLike, degree: int) -> Vector:
    given = np.asarray(coefficients, dtype=np.float64)
    return np.pad(given, (0, degree + 1 - len(given)))
