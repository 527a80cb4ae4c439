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
from privacy.inference.arithmetic.slot_model import OneImageModel, Waiting
from privacy.inference.ckks import (
    Ciphertext,
    Ciphertexts,
    Extended,
    Plaintext,
    PublicKey,
    Ring,
)
from privacy.inference.messages import Reader
from privacy.inference.plan import BlindLayer, BlindMap, Plan
from privacy.inference.public_keys import Keys, refuse_secret
from privacy.inference.rescaling import BOTH, FIRST, NEVER, SUMMED, rescaled_after


def blind_layers(program: SlotProgram | ProductProgram, levels: int) -> tuple[BlindLayer, ...]:
    """The public description of a program's layers; it follows from the architecture alone."""
    if isinstance(program, ProductProgram):
        return ()
    layers, rescales = [], iter(program.scales.rescales)
    scales = program.scales.follow(program.network.layers)
    for packed, here in zip(program.layers, scales, strict=False):
        if packed.activation is None:
            layers.append(BlindLayer(here.level, NEVER, ()))
            continue
        maps = []
        for each in packed.maps:
            if isinstance(each, Gather):
                maps.append(BlindMap(0, 1, tuple(range(len(each.weights))), each.sums))
            else:
                products = sorted(big * each.window + small for big, small in each.weights)
                maps.append(BlindMap(each.source, each.window, tuple(products), each.sums))
        layers.append(BlindLayer(here.level, next(rescales), tuple(maps)))
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
        scales = tuple(program.scales.follow(program.network.layers, ring.primes))
        for packed, here in zip(program.layers, scales, strict=False):
            if packed.activation is None:
                continue
            for each, scale in zip(packed.maps, here.weights, strict=True):
                if isinstance(each, Gather):
                    rows = list(each.weights)
                else:
                    rows = [each.weights[step] for step in sorted(each.weights)]
                for row in rows:
                    yield ring.encode(row, scale, here.level)
            yield ring.encode_addend(packed.bias, here.entry.scale, here.entry.level)
        for answer in program.last:
            for row, scale in zip(answer.weights, scales[-1].weights, strict=True):
                yield ring.encode(row, scale, plan.answer_level)
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
        self._layers: list[list[dict[int, _Sum]]] = []
        self._layer_biases: list[Ciphertext | None] = []
        for layer in plan.blind_layers:
            level = layer.level
            self._layers.append([self._read_map(reader, each, level) for each in layer.maps])
            self._layer_biases.append(
                self._read(reader, 1, layer.entry_level)[0] if layer.maps else None
            )
        level, answers = plan.answer_level, len(plan.answers)
        last = len(plan.blind_sources) or plan.ciphertexts
        self._last = [self._read_sum(reader, list(range(last)), level) for _ in range(answers)]
        biases = self._read(reader, answers, level)
        self._answer_biases = [biases[index] for index in range(answers)]

    def _read_map(self, reader: Reader, each: BlindMap, level: int) -> dict[int, _Sum]:
        """The weights of a map by giant step, for the places of baby steps."""
        babies, giants = _babies(each), dict[int, list[int]]()
        for number in each.products:
            giant, baby = divmod(number, each.window) if each.source else (0, number)
            giants.setdefault(giant, []).append(babies.index(baby))
        return {at: self._read_sum(reader, places, level) for at, places in giants.items()}

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
        ring, plan = self.ring, self.plan
        waiting, values = Waiting(query), dict[int, Ciphertext]()
        for index, (layer, bias) in enumerate(
            zip(plan.blind_layers, self._layer_biases, strict=True)
        ):
            if bias is None:
                values[index + 1] = waiting.take(1)[0]
                continue
            parts = []
            for each, sums in zip(layer.maps, self._layers[index], strict=True):
                if each.source:
                    read = self._at(values[each.source], layer.level).alone()
                else:
                    read = waiting.take(len(each.products))
                products: Ciphertext | Extended = self._products(each, sums, read, keys)
                if layer.rescale == FIRST:
                    products = ring.divided(products)
                    ring.rescale(products)
                parts.append(self._with_rotations(products, each.sums, keys))
            total = self._total(parts)
            if layer.rescale in (SUMMED, BOTH):
                ring.rescale(total)
            ring.add(total, bias)
            square = ring.multiply(total, total)
            ring.relinearise(square, keys.relinearisation)
            if rescaled_after(layer.rescale):
                ring.rescale(square)
            ring.rescaled_to(square, 1.0)
            values[index + 1] = square
        if plan.blind_layers:
            last = [self._at(values[at], plan.answer_level) for at in plan.blind_sources]
            query = Ciphertexts(np.stack([value.polynomials for value in last]), 1.0)
        answers = [ring.divided(self._sum(query, weights, keys)) for weights in self._last]
        for answer, bias in zip(answers, self._answer_biases, strict=True):
            ring.add(answer, bias)
        return answers

    def _products(
        self, each: BlindMap, sums: dict[int, _Sum], values: Ciphertexts, keys: Keys
    ) -> Extended:
        if not each.source:
            return self._sum(values, sums[0], keys)
        babies = _babies(each)
        if babies != [0]:
            steps = [baby or None for baby in babies]
            values = self.ring.rotate_many(values[0], steps, keys.rotation)

        def part(giant: int) -> Extended | None:
            return self._sum(values, sums[giant], keys) if giant in sums else None

        return self._giant_steps(part, max(sums) + 1, each.window, keys)

    def _sum(self, values: Ciphertexts, weights: _Sum, keys: Keys) -> Extended:
        """A sum of products of ciphertexts, relinearised once."""
        total = self.ring.sum_of_products(values, weights.weights, weights.places)
        return self.ring.relinearised(total, keys.relinearisation)


def _babies(each: BlindMap) -> list[int]:
    """The baby steps of a map, rising; of one of the query, its ciphertexts."""
    if not each.source:
        return list(each.products)
    return sorted({number % each.window for number in each.products})
