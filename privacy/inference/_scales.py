"""Primes and scales of a plan, followed through the layers."""

from collections.abc import Sequence
from dataclasses import dataclass

from privacy.inference._lowering import Activation
from privacy.inference._polynomials import Narrowing, ScaleAlgebra, Scaled, evaluate


@dataclass(frozen=True)
class Scales:
    """Primes and scales, in bits; scale 2^inputs for a query, 2^weights[i] for layer i's weights.

    Attributes
    ----------
    primes : tuple of int
        In SEAL's order: the last one left first, the special prime (if any) last.
    inputs : int
    weights : tuple of float
        One a layer but the last, whose scale follows from the answer's.
    answer : int
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[float, ...]
    answer: int

    def walk(self, activations: Sequence[Activation]) -> tuple["LayerScales", ...]:
        """The scales of every layer, from the nominal sizes of the primes."""
        return walk(self, activations, [2.0**bits for bits in self.primes])


@dataclass(frozen=True)
class LayerScales:
    """One affine map and the activation after it.

    Attributes
    ----------
    level : int
        Data primes left at its products.
    inputs, weights : float
        Scales of what is multiplied.
    narrowings : tuple of Narrowing
    constants : tuple of float
        Scales of the constants in the activation.
    """

    level: int
    inputs: float
    weights: float
    narrowings: tuple[Narrowing, ...]
    constants: tuple[float, ...]


def walk(
    scales: Scales, activations: Sequence[Activation], primes: Sequence[float]
) -> tuple[LayerScales, ...]:
    """The scales of every layer, given the primes themselves."""
    dropped = dict(enumerate(primes[:-1], start=1))
    level, scale = max(1, len(primes) - 1), 2.0**scales.inputs
    layers = []
    for weight_bits, activation in zip(scales.weights, activations, strict=True):
        weights = 2.0**weight_bits
        algebra = ScaleAlgebra(dropped)
        result = evaluate(algebra, activation, Scaled(scale * weights, level))
        layers.append(
            LayerScales(level, scale, weights, tuple(algebra.narrowings), tuple(algebra.constants))
        )
        level, scale = result.level, result.scale
    layers.append(LayerScales(level, scale, 2.0**scales.answer / scale, (), ()))
    return tuple(layers)
