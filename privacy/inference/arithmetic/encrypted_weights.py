"""Encrypted weights: written by the model owner, evaluated by a third party.

Every weight plaintext of the packed program becomes a ciphertext under the data owner's public
key, and so does every bias. Products are then of two ciphertexts, of size 3, and are relinearised
once a sum. The evaluator needs no scale but those of the public plan: nominal scales are all one.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.program import Gather, ProductProgram, SlotProgram
from privacy.inference.arithmetic.slot_model import OneImageModel
from privacy.inference.ckks import (
    Ciphertext,
    Ciphertexts,
    Extended,
    Plaintext,
    PublicKey,
    Ring,
)
from privacy.inference.messages import Reader
from privacy.inference.plan import BlindLayer, Plan
from privacy.inference.public_keys import Keys, refuse_secret


def blind_layers(program: SlotProgram | ProductProgram, levels: int) -> tuple[BlindLayer, ...]:
    """The public description of a program's layers; it follows from the architecture alone."""
    if isinstance(program, ProductProgram):
        return ()
    first = program.first
    layers = [BlindLayer(levels, 1, 1, tuple(range(len(first.weights))), first.sums)]
    for packed in program.middle:
        products = tuple(sorted(big * packed.baby + small for big, small in packed.diagonals))
        level = levels - len(layers)
        layers.append(BlindLayer(level, packed.baby, packed.giant, products, packed.sums))
    return tuple(layers)


def encrypt_program(
    plan: Plan, program: SlotProgram | ProductProgram, ring: Ring, public: PublicKey
) -> Iterator[bytes]:
    """The body of the message with the encrypted weights, a ciphertext at a time."""
    for plain in _plaintexts(plan, program, ring):
        yield public.encrypt(plain).tobytes()


def _plaintexts(
    plan: Plan, program: SlotProgram | ProductProgram, ring: Ring
) -> Iterator[Plaintext]:
    """Weights and bias of each layer in turn; of the last, all weights and then all biases."""
    if isinstance(program, ProductProgram):
        scale = 2.0**program.weight_bits
        for weights in program.products.weights:
            yield ring.encode_coefficients(weights, scale, plan.answer_level)
        biases = [program.products.bias]
    else:
        scales = tuple(program.scales.follow(program.activations, ring.primes))
        for packed, here in zip(program.before_last, scales, strict=False):
            if isinstance(packed, Gather):
                rows = list(packed.weights)
            else:
                rows = [packed.diagonals[step] for step in sorted(packed.diagonals)]
            for row in rows:
                yield ring.encode(row, here.weights, here.level)
            yield ring.encode(packed.bias, here.inputs * here.weights, here.level)
        for answer in program.last:
            yield ring.encode(answer.weights, scales[-1].weights, plan.answer_level)
        biases = [answer.bias for answer in program.last]
    for positions, values in zip(plan.answers, biases, strict=True):
        polynomial = np.zeros(plan.degree)
        polynomial[list(positions)] = values
        yield ring.encode_coefficients(polynomial, 2.0**plan.answer_scale_bits, plan.answer_level)


@dataclass(frozen=True)
class _Sum:
    """Encrypted weights (terms, 2, level, N) of a sum, for the ciphertexts in these places."""

    places: NDArray[np.int64]
    weights: Ciphertexts


class BlindModel(OneImageModel):
    """A model's encrypted weights, from the checked body of the model owner's message."""

    def __init__(self, plan: Plan, ring: Ring, body: memoryview) -> None:
        super().__init__(plan, ring)
        self._query_scale = 1.0
        reader = Reader(body)
        self._layers: list[dict[int, _Sum]] = []
        self._layer_biases: list[Ciphertext] = []
        ciphertexts = plan.ciphertexts
        for layer in plan.blind_layers:
            # As many ciphertexts as there are rotations, or values that enter the layer.
            width = layer.baby if layer.baby > 1 else ciphertexts
            giants: dict[int, list[int]] = {}
            for at in layer.products:
                giants.setdefault(at // width, []).append(at % width)
            self._layers.append(
                {at: self._read_sum(reader, places, layer.level) for at, places in giants.items()}
            )
            ciphertexts = 1
            self._layer_biases.append(self._read(reader, 1, layer.level)[0])
        level, answers = plan.answer_level, len(plan.answers)
        if plan.blind_layers:
            self._last = [self._read_sum(reader, [0], level) for _ in range(answers)]
        else:
            self._last = [self._read_sum(reader, list(range(plan.ciphertexts)), level)]
        biases = self._read(reader, answers, level)
        self._answer_biases = [biases[index] for index in range(answers)]

    def _read_sum(self, reader: Reader, places: list[int], level: int) -> _Sum:
        return _Sum(np.array(places), self._read(reader, len(places), level))

    def _read(self, reader: Reader, count: int, level: int) -> Ciphertexts:
        ring, primes = self.ring, self.ring.primes[:level]
        polynomials = np.empty((count, 2, level, ring.degree))
        for polynomial in polynomials.reshape(-1, level, ring.degree):
            residues = reader.residues(primes, ring.degree)
            refuse_secret(ring, residues)
            polynomial[:] = residues
        return Ciphertexts(polynomials, 1.0)

    def _evaluate(self, query: Ciphertexts, keys: Keys) -> list[Ciphertext]:
        ring, values = self.ring, query
        for index, layer in enumerate(self.plan.blind_layers):
            products = self._products(index, values, keys)
            total = self._with_rotations(products, layer.sums, keys)
            ring.add(total, self._layer_biases[index])
            square = ring.multiply(total, total)
            ring.relinearise(square, keys.relinearisation)
            ring.rescale(square)
            ring.rescaled_to(square, 1.0)
            values = square.alone()
        answers = [ring.divided(self._sum(values, weights, keys)) for weights in self._last]
        for answer, bias in zip(answers, self._answer_biases, strict=True):
            ring.add(answer, bias)
        return answers

    def _products(self, index: int, values: Ciphertexts, keys: Keys) -> Extended:
        layer, sums = self.plan.blind_layers[index], self._layers[index]
        if layer.baby > 1:
            steps = (None, *range(1, layer.baby))
            values = self.ring.rotate_many(values[0], steps, keys.rotation)

        def part(giant: int) -> Extended | None:
            return self._sum(values, sums[giant], keys) if giant in sums else None

        return self._giant_steps(part, layer.giant, layer.baby, keys)

    def _sum(self, values: Ciphertexts, weights: _Sum, keys: Keys) -> Extended:
        """A sum of products of ciphertexts, relinearised once."""
        total = self.ring.sum_of_products(values, weights.weights, weights.places)
        return self.ring.relinearised(total, keys.relinearisation)
