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
    Sums,
)
from privacy.inference.arithmetic.scales import AFTER, FIRST, SUMMED
from privacy.inference.ckks import Ciphertext, Plaintext, Ring
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
class _Layer:
    """A layer before the last, encoded; of the first, the weights by (0, ciphertext)."""

    packed: Gather | Diagonals
    weights: dict[tuple[int, int], Plaintext]
    bias: Plaintext
    activation: Activation
    rescale: int


class SlotModel(OneImageModel):
    """A model with activations."""

    def __init__(self, plan: Plan, program: SlotProgram) -> None:
        super().__init__(plan, Ring(plan.degree, plan.prime_bits))
        ring, self._program = self.ring, program
        scales = tuple(program.scales.follow(program.activations, ring.primes))
        self._layers = []
        for packed, here, activation, rescale in zip(
            program.before_last,
            scales,
            program.activations,
            program.scales.rescales,
            strict=False,
        ):
            if isinstance(packed, Gather):
                name, given = "first", {(0, index): w for index, w in enumerate(packed.weights)}
            else:
                name, given = "middle", packed.diagonals
            hoisted = isinstance(packed, Diagonals) and packed.baby > 1
            encoded = {
                step: ring.encode(row, here.weights, here.level, hoisted=hoisted)
                for step, row in given.items()
            }
            weights = {step: plain for step, plain in encoded.items() if not plain.is_zero}
            refuse_zero(name, [not weights], given.values())
            bias = ring.encode(packed.bias, here.entry.scale, here.entry.level)
            self._layers.append(_Layer(packed, weights, bias, activation, rescale))
        scale, level = scales[-1].weights, scales[-1].level
        self._last = [ring.encode(answer.weights, scale, level) for answer in program.last]
        refuse_zero(
            "last", (w.is_zero for w in self._last), [answer.weights for answer in program.last]
        )
        self._add_after(answer.bias for answer in program.last)

    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        ring, value = self.ring, query[0]
        late = self.plan.answer_level if self._program.relinearise_after_last_layer else 0
        for layer in self._layers:
            value = self._products(layer, query if layer is self._layers[0] else [value], keys)
            if layer.rescale == FIRST:
                ring.rescale(value)
            value = self._with_rotations(value, layer.packed.sums, keys)
            if layer.rescale == SUMMED:
                ring.rescale(value)
            ring.add_plain(value, layer.bias)
            value = activate(
                ring,
                keys,
                layer.activation,
                value,
                rescaled=layer.rescale == AFTER,
                large_at=late if layer is self._layers[-1] else 0,
            )
        answers = [ring.multiply_plain(value, weights) for weights in self._last]
        for answer in answers:
            ring.relinearise(answer, keys.relinearisation)
        return answers

    def _products(self, layer: _Layer, values: list[Ciphertext], keys: Keys) -> Ciphertext:
        ring, packed, weights = self.ring, layer.packed, layer.weights
        baby, giant = (1, 1) if isinstance(packed, Gather) else (packed.baby, packed.giant)
        hoisted = []
        if baby > 1:
            hoisted = ring.hoist(values[0], (None, *range(1, baby)), keys.rotation)

        def part(index: int) -> Ciphertext | None:
            if hoisted:
                terms = [
                    (rotated, weights[index, number])
                    for number, rotated in enumerate(hoisted)
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

        return self._giant_steps(part, giant, baby, keys)


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
