"""One image a query: weights encoded once, then products, rotations and activations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.bodies import extract, read_ciphertexts, rerandomise
from privacy.inference.arithmetic.network import Activation
from privacy.inference.arithmetic.polynomials import activate
from privacy.inference.arithmetic.program import (
    Diagonals,
    Gather,
    ProductProgram,
    SlotProgram,
    Sums,
)
from privacy.inference.arithmetic.scales import BOTH, FIRST, NEVER, SUMMED, rescaled_after
from privacy.inference.ckks import Ciphertext, Hoisted, Plaintext, Ring
from privacy.inference.errors import CannotPlanError
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys


class OneImageModel(ABC):
    """A model's weights, ready for queries with one image."""

    def __init__(self, plan: Plan, ring: Ring) -> None:
        self.plan = plan
        self.ring = ring
        self.digest = plan.digest
        self._query_scale = 2.0**plan.input_scale_bits
        self._biases: list[list[int]] = [[0] * len(read) for read in plan.answers]

    def _add_after(self, biases: Iterable[NDArray[np.float64]]) -> None:
        """Biases of the coefficients that are read, as integers at the answer's scale."""
        scale = 2.0**self.plan.answer_scale_bits
        self._biases = [[round(float(value) * scale) for value in bias] for bias in biases]

    def answer(self, body: memoryview, keys: Keys) -> bytes:
        """Evaluate the body of a query and return the body of an answer."""
        plan, ring = self.plan, self.ring
        query = read_ciphertexts(body, ring, plan.ciphertexts, self._query_scale)
        released = []
        for answer, positions, biases in zip(
            self._evaluate(query, keys), plan.answers, self._biases, strict=True
        ):
            rerandomise(ring, keys, answer)
            released.append(extract(ring, answer, positions, biases))
        return b"".join(released)

    @abstractmethod
    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        """The logits, at the answer's level, of size 2, neither masked nor re-randomised yet."""

    def _at(self, value: Ciphertext | None, level: int) -> Ciphertext:
        """A value with the primes above a level dropped."""
        value = made(value)
        return value if value.level == level else self.ring.at_level(value, level)

    def _with_rotations(self, value: Ciphertext, sums: Sums, keys: Keys) -> Ciphertext:
        """The value with its rotations added, group after group."""
        for group in sums:
            if len(group) == 1:
                self.ring.add(value, self.ring.rotate(value, group[0], keys.rotation))
            else:
                hoisted = self.ring.hoist(value, (None, *group), keys.rotation)
                value = self.ring.combine([(each, None) for each in hoisted])
        return value

    def _giant_steps(
        self, part: Callable[[int], Ciphertext | None], count: int, step: int, keys: Keys
    ) -> Ciphertext:
        """The sum of each part rotated by its number of steps.

        By Horner's rule, so that one key serves them all.
        """
        total: Ciphertext | None = None
        for giant in range(count - 1, -1, -1):
            if total is not None:
                total = self.ring.rotate(total, step, keys.rotation)
            addend = part(giant)
            if total is None or addend is None:
                total = total or addend
            else:
                self.ring.add(total, addend)
        if total is None:
            raise RuntimeError("a layer without products")
        return total


class ProductModel(OneImageModel):
    """A model that is one affine map."""

    def __init__(self, plan: Plan, program: ProductProgram) -> None:
        super().__init__(plan, Ring(plan.degree, plan.prime_bits))
        packed, scale = program.products, 2.0**program.weight_bits
        level = plan.answer_level
        self._weights = [self.ring.encode_coefficients(w, scale, level) for w in packed.weights]
        refuse_zero("first", (w.is_zero for w in self._weights), [packed.weights])
        self._add_after([packed.bias])

    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        ring, (first, *rest) = self.ring, zip(query, self._weights, strict=True)
        total = ring.multiply_plain(*first)
        for value, plain in rest:
            ring.add_multiplied_plain(total, value, plain)
        return [total]


@dataclass(frozen=True)
class _Map:
    """A map of a layer, encoded; of the input, the weights by (0, ciphertext of the query)."""

    packed: Gather | Diagonals
    weights: dict[tuple[int, int], Plaintext]
    babies: tuple[int, ...]
    giants: int


@dataclass(frozen=True)
class _Layer:
    """A layer before the last, encoded."""

    maps: tuple[_Map, ...]
    level: int
    bias: Plaintext | None
    activation: Activation | None
    rescale: int


class SlotModel(OneImageModel):
    """A model with activations."""

    def __init__(self, plan: Plan, program: SlotProgram) -> None:
        super().__init__(plan, Ring(plan.degree, plan.prime_bits))
        ring, self._program = self.ring, program
        *before_last, last = program.scales.follow(program.network.layers, ring.primes)
        rescales = iter(program.scales.rescales)
        self._layers = []
        for packed, here in zip(program.layers, before_last, strict=True):
            if packed.activation is None:
                self._layers.append(_Layer((), here.level, None, None, NEVER))
                continue
            maps = tuple(
                self._encoded(each, scale, here.level)
                for each, scale in zip(packed.maps, here.weights, strict=True)
            )
            bias = ring.encode(packed.bias, here.entry.scale, here.entry.level)
            self._layers.append(_Layer(maps, here.level, bias, packed.activation, next(rescales)))
        for index, layer in enumerate(self._layers):
            given = [w for each in program.layers[index].maps for w in _weights(each).values()]
            if layer.activation is not None:
                name = "first" if isinstance(layer.maps[0].packed, Gather) else "middle"
                refuse_zero(name, [not each.weights for each in layer.maps], given)
        self._last_sources = program.network.layers[-1].sources
        self._last = [
            [
                ring.encode(row, scale, last.level)
                for row, scale in zip(answer.weights, last.weights, strict=True)
            ]
            for answer in program.last
        ]
        refuse_zero(
            "last",
            (w.is_zero for weights in self._last for w in weights),
            [answer.weights for answer in program.last],
        )
        self._add_after(answer.bias for answer in program.last)

    def _encoded(self, packed: Gather | Diagonals, scale: float, level: int) -> _Map:
        given = _weights(packed)
        babies = tuple(sorted({baby for _, baby in given})) or (0,)
        hoisted = isinstance(packed, Diagonals) and babies != (0,)
        encoded = {
            step: self.ring.encode(row, scale, level, hoisted=hoisted)
            for step, row in given.items()
        }
        weights = {step: plain for step, plain in encoded.items() if not plain.is_zero}
        giants = max((giant for giant, _ in given), default=0) + 1
        return _Map(packed, weights, babies, giants)

    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        ring, program = self.ring, self._program
        late = self.plan.answer_level if program.relinearise_after_last_layer else 0
        waiting, users = iter(query), program.network.users
        values: list[Ciphertext | None] = [None]
        for index, (layer, packed) in enumerate(zip(self._layers, program.layers, strict=True)):
            if layer.activation is None:
                values.append(next(waiting))
                continue
            value = self._affine(layer, values, waiting, keys)
            value = activate(
                ring,
                keys,
                layer.activation,
                value,
                rescaled=rescaled_after(layer.rescale),
                large_at=late if index + 1 == len(self._layers) else 0,
            )
            if packed.centre:
                ring.add_plain(value, ring.encode(-packed.centre, value.scale, value.level))
            values.append(value)
            for each in packed.maps:
                if isinstance(each, Diagonals) and users[each.source][-1] == index:
                    values[each.source] = None  # its last use
        level = self.plan.answer_level
        answers = []
        for rows in self._last:
            total: Ciphertext | None = None
            for source, weights in zip(self._last_sources, rows, strict=True):
                value = self._at(values[source], level)
                if total is None:
                    total = ring.multiply_plain(value, weights)
                else:
                    ring.add_multiplied_plain(total, value, weights)
            answers.append(made(total))
        for answer in answers:
            ring.relinearise(answer, keys.relinearisation)
        return answers

    def _affine(
        self,
        layer: _Layer,
        values: list[Ciphertext | None],
        query: Iterator[Ciphertext],
        keys: Keys,
    ) -> Ciphertext:
        """The sum of a layer's maps, rescaled where its activation wants that, plus its bias."""
        ring = self.ring
        total: Ciphertext | None = None
        for each in layer.maps:
            if isinstance(each.packed, Gather):
                read = [self._at(next(query), layer.level) for _ in each.packed.weights]
            else:
                read = [self._at(values[each.packed.source], layer.level)]
            value = self._products(each, read, keys)
            if layer.rescale == FIRST:
                ring.rescale(value)
            value = self._with_rotations(value, each.packed.sums, keys)
            if total is None:
                total = value
            else:
                ring.add(total, value)
        total = made(total)
        if layer.rescale in (SUMMED, BOTH):
            ring.rescale(total)
        if layer.bias is not None:
            ring.add_plain(total, layer.bias)
        return total

    def _products(self, each: _Map, values: list[Ciphertext], keys: Keys) -> Ciphertext:
        ring, weights = self.ring, each.weights
        window = each.packed.window if isinstance(each.packed, Diagonals) else 1
        hoisted: dict[int, Hoisted] = {}
        if isinstance(each.packed, Diagonals) and each.babies != (0,):
            steps = [baby or None for baby in each.babies]
            made = ring.hoist(values[0], steps, keys.rotation)
            hoisted = dict(zip(each.babies, made, strict=True))

        def part(index: int) -> Ciphertext | None:
            if hoisted:
                terms = [
                    (rotated, weights[index, number])
                    for number, rotated in hoisted.items()
                    if (index, number) in weights
                ]
                return ring.combine(terms) if terms else None
            total = None
            for number, value in enumerate(values):
                plain = weights.get((index, number))
                if plain is None:
                    continue
                if total is None:
                    total = ring.multiply_plain(value, plain)
                else:
                    ring.add_multiplied_plain(total, value, plain)
            return total

        return self._giant_steps(part, each.giants, window, keys)


def made(value: Ciphertext | None) -> Ciphertext:
    """A value that was made before it is read."""
    if value is None:
        raise RuntimeError("a value is read that was not made")
    return value


def _weights(packed: Gather | Diagonals) -> dict[tuple[int, int], NDArray[Any]]:
    """The slots of its weights, by giant and baby step, or by ciphertext of the query."""
    if isinstance(packed, Diagonals):
        return dict(packed.weights)
    return {(0, index): row for index, row in enumerate(packed.weights)}


def refuse_zero(layer: str, zero: Iterable[bool], given: Iterable[NDArray[Any]]) -> None:
    """Refuse a layer all of whose encoded weights are zero; ``given`` are the weights before."""
    if not all(zero):
        return
    if not any(np.any(values) for values in given):
        raise CannotPlanError(
            f"the weights of the {layer} layer are all zero, so that no input reaches an answer; "
            "train the model, or load its weights"
        )
    raise CannotPlanError(
        f"the weights of the {layer} layer round to zero at the plan's precision; train the "
        "model, or compile with a smaller tolerance"
    )
