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
from privacy.inference.ckks import Ciphertext, Ciphertexts, Extended, Plaintext, Ring, Weights
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
    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        """The logits, at the answer's level, of size 2, neither masked nor re-randomised yet."""

    def _with_rotations(self, value: Ciphertext | Extended, sums: Sums, keys: Keys) -> Ciphertext:
        """The value with its rotations added, group after group, and divided once."""
        ring = self.ring
        if not sums:
            return ring.divided(value)
        total = ring.extended(value)
        for group in sums:
            total = ring.add_rotations(total, group, keys.rotation)
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
class _Layer:
    """A layer before the last, encoded: weights by giant step, with the special prime or without.

    Attributes
    ----------
    extended : bool
        Whether products are of rotations that were not divided yet.
    """

    packed: Gather | Diagonals
    weights: dict[int, Weights]
    extended: bool
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
            extended = isinstance(packed, Diagonals) and packed.baby * packed.giant > 1
            steps: dict[int, dict[int, Plaintext]] = {}
            for (giant, baby), row in given.items():
                plain = ring.encode(row, here.weights, here.level, hoisted=extended)
                if not plain.is_zero:
                    steps.setdefault(giant, {})[baby] = plain
            refuse_zero(name, [not steps], given.values())
            weights = {giant: ring.weights(plains) for giant, plains in steps.items()}
            bias = ring.encode(packed.bias, here.entry.scale, here.entry.level)
            self._layers.append(_Layer(packed, weights, extended, bias, activation, rescale))
        scale, level = scales[-1].weights, scales[-1].level
        self._last = [ring.encode(answer.weights, scale, level) for answer in program.last]
        refuse_zero(
            "last", (w.is_zero for w in self._last), [answer.weights for answer in program.last]
        )
        self._add_after(answer.bias for answer in program.last)

    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        ring, values = self.ring, query
        late = self.plan.answer_level if self._program.relinearise_after_last_layer else 0
        for layer in self._layers:
            products = self._products(layer, values, keys)
            if layer.rescale == FIRST:
                products = ring.divided(products)
                ring.rescale(products)
            value = self._with_rotations(products, layer.packed.sums, keys)
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
            values = value.alone()
        answers = [ring.multiply_plain(value, weights) for weights in self._last]
        for answer in answers:
            ring.relinearise(answer, keys.relinearisation)
        return answers

    def _products(self, layer: _Layer, values: Ciphertexts, keys: Keys) -> Ciphertext | Extended:
        ring, packed, weights = self.ring, layer.packed, layer.weights
        if isinstance(packed, Gather) or not layer.extended:
            return ring.weighted_sum(values, weights[0])
        steps = (None, *range(1, packed.baby))
        rotations = ring.hoist(ring.extended(values[0]), steps, keys.rotation)

        def part(giant: int) -> Extended | None:
            return ring.combine(rotations, weights[giant]) if giant in weights else None

        return self._giant_steps(part, packed.giant, packed.baby, keys)


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
