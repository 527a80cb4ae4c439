"""What values can occur for *every* input in the declared range.

Interval arithmetic, and for a layer after squares a bound of the quadratic form that it is.
"""

from dataclasses import dataclass

import numpy as np

from privacy.inference.compiler.lowering import Activation, Network, Vector
from privacy.inference.compiler.quadratic import tightened


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

    Widened by 1e-9 of the size for the rounding of doubles: no input in the range escapes the
    bounds. Every second layer from the last is tightened, since such a bound reads the values
    two layers before and not those between.
    """
    # Where values overflow, bounds are infinite or not a number, and the planner refuses them.
    with np.errstate(all="ignore"):
        return _ranges(network, low, high)


def _ranges(network: Network, low: float, high: float) -> Ranges:
    size = network.affines[0].inputs
    inputs = Interval(np.full(size, low), np.full(size, high))
    before, after = [], []
    here, earlier = inputs, inputs
    for index, affine in enumerate(network.affines):
        activation = None if index == len(network.activations) else network.activations[index]
        centre = affine.matrix @ ((here.low + here.high) / 2) + affine.bias
        spread = abs(affine.matrix)
        radius = spread @ ((here.high - here.low) / 2)
        radius += 1e-9 * (spread @ here.magnitude + np.abs(affine.bias))
        least, most = centre - radius, centre + radius
        squared = index > 0 and network.activations[index - 1].degree == 2
        finite = bool(np.isfinite(radius).all() and np.isfinite(earlier.magnitude).all())
        if finite and squared and (len(network.affines) - 1 - index) % 2 == 0:
            low_here, high_here = tightened(
                network.affines[index - 1], affine, earlier.low, earlier.high
            )
            least, most = np.maximum(least, low_here), np.minimum(most, high_here)
        earlier, here = here, Interval(least, most)
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
