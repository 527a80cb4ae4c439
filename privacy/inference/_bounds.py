"""What values can occur for *every* input in the declared range: interval arithmetic."""

from dataclasses import dataclass

import numpy as np

from privacy.inference._lowering import Activation, Network, Vector


@dataclass(frozen=True)
class Interval:
    """Lower and upper bounds, elementwise."""

    low: Vector
    high: Vector

    @property
    def magnitude(self) -> Vector:
        """The largest absolute value, elementwise."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class Ranges:
    """Bounds through a network.

    Attributes
    ----------
    inputs : Interval
    before, after : tuple of Interval
        Before and after each activation.
    logits : Interval
    """

    inputs: Interval
    before: tuple[Interval, ...]
    after: tuple[Interval, ...]
    logits: Interval


def ranges(network: Network, low: float, high: float) -> Ranges:
    """Bound every value of ``network`` over all inputs with elements in [low, high].

    Interval arithmetic, widened by 1e-9 of the size for the rounding of doubles: no input in the
    range escapes the bounds.
    """
    size = network.affines[0].inputs
    inputs = Interval(np.full(size, low), np.full(size, high))
    before, after = [], []
    here = inputs
    for affine, activation in zip(network.affines, (*network.activations, None), strict=True):
        centre = affine.matrix @ ((here.low + here.high) / 2) + affine.bias
        spread = abs(affine.matrix)
        radius = spread @ ((here.high - here.low) / 2)
        radius += 1e-9 * (spread @ here.magnitude + np.abs(affine.bias))
        here = Interval(centre - radius, centre + radius)
        if activation is not None:
            before.append(here)
            here = _through(activation, here)
            after.append(here)
    return Ranges(inputs, tuple(before), tuple(after), here)


def _through(activation: Activation, interval: Interval) -> Interval:
    """The exact range of a polynomial: at the ends, or where its derivative is zero."""
    points = [interval.low, interval.high]
    derivative = np.polynomial.polynomial.polyder(activation.coefficients)
    roots = np.polynomial.polynomial.polyroots(derivative)
    points += [
        np.clip(np.full_like(interval.low, root.real), interval.low, interval.high)
        for root in np.asarray(roots, dtype=np.complex128)
    ]
    values = np.stack([activation(point) for point in points])
    slack = 1e-9 * np.abs(values).max(axis=0)
    return Interval(values.min(axis=0) - slack, values.max(axis=0) + slack)
