"""The evaluator's arithmetic: weights encoded once, then products, rotations and squares."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic import bodies as _release
from privacy.inference.arithmetic.polynomials import Scaled, evaluate
from privacy.inference.arithmetic.scales import AFTER, LayerScales, Scales, walk
from privacy.inference.ckks.operations import Cipher, CipherAlgebra
from privacy.inference.ckks.ring import Ring, seal
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES, expand
from privacy.inference.compiler.lowering import Activation
from privacy.inference.compiler.packing import Diagonals, Gather, Products, Readout
from privacy.inference.errors import CannotPlanError
from privacy.inference.messages import Reader
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys, refuse_secret


@dataclass(frozen=True)
class SlotProgram:
    """What the evaluator does for a model with activations."""

    first: Gather
    middle: tuple[Diagonals, ...]
    last: tuple[Readout, ...]
    activations: tuple[Activation, ...]
    scales: Scales
    late: bool


@dataclass(frozen=True)
class ProductProgram:
    """What the evaluator does for a model that is one affine map."""

    products: Products
    weight_bits: int


def rounds_to_zero(layer: str, given: Iterable[NDArray[Any]]) -> str:
    """Why weights that cannot be told from nothing are refused; ``given`` is as they were."""
    if not any(np.any(values) for values in given):
        return (
            f"the weights of the {layer} layer are all zero, so that no input reaches an answer; "
            "train the model, or load its weights"
        )
    return (
        f"the weights of the {layer} layer round to zero at the plan's precision; train the "
        "model, or compile with a smaller tolerance"
    )


@dataclass(frozen=True)
class _Layer:
    """A layer before the last: its plaintexts, and what its products come out as."""

    packed: Gather | Diagonals
    weights: dict[tuple[int, int], Any]
    bias: Any
    activation: Activation
    rescale: int
    entry: Scaled


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
    def _scales(self) -> tuple[LayerScales, ...]:
        program = self.program
        if isinstance(program, ProductProgram):
            return ()
        return walk(program.scales, program.activations, [float(p) for p in self.ring.primes])

    @cached_property
    def _first(self) -> list[Any]:
        ring, program = self.ring, self.program
        if isinstance(program, ProductProgram):
            scale = 2.0**program.weight_bits
            return [ring.encode_coefficients(w, scale, 1) for w in program.products.weights]
        scale = self._scales[0].weights
        return [ring.encode(w, scale, ring.levels) for w in program.first.weights]

    @cached_property
    def _layers(self) -> list[_Layer]:
        """The layers before the last; of the first, the weights are in ``_first``."""
        program = self.program
        if isinstance(program, ProductProgram):
            return []
        layers = []
        packings: tuple[Gather | Diagonals, ...] = (program.first, *program.middle)
        for packed, scales, activation, rescale in zip(
            packings, self._scales, program.activations, program.scales.rescales, strict=False
        ):
            weights = {}
            if isinstance(packed, Diagonals):
                weights = {
                    step: self.ring.encode(diagonal, scales.weights, scales.level)
                    for step, diagonal in packed.diagonals.items()
                    if np.any(diagonal)
                }
            entry = scales.entry
            bias = self.ring.encode(packed.bias, entry.scale, entry.level)
            layers.append(_Layer(packed, weights, bias, activation, rescale, entry))
        return layers

    @cached_property
    def _last(self) -> list[Any]:
        program = self.program
        if isinstance(program, ProductProgram):
            return []
        scale = self._scales[-1].weights
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
        """Encode everything now, so that the first query is as quick as the next.

        Raises
        ------
        CannotPlanError
            If all weights of a layer round to zero.
        """
        program = self.program
        layers: list[tuple[str, list[Any], list[NDArray[Any]]]]
        if isinstance(program, ProductProgram):
            layers = [("first", self._first, [program.products.weights])]
        else:
            layers = [("first", self._first, [program.first.weights])]
            layers += [
                ("middle", [*layer.weights.values()], [*packed.diagonals.values()])
                for layer, packed in zip(self._layers[1:], program.middle, strict=True)
            ]
            layers.append(("last", self._last, [answer.weights for answer in program.last]))
        for name, weights, given in layers:
            if all(plain.is_zero() for plain in weights):
                raise CannotPlanError(rounds_to_zero(name, given))
        for index, plain in enumerate(self._last):
            if plain.is_zero():
                # SEAL refuses a product with nothing, and of several answers one may have no
                # weights: one unit is as little as rounding may be off.
                scale = self._scales[-1].weights
                self._last[index] = self.ring.encode_constant(1 / scale, scale, 1)
        _ = self.answer_biases

    def answer(self, body: memoryview, keys: Keys, encryptor: Any) -> bytes:
        """Evaluate the body of a query and return the body of an answer."""
        plan, ring = self.plan, self.ring
        reader = Reader(body)
        scale = 2.0**plan.input_scale_bits
        primes = ring.primes[: ring.levels]
        query = []
        for _ in range(plan.ciphertexts):
            residues = reader.residues(primes, plan.degree)
            refuse_secret(ring, residues)
            uniform = expand(reader.raw(QUERY_SEED_BYTES), primes, plan.degree)
            query.append(ring.ciphertext(np.stack([residues, uniform]), scale))
        released = []
        for ciphertext, positions, biases in zip(
            self._evaluate(query, keys), plan.answers, self.answer_biases, strict=True
        ):
            _release.rerandomise(ring, encryptor, ciphertext)
            released.append(_release.extract(ring, ciphertext, positions, biases))
        return b"".join(released)

    def _evaluate(self, query: list[Any], keys: Keys) -> list[Any]:
        """The logits, at level 1 and of size 2, neither masked nor re-randomised yet."""
        evaluator = self.ring.evaluator
        value = self._sum(zip(query, self._first, strict=True))
        program = self.program
        if isinstance(program, ProductProgram):
            return [value]
        for layer in self._layers:
            if isinstance(layer.packed, Diagonals):
                value = self._diagonals(value, layer.packed, layer.weights, keys)
            early = layer.rescale if layer.rescale >= 0 else len(layer.packed.steps)
            self._tree(value, layer.packed.steps[:early], keys)
            if layer.rescale >= 0:
                evaluator.rescale_to_next_inplace(value)
                value.scale = layer.entry.scale
            self._tree(value, layer.packed.steps[early:], keys)
            evaluator.add_plain_inplace(value, layer.bias)
            last = layer is self._layers[-1]
            algebra = CipherAlgebra(
                self.ring, keys.relin, leave_at=1 if last and program.late else 0
            )
            start = Cipher(value, layer.entry.scale, layer.entry.level)
            rescaled = layer.rescale == AFTER
            value = evaluate(algebra, layer.activation, start, rescaled=rescaled).ciphertext
        answers = []
        for weights in self._last:
            answer = seal.Ciphertext()
            evaluator.multiply_plain(value, weights, answer)
            if program.late:
                evaluator.relinearize_inplace(answer, keys.relin)
            answers.append(answer)
        return answers

    def _sum(self, products: Iterable[tuple[Any, Any]]) -> Any:
        """Sum of products, or None if every plaintext is zero (SEAL refuses such products)."""
        evaluator = self.ring.evaluator
        total = None
        for ciphertext, plain in products:
            if plain.is_zero():
                continue
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

    def _diagonals(
        self, value: Any, packed: Diagonals, weights: dict[tuple[int, int], Any], keys: Keys
    ) -> Any:
        baby, giant = packed.baby, packed.giant
        babies = [value]
        for _ in range(baby - 1):
            babies.append(self._rotate(babies[-1], 1, keys))
        total = None
        # Horner's rule over the giant steps: one key serves them all.
        for big in range(giant - 1, -1, -1):
            if total is not None:
                total = self._rotate(total, baby, keys)
            part = self._sum(
                (babies[small], weights[big, small])
                for small in range(baby)
                if (big, small) in weights
            )
            if part is None:
                continue
            if total is None:
                total = part
            else:
                self.ring.evaluator.add_inplace(total, part)
        return total
