"""Primes and scales of a plan, followed through the layers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from privacy.inference.arithmetic.network import Layer
from privacy.inference.arithmetic.polynomials import DEPTH, evaluate
from privacy.inference.rescaling import rescaled_after, rescaled_before


def depth(degree: int, rescale: int) -> int:
    """Levels that an activation of this degree takes."""
    return rescaled_before(rescale) + (DEPTH[degree] if rescaled_after(rescale) else 0)


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
    """Primes and scales, in bits; scale 2^inputs for a query, 2^weights[i] for a layer's weights.

    A planner that looks at many choices together has an array for each number.

    Attributes
    ----------
    primes : tuple of int
        In SEAL's order: the last one left first, the special prime (if any) last.
    inputs : int
    weights : tuple of float
        One of each activation, for the source of its layer that is at the lowest level; the
        weights on other sources have the scale that makes their products meet. The last layer's
        scale follows from the answer's.
    answer : int
    rescales : tuple of int
        Of each activation: :data:`AFTER` or :data:`BOTH`, or of a square :data:`NEVER`,
        :data:`FIRST` or :data:`SUMMED`. A value that is rescaled before it is squared takes half
        the bits of a prime, and the rest is one level lower.
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[float, ...]
    answer: int
    rescales: tuple[int, ...]

    def follow(
        self, layers: Sequence[Layer], primes: Sequence[float] = ()
    ) -> Iterator["LayerScales"]:
        """The scales of each layer, by the primes themselves, or else by their nominal sizes."""
        primes = primes or [2.0**bits for bits in self.primes]
        dropped = dict(enumerate(primes[:-1], start=1))
        query = Scaled(2.0**self.inputs, max(1, len(primes) - 1))
        values, choices = [query], iter(zip(self.weights, self.rescales, strict=True))
        for layer in layers:
            read = [values[source] for source in layer.sources]
            lowest = min(reversed(read), key=lambda value: value.level)
            level, inputs = lowest.level, tuple(value.scale for value in read)
            algebra = _ScaleAlgebra(dropped)
            if layer.activation is None:
                # The last layer, or elements of the input as they are.
                result = Scaled(2.0**self.answer, level) if layer is layers[-1] else query
                entry, product = result, result.scale
            else:
                bits, rescale = next(choices)
                product = lowest.scale * 2.0**bits
                entry = Scaled(product, level)
                if rescaled_before(rescale):
                    entry = algebra.narrow(entry)
                result = evaluate(
                    algebra, layer.activation, entry, rescaled=rescaled_after(rescale)
                )
            values.append(result)
            yield LayerScales(
                level,
                inputs,
                tuple(product / scale for scale in inputs),
                entry,
                result,
                tuple(algebra.narrowings),
                tuple(algebra.constants),
            )


@dataclass(frozen=True)
class LayerScales:
    """One layer and the activation after it.

    Products are of ``inputs`` and ``weights`` (scales, one of each source), with ``level`` data
    primes left; the activation starts at ``entry`` and ends at ``result``, and its constants have
    the scales ``constants``.
    """

    level: int
    inputs: tuple[float, ...]
    weights: tuple[float, ...]
    entry: Scaled
    result: Scaled
    narrowings: tuple[Narrowing, ...]
    constants: tuple[float, ...]

    @property
    def product(self) -> float:
        """The scale of its products."""
        return self.inputs[0] * self.weights[0]
