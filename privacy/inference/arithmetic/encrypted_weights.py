"""Encrypted weights: written by the model owner, evaluated by a third party.

Every weight plaintext of the packed program becomes a ciphertext under the data owner's public
key, and so does every bias. Products are then of two ciphertexts, of size 3, and are relinearised
once a sum. The evaluator needs no scale but those of the public plan: nominal scales are all one.
"""

from collections.abc import Iterator

import numpy as np

from privacy.inference.arithmetic.program import Gather, ProductProgram, SlotProgram
from privacy.inference.arithmetic.slot_model import OneImageModel, made
from privacy.inference.ckks import Ciphertext, Plaintext, PublicKey, Ring
from privacy.inference.messages import Reader
from privacy.inference.plan import BlindLayer, BlindMap, Plan
from privacy.inference.public_keys import Keys, refuse_secret


def blind_layers(program: SlotProgram | ProductProgram, levels: int) -> tuple[BlindLayer, ...]:
    """The public description of a program's layers; it follows from the architecture alone."""
    if isinstance(program, ProductProgram):
        return ()
    layers = []
    scales = program.scales.follow(program.network.layers)
    for packed, here in zip(program.layers, scales, strict=False):
        if packed.activation is None:
            layers.append(BlindLayer(here.level, ()))
            continue
        maps = []
        for each in packed.maps:
            if isinstance(each, Gather):
                maps.append(BlindMap(0, 1, tuple(range(len(each.weights))), each.sums))
            else:
                products = sorted(big * each.window + small for big, small in each.weights)
                maps.append(BlindMap(each.source, each.window, tuple(products), each.sums))
        layers.append(BlindLayer(here.level, tuple(maps)))
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
            yield ring.encode(packed.bias, here.product, here.level)
        for answer in program.last:
            for row, scale in zip(answer.weights, scales[-1].weights, strict=True):
                yield ring.encode(row, scale, plan.answer_level)
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
        self._weights: list[list[dict[int, Ciphertext]]] = []
        self._layer_biases: list[Ciphertext | None] = []
        for layer in plan.blind_layers:
            level = layer.level
            self._weights.append(
                [{at: self._read(reader, level) for at in each.products} for each in layer.maps]
            )
            self._layer_biases.append(self._read(reader, level) if layer.maps else None)
        last = plan.blind_sources if plan.blind_layers else (0,) * plan.ciphertexts
        self._last = [[self._read(reader, plan.answer_level) for _ in last] for _ in plan.answers]
        self._answer_biases = [self._read(reader, plan.answer_level) for _ in plan.answers]

    def _read(self, reader: Reader, level: int) -> Ciphertext:
        ring, primes = self.ring, self.ring.primes[:level]
        residues = np.stack([reader.residues(primes, ring.degree) for _ in range(2)])
        for polynomial in residues:
            refuse_secret(ring, polynomial)
        return ring.ciphertext(residues, 1.0)

    def _evaluate(self, query: list[Ciphertext], keys: Keys) -> list[Ciphertext]:
        ring, plan = self.ring, self.plan
        values, waiting = [query[0]], iter(query)
        for index, layer in enumerate(plan.blind_layers):
            if not layer.maps:
                values.append(next(waiting))
                continue
            total: Ciphertext | None = None
            for each, weights in zip(layer.maps, self._weights[index], strict=True):
                read = (
                    [self._at(values[each.source], layer.level)]
                    if each.source
                    else [self._at(next(waiting), layer.level) for _ in each.products]
                )
                part = self._products(each, weights, read, keys)
                part = self._with_rotations(part, each.sums, keys)
                if total is None:
                    total = part
                else:
                    ring.add(total, part)
            total = made(total)
            ring.add(total, made(self._layer_biases[index]))
            square = ring.multiply(total, total)
            ring.relinearise(square, keys.relinearisation)
            ring.rescale(square)
            ring.rescaled_to(square, 1.0)
            values.append(square)
        read = [values[source] for source in plan.blind_sources] if plan.blind_layers else query
        read = [self._at(value, plan.answer_level) for value in read]
        answers = [self._sum(list(zip(read, row, strict=True)), keys) for row in self._last]
        for answer, bias in zip(answers, self._answer_biases, strict=True):
            ring.add(answer, bias)
        return answers

    def _products(
        self,
        each: BlindMap,
        weights: dict[int, Ciphertext],
        values: list[Ciphertext],
        keys: Keys,
    ) -> Ciphertext:
        by_step: dict[int, Ciphertext]
        if each.source:
            (value,) = values
            babies = sorted({number % each.window for number in each.products})
            turned = [baby for baby in babies if baby]
            rotated = self.ring.rotate_many(value, turned, keys.rotation)
            by_step = {0: value, **dict(zip(turned, rotated, strict=True))}
            window, giants = each.window, max(each.products, default=0) // each.window + 1
        else:
            by_step, window, giants = dict(enumerate(values)), len(values), 1

        def part(giant: int) -> Ciphertext | None:
            terms = [
                (value, weights[giant * window + baby])
                for baby, value in by_step.items()
                if giant * window + baby in weights
            ]
            return self._sum(terms, keys) if terms else None

        return self._giant_steps(part, giants, window, keys)

    def _sum(self, terms: list[tuple[Ciphertext, Ciphertext]], keys: Keys) -> Ciphertext:
        """A sum of products of ciphertexts, relinearised once."""
        products = (self.ring.multiply(value, weights) for value, weights in terms)
        total = next(products)
        for product in products:
            self.ring.add(total, product)
        self.ring.relinearise(total, keys.relinearisation)
        return total
