"""One image a query: weights encoded once, then products, rotations and activations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
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
    Slots,
    Sums,
)
from privacy.inference.ckks import Ciphertext, Ciphertexts, Extended, Plaintext, Ring, Weights
from privacy.inference.errors import CannotPlanError
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys
from privacy.inference.rescaling import BOTH, FIRST, SUMMED, rescaled_after


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
    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        """The logits, at the answer's level, of size 2, neither masked nor re-randomised yet."""

    def _at(self, value: Ciphertext, level: int) -> Ciphertext:
        """A value with the primes above a level dropped."""
        return value if value.level == level else self.ring.at_level(value, level)

    def _with_rotations(
        self, value: Ciphertext | Extended, sums: Sums, keys: Keys
    ) -> Ciphertext | Extended:
        """The value with its rotations added, group after group."""
        for group in sums:
            value = self.ring.add_rotations(self.ring.extended(value), group, keys.rotation)
        return value

    def _total(self, parts: list[Ciphertext | Extended]) -> Ciphertext:
        """A sum, divided once."""
        ring, (first, *others) = self.ring, parts
        if not others:
            return ring.divided(first)
        total = ring.extended(first)
        for other in others:
            total = ring.add_extended(total, ring.extended(other))
        return ring.divided(total)

    def _giant_steps(
        self, part: Callable[[int], Extended | None], count: int, step: int, keys: Keys
    ) -> Extended:
        """The sum of each part rotated by its number of steps.

        By Horner's rule, so that one key serves them all.
        """
        total: Extended | None = None
        for giant in range(count - 1, -1, -1):
            if total is not None:
                total = self.ring.rotate(total, step, keys.rotation)
            addend = part(giant)
            if total is None or addend is None:
                total = total or addend
            else:
                total = self.ring.add_extended(total, addend)
        if total is None:
            raise RuntimeError("a layer without products")
        return total


class ProductModel(OneImageModel):
    """A model that is one affine map."""

    def __init__(self, plan: Plan, program: ProductProgram) -> None:
        super().__init__(plan, Ring(plan.degree, plan.prime_bits))
        packed, scale = program.products, 2.0**program.weight_bits
        level = plan.answer_level
        plains = [self.ring.encode_coefficients(w, scale, level) for w in packed.weights]
        refuse_zero("first", (plain.is_zero for plain in plains), [packed.weights])
        self._weights = self.ring.weights(dict(enumerate(plains)))
        self._add_after([packed.bias])

    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        return [self.ring.weighted_sum(query, self._weights)]


@dataclass(frozen=True)
class _Map:
    """A map of a layer, encoded: weights by giant step, with the special prime or without.

    Attributes
    ----------
    babies : tuple of int
        Baby steps, rising: weights name their places.
    extended : bool
        Whether products are of rotations that were not divided yet.
    """

    packed: Gather | Diagonals
    weights: dict[int, Weights]
    babies: tuple[int, ...]
    extended: bool


@dataclass(frozen=True)
class _Layer:
    """A layer with an activation, encoded."""

    maps: tuple[_Map, ...]
    level: int
    bias: Plaintext
    activation: Activation
    rescale: int
    centre: Slots | None


class SlotModel(OneImageModel):
    """A model with activations."""

    def __init__(self, plan: Plan, program: SlotProgram) -> None:
        super().__init__(plan, Ring(plan.degree, plan.prime_bits))
        ring, self._program = self.ring, program
        *before_last, last = program.scales.follow(program.network.layers, ring.primes)
        rescales = iter(program.scales.rescales)
        # None stands for elements of the input as they are.
        self._layers: list[_Layer | None] = []
        self._centres: dict[int, Plaintext] = {}
        for packed, here in zip(program.layers, before_last, strict=True):
            if packed.activation is None:
                self._layers.append(None)
                continue
            maps = tuple(
                self._encoded(each, scale, here.level)
                for each, scale in zip(packed.maps, here.weights, strict=True)
            )
            name = "first" if isinstance(packed.maps[0], Gather) else "middle"
            given = [row for each in packed.maps for row in _rows(each).values()]
            refuse_zero(name, [not each.weights for each in maps], given)
            bias = ring.encode_addend(packed.bias, here.entry.scale, here.entry.level)
            self._layers.append(
                _Layer(maps, here.level, bias, packed.activation, next(rescales), packed.centre)
            )
        self._last = [
            [
                ring.encode(row, scale, last.level)
                for row, scale in zip(answer.weights, last.weights, strict=True)
            ]
            for answer in program.last
        ]
        zero = (plain.is_zero for plains in self._last for plain in plains)
        refuse_zero("last", zero, [answer.weights for answer in program.last])
        self._add_after(answer.bias for answer in program.last)

    def _encoded(self, packed: Gather | Diagonals, scale: float, level: int) -> _Map:
        given = _rows(packed)
        babies = tuple(sorted({baby for _, baby in given}))
        extended = packed.rotated
        steps: dict[int, dict[int, Plaintext]] = {}
        for (giant, baby), row in given.items():
            plain = self.ring.encode(row, scale, level, hoisted=extended)
            if not plain.is_zero:
                steps.setdefault(giant, {})[babies.index(baby)] = plain
        weights = {giant: self.ring.weights(plains) for giant, plains in steps.items()}
        return _Map(packed, weights, babies, extended)

    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        ring, program = self.ring, self._program
        late = self.plan.answer_level if program.relinearise_after_last_layer else 0
        waiting, users = Waiting(query), program.network.users
        values: dict[int, Ciphertext] = {}
        for index, (layer, packed) in enumerate(zip(self._layers, program.layers, strict=True)):
            if layer is None:
                values[index + 1] = waiting.take(1)[0]
                continue
            value = activate(
                ring,
                keys,
                layer.activation,
                self._affine(layer, values, waiting, keys),
                rescaled=rescaled_after(layer.rescale),
                large_at=late if index + 1 == len(self._layers) else 0,
            )
            if layer.centre is not None:
                centre = self._centres.get(index)
                if centre is None:  # the scale is known only now, and the same ever after
                    centre = ring.encode_addend(-layer.centre, value.scale, value.level)
                    self._centres[index] = centre
                ring.add_plain(value, centre)
            values[index + 1] = value
            for each in packed.maps:
                if isinstance(each, Diagonals) and users[each.source][-1] == index:
                    del values[each.source]  # its last use
        level = self.plan.answer_level
        read = [self._at(values[source], level) for source in program.network.layers[-1].sources]
        answers = []
        for plains in self._last:
            total, *others = map(ring.multiply_plain, read, plains)
            for other in others:
                ring.add(total, other)
            ring.relinearise(total, keys.relinearisation)
            answers.append(total)
        return answers

    def _affine(
        self, layer: _Layer, values: dict[int, Ciphertext], query: "Waiting", keys: Keys
    ) -> Ciphertext:
        """The sum of a layer's maps, rescaled where its activation wants that, plus its bias."""
        ring, parts = self.ring, []
        for each in layer.maps:
            if isinstance(each.packed, Gather):
                read = query.take(len(each.packed.weights))
            else:
                read = self._at(values[each.packed.source], layer.level).alone()
            products = self._products(each, read, keys)
            if layer.rescale == FIRST:
                products = ring.divided(products)
                ring.rescale(products)
            parts.append(self._with_rotations(products, each.packed.sums, keys))
        total = self._total(parts)
        if layer.rescale in (SUMMED, BOTH):
            ring.rescale(total)
        ring.add_plain(total, layer.bias)
        return total

    def _products(self, each: _Map, values: Ciphertexts, keys: Keys) -> Ciphertext | Extended:
        ring, packed, weights = self.ring, each.packed, each.weights
        if isinstance(packed, Gather) or not each.extended:
            return ring.weighted_sum(values, weights[0])
        steps = [baby or None for baby in each.babies]
        rotations = ring.hoist(ring.extended(values[0]), steps, keys.rotation)

        def part(giant: int) -> Extended | None:
            return ring.combine(rotations, weights[giant]) if giant in weights else None

        giants = max(giant for giant, _ in packed.weights) + 1
        return self._giant_steps(part, giants, packed.window, keys)


class Waiting:
    """The ciphertexts of a query, taken in order."""

    def __init__(self, query: Ciphertexts) -> None:
        self._query, self._taken = query, 0

    def take(self, count: int) -> Ciphertexts:
        """The next ones."""
        start, self._taken = self._taken, self._taken + count
        return Ciphertexts(self._query.polynomials[start : self._taken], self._query.scale)


def _rows(packed: Gather | Diagonals) -> dict[tuple[int, int], NDArray[Any]]:
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
