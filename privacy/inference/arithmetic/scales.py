"""Primes and scales of a plan, followed through the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from privacy.inference.arithmetic.network import Activation
from privacy.inference.arithmetic.polynomials import DEPTH, evaluate

AFTER = -1
"""Stands for an activation whose products are rescaled."""
NEVER = -2
"""Stands for a square that is not rescaled at all."""
FIRST = 0
"""Stands for a square whose input is rescaled before the rotations of its layer are added up."""
SUMMED = 1
"""Stands for a square whose input is rescaled."""


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
class _ScaleAlgebra:
    """Follows scales and levels; primes by level, the one that a rescaling at it drops."""

    primes: dict[int, float]
    narrowings: list[Narrowing] = field(default_factory=list)
    constants: list[float] = field(default_factory=list)

    def product(self, one: Scaled, other: Scaled) -> Scaled:
        return Scaled(one.scale * other.scale, min(one.level, other.level))

    def narrow(self, value: Scaled) -> Scaled:
        after = value.scale / self.primes[value.level]
        self.narrowings.append(Narrowing(value.level, value.scale, after))
        return Scaled(after, value.level - 1)

    def relinearise(self, value: Scaled) -> Scaled:
        return value

    def plus(self, value: Scaled, constant: float) -> Scaled:
        return value

    def times(self, value: Scaled, constant: float, *, meet: Scaled) -> Scaled:
        self.constants.append(meet.scale / value.scale)
        return Scaled(meet.scale, min(value.level, meet.level))

    def times_for(self, value: Scaled, constant: float, *, partner: Scaled, meet: Scaled) -> Scaled:
        wanted = meet.scale / partner.scale * self.primes[value.level]
        self.constants.append(wanted / value.scale)
        return self.narrow(Scaled(wanted, value.level))

    def add(self, one: Scaled, other: Scaled) -> Scaled:
        return Scaled(one.scale, min(one.level, other.level))


@dataclass(frozen=True)
class Scales:
    """Primes and scales, in bits; scale 2^inputs for a query, 2^weights[i] for layer i's weights.

    A planner that looks at many choices together has an array for each number.

    Attributes
    ----------
    primes : tuple of int
        In SEAL's order: the last one left first, the special prime (if any) last.
    inputs : int
    weights : tuple of float
        One a layer but the last, whose scale follows from the answer's.
    answer : int
    rescales : tuple of int
        Of each activation: :data:`AFTER`, or of a square :data:`NEVER`, :data:`FIRST` or
        :data:`SUMMED`. A value that is rescaled before it is squared takes half the bits of a
        prime, and the rest is one level lower.
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[float, ...]
    answer: int
    rescales: tuple[int, ...]

    def follow(
        self, activations: Sequence[Activation], primes: Sequence[float] = ()
    ) -> Iterator["LayerScales"]:
        """The scales of each layer, by the primes themselves, or else by their nominal sizes."""
        primes = primes or [2.0**bits for bits in self.primes]
        dropped = dict(enumerate(primes[:-1], start=1))
        level, scale = max(1, len(primes) - 1), 2.0**self.inputs
        for weight_bits, activation, rescale in zip(
            self.weights, activations, self.rescales, strict=True
        ):
            weights = 2.0**weight_bits
            algebra = _ScaleAlgebra(dropped)
            entry = Scaled(scale * weights, level)
            if rescale >= 0:
                entry = algebra.narrow(entry)
            result = evaluate(algebra, activation, entry, rescaled=rescale == AFTER)
            yield LayerScales(
                level, scale, weights, entry, tuple(algebra.narrowings), tuple(algebra.constants)
            )
            level, scale = result.level, result.scale
        answer = 2.0**self.answer
        yield LayerScales(level, scale, answer / scale, Scaled(answer, level), (), ())


@dataclass(frozen=True)
class LayerScales:
    """One affine map and the activation after it.

    Products are of ``inputs`` and ``weights`` (scales), with ``level`` data primes left; the
    activation starts at ``entry``, and its constants have the scales ``constants``.
    """

    level: int
    inputs: float
    weights: float
    entry: Scaled
    narrowings: tuple[Narrowing, ...]
    constants: tuple[float, ...]
