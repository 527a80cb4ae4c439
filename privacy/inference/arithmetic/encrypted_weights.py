"""Encrypted weights: written by the model owner, evaluated by a third party.

Every weight plaintext of the packed program becomes a ciphertext under the data owner's public
key, and so does every bias. Products are then of two ciphertexts, of size 3, and are relinearised
once a sum. The evaluator needs no scale but those of the public plan: nominal scales are all one.
"""

from collections.abc import Iterator

import numpy as np

from privacy.inference.arithmetic.program import Gather, ProductProgram, SlotProgram
from privacy.inference.arithmetic.slot_model import OneImageModel
from privacy.inference.ckks import Ciphertext, Plaintext, PublicKey, Ring
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


class BlindModel(OneImageModel):
    """A model's encrypted weights, from the checked body of the model owner's message."""

    def __init__(self, plan: Plan, ring: Ring, body: memoryview) -> None:
        super().__init__(plan, ring)
        self._query_scale = 1.0
        reader = Reader(body)
        self._weights: list[dict[int, Ciphertext]] = []
        self._layer_biases: list[Ciphertext] = []
        for layer in plan.blind_layers:
            self._weights.append({at: self._read(reader, layer.level) for at in layer.products})
            self._layer_biases.append(self._read(reader, layer.level))
        last = len(plan.answers) if plan.blind_layers else plan.ciphertexts
        self._last = [self._read(reader, plan.answer_level) for _ in range(last)]
        self._answer_biases = [self._read(reader, plan.answer_level) for _ in plan.answers]

    def _read(self, reader: Reader, level: int) -> Ciphertext:
        ring, primes = self.ring, self.ring.primes[:level]
        residues = np.stack([reader.residues(primes, ring.degree) for _ in range(2)])
        for polynomial in residues:
            refuse_secret(ring, polynomial)
        return ring.ciphertext(residues, 1.0)

    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        ring, values = self.ring, query
        for index, layer in enumerate(self.plan.blind_layers):
            total = self._with_rotations(self._products(index, values, keys), layer.sums, keys)
            ring.add(total, self._layer_biases[index])
            square = ring.multiply(total, total)
            ring.relinearise(square, keys.relinearisation)
            ring.rescale(square)
            ring.rescaled_to(square, 1.0)
            values = [square]
        if self.plan.blind_layers:
            answers = [self._sum([(values[0], weights)], keys) for weights in self._last]
        else:
            answers = [self._sum(list(zip(query, self._last, strict=True)), keys)]
        for answer, bias in zip(answers, self._answer_biases, strict=True):
            ring.add(answer, bias)
        return answers

    def _products(self, index: int, values: list[Ciphertext], keys: Keys) -> Ciphertext:
        layer, weights = self.plan.blind_layers[index], self._weights[index]
        if layer.baby > 1:
            rotated = self.ring.rotate_many(values[0], range(1, layer.baby), keys.rotation)
            values = [values[0], *rotated]

        def part(giant: int) -> Ciphertext | None:
            start = giant * len(values)
            terms = [
                (value, weights[start + number])
                for number, value in enumerate(values)
                if start + number in weights
            ]
            return self._sum(terms, keys) if terms else None

        return self._giant_steps(part, layer.giant, layer.baby, keys)

    def _sum(self, terms: list[tuple[Ciphertext, Ciphertext]], keys: Keys) -> Ciphertext:
        """A sum of products of ciphertexts, relinearised once."""
        products = (self.ring.multiply(value, weights) for value, weights in terms)
        total = next(products)
        for product in products:
            self.ring.add(total, product)
        self.ring.relinearise(total, keys.relinearisation)
        return total
