"""The evaluator's arithmetic: weights encoded once, then products, rotations and squares."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from privacy.inference._packing import Diagonals, Gather, Products, Readout
from privacy.inference._planner import Scales
from privacy.inference._seal import CONJUGATE, Ring, seal
from privacy.inference.plan import Plan


@dataclass(frozen=True)
class SlotProgram:
    """What the evaluator does for a model with activations."""

    first: Gather
    middle: tuple[Diagonals, ...]
    last: tuple[Readout, ...]
    scales: Scales


@dataclass(frozen=True)
class ProductProgram:
    """What the evaluator does for a model that is one affine map."""

    products: Products
    weight_bits: int


@dataclass(frozen=True)
class Keys:
    """What a data owner lets an evaluator compute with; none of it decrypts.

    Attributes
    ----------
    public : SEAL public key
    relin, galois : SEAL keys, or None where the plan needs none
    """

    public: Any
    relin: Any
    galois: Any


@dataclass(frozen=True)
class _Layer:
    """A middle layer's plaintexts."""

    packed: Diagonals
    weights: dict[tuple[int, int], Any]
    bias: Any


class EncodedModel:
    """A compiled model as plaintexts of its ring.

    Parameters
    ----------
    plan : Plan
    program : SlotProgram or ProductProgram
    """

    def __init__(self, plan: Plan, program: SlotProgram | ProductProgram) -> None:
        self.plan = plan
        self.program = program
        self.digest = plan.digest
        self.ring = Ring(plan.degree, plan.prime_bits)

    @cached_property
    def _first(self) -> list[Any]:
        ring, program = self.ring, self.program
        if isinstance(program, ProductProgram):
            scale = 2.0**program.weight_bits
            return [ring.encode_coefficients(w, scale, 1) for w in program.products.weights]
        scale = 2.0 ** program.scales.weights[0]
        return [ring.encode(w, scale, ring.levels) for w in program.first.weights]

    @cached_property
    def _input_scales(self) -> list[float]:
        """The scale of each layer's input."""
        if isinstance(self.program, ProductProgram):
            return [2.0**self.plan.input_scale_bits]
        scales = [2.0**self.plan.input_scale_bits]
        for index, weight in enumerate(self.program.scales.weights):
            dropped = self.ring.primes[self.ring.levels - 1 - index]
            scales.append((scales[-1] * 2.0**weight) ** 2 / dropped)
        return scales

    @cached_property
    def _first_bias(self) -> Any:
        assert_slots = self.program
        if isinstance(assert_slots, ProductProgram):
            raise TypeError("a model of one affine map adds its bias to the answer")
        scale = self._input_scales[0] * 2.0 ** assert_slots.scales.weights[0]
        return self.ring.encode(assert_slots.first.bias, scale, self.ring.levels)

    @cached_property
    def _middle(self) -> list[_Layer]:
        program = self.program
        if isinstance(program, ProductProgram):
            return []
        layers = []
        for index, packed in enumerate(program.middle, start=1):
            level = self.ring.levels - index
            scale = 2.0 ** program.scales.weights[index]
            weights = {
                step: self.ring.encode(diagonal, scale, level)
                for step, diagonal in packed.diagonals.items()
                if np.any(diagonal)
            }
            bias = self.ring.encode(packed.bias, self._input_scales[index] * scale, level)
            layers.append(_Layer(packed, weights, bias))
        return layers

    @cached_property
    def _last(self) -> list[Any]:
        program = self.program
        if isinstance(program, ProductProgram):
            return []
        scale = 2.0**self.plan.answer_scale_bits / self._input_scales[-1]
        return [self.ring.encode(answer.weights, scale, 1) for answer in program.last]

    @cached_property
    def answer_biases(self) -> list[list[int]]:
        """What is added to each coefficient that is read, as integers at the answer's scale."""
        if isinstance(self.program, ProductProgram):
            biases = [self.program.products.bias]
        else:
            biases = [answer.bias for answer in self.program.last]
        scale = 2.0**self.plan.answer_scale_bits
        return [[round(float(value) * scale) for value in bias] for bias in biases]

    def prepare(self) -> None:
        """Encode everything now, so that the first query is as quick as the next."""
        _ = self._first, self._middle, self._last, self.answer_biases
        if isinstance(self.program, SlotProgram):
            _ = self._first_bias

    def __call__(self, query: list[Any], keys: Keys) -> list[Any]:
        """Evaluate; each ciphertext that is returned holds some of the logits.

        Parameters
        ----------
        query : list of SEAL ciphertexts
        keys : Keys

        Returns
        -------
        list of SEAL ciphertexts
            At level 1 and of size 2, neither masked nor re-randomised yet.
        """
        evaluator = self.ring.evaluator
        value = self._sum(zip(query, self._first, strict=True))
        program = self.program
        if isinstance(program, ProductProgram):
            return [value]
        first = program.first
        self._tree(value, (*first.tree, *([CONJUGATE] if first.conjugate else [])), keys)
        evaluator.add_plain_inplace(value, self._first_bias)
        for index, layer in enumerate(self._middle, start=1):
            self._activate(value, keys, index)
            value = self._diagonals(value, layer, keys)
            self._tree(value, layer.packed.tree, keys)
            evaluator.add_plain_inplace(value, layer.bias)
        single = len(self._last) == 1
        # A single answer is relinearised after the last product, where it is cheapest.
        self._activate(value, None if single else keys, len(self._middle) + 1)
        answers = []
        for weights in self._last:
            answer = seal.Ciphertext()
            evaluator.multiply_plain(value, weights, answer)
            if single:
                evaluator.relinearize_inplace(answer, keys.relin)
            answers.append(answer)
        return answers

    def _sum(self, products: Any) -> Any:
        evaluator = self.ring.evaluator
        total = None
        for ciphertext, plain in products:
            product = seal.Ciphertext()
            evaluator.multiply_plain(ciphertext, plain, product)
            if total is None:
                total = product
            else:
                evaluator.add_inplace(total, product)
        return total

    def _rotate(self, value: Any, step: int, keys: Keys) -> Any:
        rotated = seal.Ciphertext()
        element = self.ring.galois_element(step)
        self.ring.evaluator.apply_galois(value, element, keys.galois, rotated)
        return rotated

    def _tree(self, value: Any, steps: tuple[int, ...], keys: Keys) -> None:
        for step in steps:
            self.ring.evaluator.add_inplace(value, self._rotate(value, step, keys))

    def _activate(self, value: Any, keys: Keys | None, index: int) -> None:
        evaluator = self.ring.evaluator
        evaluator.square_inplace(value)
        if keys is not None:
            evaluator.relinearize_inplace(value, keys.relin)
        evaluator.rescale_to_next_inplace(value)
        value.scale = self._input_scales[index]

    def _diagonals(self, value: Any, layer: _Layer, keys: Keys) -> Any:
        baby, giant = layer.packed.baby, layer.packed.giant
        babies = [value]
        for _ in range(baby - 1):
            babies.append(self._rotate(babies[-1], 1, keys))
        total = None
        # Horner's rule over the giant steps: one key serves them all.
        for big in range(giant - 1, -1, -1):
            if total is not None:
                total = self._rotate(total, baby, keys)
            part = self._sum(
                (babies[small], layer.weights[big, small])
                for small in range(baby)
                if (big, small) in layer.weights
            )
            if part is None:
                continue
            if total is None:
                total = part
            else:
                self.ring.evaluator.add_inplace(total, part)
        return total
