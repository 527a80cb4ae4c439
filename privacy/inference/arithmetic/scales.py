"""Primes and scales of a plan, followed through the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from privacy.inference.arithmetic.network import Activation
from privacy.inference.arithmetic.polynomials import DEPTH, evaluate

AFTER = -1
"""Stands for an activation whose products are rescaled."""
NEVER = -2
"""Stands for a square that is not rescaled at all."""


def depth(degree: int, rescale: int) -> int:
    """Levels that an activation of this degree takes."""
    return 0 if rescale == NEVER else DEPTH[degree]


@dataclass(frozen=True)
class Scaled:
    """A value of which only scale and level are known."""

    scale: float
    level: int


@dataclass(frozen=True)
class Narrowing:
    """A rescaling: the level and scale before it, and the scale after it."""

    level: int
    before: float
    after: float


@dataclass
class ScaleAlgebra:
    """Follows scales and levels; primes by level, the one that a rescaling at it drops."""

    primes: dict[int, float]
    narrowings: list[Narrowing] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)

    def product(self, one: Scaled, other: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return Scaled(one.scale * other.scale, min(one.level, other.level))

    def narrow(self, value: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        after = value.scale / self.primes[value.level]
        self.narrowings.append(Narrowing(value.level, value.scale, after))
        return Scaled(after, value.level - 1)

    def relinearise(self, value: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return value

    def plus(self, value: Scaled, constant: float) -> Scaled:
        """See :class:`Algebra`."""
        return value

    def times(self, value: Scaled, constant: float, *, meet: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        self.constants.append(meet.scale / value.scale)
        return Scaled(meet.scale, min(value.level, meet.level))

    def times_for(self, value: Scaled, constant: float, *, partner: Scaled, meet: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        wanted = meet.scale / partner.scale * self.primes[value.level]
        self.constants.append(wanted / value.scale)
        return self.narrow(Scaled(wanted, value.level))

    def add(self, one: Scaled, other: Scaled) -> Scaled:
        """See :class:`Algebra`."""
        return Scaled(one.scale, min(one.level, other.level))


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
    rescales : tuple of int
        Of each activation: after how many rotations of the tree before it its input is rescaled,
        or else :data:`AFTER` or :data:`NEVER`. The latter two, and squares, have a choice: a value
        that is rescaled before it is squared takes half the bits of a prime, and everything from
        there on is one level lower.
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[float, ...]
    answer: int
    rescales: tuple[int, ...]

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
    entry : Scaled
        What the activation is given.
    narrowings : tuple of Narrowing
    constants : tuple of float
        Scales of the constants in the activation.
    """

    level: int
    inputs: float
    weights: float
    entry: Scaled
    narrowings: tuple[Narrowing, ...]
    constants: tuple[float, ...]


def walk(
    scales: Scales, activations: Sequence[Activation], primes: Sequence[float]
) -> tuple[LayerScales, ...]:
    """The scales of every layer, given the primes themselves."""
    return tuple(follow(scales, activations, primes))


def follow(
    scales: Scales, activations: Sequence[Activation], primes: Sequence[float]
) -> Iterator[LayerScales]:
    """As :func:`walk`, a layer at a time."""
    dropped = dict(enumerate(primes[:-1], start=1))
    level, scale = max(1, len(primes) - 1), 2.0**scales.inputs
    for weight_bits, activation, rescale in zip(
        scales.weights, activations, scales.rescales, strict=True
    ):
        weights = 2.0**weight_bits
        algebra = ScaleAlgebra(dropped)
        entry = Scaled(scale * weights, level)
        if rescale >= 0:
            entry = algebra.narrow(entry)
        result = evaluate(algebra, activation, entry, rescaled=rescale == AFTER)
        yield LayerScales(
            level, scale, weights, entry, tuple(algebra.narrowings), tuple(algebra.constants)
        )
        level, scale = result.level, result.scale
    last = 2.0**scales.answer / scale
    yield LayerScales(level, scale, last, Scaled(2.0**scales.answer, level), (), ())
