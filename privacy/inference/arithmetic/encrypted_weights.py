"""Encrypted weights: written by the model owner, evaluated by a third party.

Every weight plaintext of the packed program becomes a ciphertext under the data owner's public
key, and so does every bias. Products are then of two ciphertexts, of size 3, and are relinearised
once a sum. The evaluator needs no scale but those of the public plan: SEAL's nominal scales are
all set to one.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from privacy.inference.arithmetic import bodies as _release
from privacy.inference.arithmetic.scales import walk
from privacy.inference.arithmetic.slot_model import ProductProgram, SlotProgram
from privacy.inference.ckks.ring import Ring, seal
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES, expand
from privacy.inference.compiler.packing import Diagonals, Gather
from privacy.inference.messages import Reader
from privacy.inference.plan import BlindLayer, Plan
from privacy.inference.public_keys import Keys, refuse_secret

_UNIT = 1.0


def blind_layers(program: SlotProgram | ProductProgram, levels: int) -> tuple[BlindLayer, ...]:
    """What the evaluator is told of a program; it follows from the architecture alone."""
    if isinstance(program, ProductProgram):
        return ()
    first = program.first
    layers = [BlindLayer(levels, 1, 1, tuple(range(len(first.weights))), first.steps)]
    for packed in program.middle:
        products = sorted(big * packed.baby + small for big, small in packed.diagonals)
        layers.append(
            BlindLayer(
                levels - len(layers), packed.baby, packed.giant, tuple(products), packed.steps
            )
        )
    return tuple(layers)


def encrypt_program(
    plan: Plan, program: SlotProgram | ProductProgram, ring: Ring, public: Any
) -> Iterator[bytes]:
    """The body of the message with the encrypted weights, a ciphertext at a time."""
    encryptor = seal.Encryptor(ring.context, public)
    for plain in _plaintexts(plan, program, ring):
        ciphertext = seal.Ciphertext()
        encryptor.encrypt(plain, ciphertext)
        yield ring.ciphertext_residues(ciphertext).tobytes()


def _plaintexts(plan: Plan, program: SlotProgram | ProductProgram, ring: Ring) -> Iterator[Any]:
    """Weights and bias of each layer in turn; of the last, all weights and then all biases."""
    if isinstance(program, ProductProgram):
        scale = 2.0**program.weight_bits
        for weights in program.products.weights:
            yield ring.encode_coefficients(weights, scale, 1)
        biases = [program.products.bias]
    else:
        scales = walk(program.scales, program.activations, [float(p) for p in ring.primes])
        packings: tuple[Gather | Diagonals, ...] = (program.first, *program.middle)
        for packed, here in zip(packings, scales, strict=False):
            if isinstance(packed, Gather):
                rows = list(packed.weights)
            else:
                rows = [packed.diagonals[step] for step in sorted(packed.diagonals)]
            for row in rows:
                yield ring.encode(row, here.weights, here.level)
            yield ring.encode(packed.bias, here.inputs * here.weights, here.level)
        for answer in program.last:
            yield ring.encode(answer.weights, scales[-1].weights, 1)
        biases = [answer.bias for answer in program.last]
    for positions, values in zip(plan.answers, biases, strict=True):
        polynomial = np.zeros(plan.degree)
        polynomial[list(positions)] = values
        yield ring.encode_coefficients(polynomial, 2.0**plan.answer_scale_bits, 1)


class BlindModel:
    """A model's encrypted weights, ready to evaluate.

    Parameters
    ----------
    plan : Plan
    ring : Ring
    body : memoryview
        Of the model owner's message, checked.

    Raises
    ------
    MessageError
        If a residue is not below its prime, or a polynomial is a secret key.
    """

    def __init__(self, plan: Plan, ring: Ring, body: memoryview) -> None:
        self.plan = plan
        self.ring = ring
        self.digest = plan.digest
        self._layers = plan.blind_layers
        reader = Reader(body)
        self._weights: list[dict[int, Any]] = []
        self._biases: list[Any] = []
        for layer in self._layers:
            self._weights.append({at: self._read(reader, layer.level) for at in layer.products})
            self._biases.append(self._read(reader, layer.level))
        last = len(plan.answers) if self._layers else plan.ciphertexts
        self._last = [self._read(reader, 1) for _ in range(last)]
        self._answer_biases = [self._read(reader, 1) for _ in plan.answers]

    def prepare(self) -> None:
        """Nothing is left to do before a query."""

    def _read(self, reader: Reader, level: int) -> Any:
        ring, primes = self.ring, self.ring.primes[:level]
        residues = np.stack([reader.residues(primes, ring.degree) for _ in range(2)])
        for polynomial in residues:
            refuse_secret(ring, polynomial)
        return ring.ciphertext(residues, _UNIT)

    def answer(self, body: memoryview, keys: Keys, encryptor: Any) -> bytes:
        """Evaluate the body of a query and return the body of an answer."""
        plan, ring = self.plan, self.ring
        reader, primes = Reader(body), ring.primes[: ring.levels]
        query = []
        for _ in range(plan.ciphertexts):
            residues = reader.residues(primes, plan.degree)
            refuse_secret(ring, residues)
            uniform = expand(reader.raw(QUERY_SEED_BYTES), primes, plan.degree)
            query.append(ring.ciphertext(np.stack([residues, uniform]), _UNIT))
        released = []
        for answer, bias, positions in zip(
            self._evaluate(query, keys), self._answer_biases, plan.answers, strict=True
        ):
            ring.evaluator.add_inplace(answer, bias)
            _release.rerandomise(ring, encryptor, answer)
            released.append(_release.extract(ring, answer, positions, [0] * len(positions)))
        return b"".join(released)

    def _evaluate(self, query: list[Any], keys: Keys) -> list[Any]:
        evaluator = self.ring.evaluator
        if not self._layers:
            return [self._sum(list(zip(query, self._last, strict=True)), keys)]
        values = query
        for index, (layer, weights) in enumerate(zip(self._layers, self._weights, strict=True)):
            if index:
                values = [values[0]]
                for _ in range(layer.baby - 1):
                    values.append(self._rotate(values[-1], 1, keys))
            total: Any = None
            share = layer.baby if index else len(query)
            # Horner's rule over the giant steps, as in the clear.
            for big in range(layer.giant - 1, -1, -1):
                if total is not None:
                    total = self._rotate(total, layer.baby, keys)
                terms = [
                    (values[small], weights[big * share + small])
                    for small in range(share)
                    if big * share + small in weights
                ]
                if terms:
                    part = self._sum(terms, keys)
                    if total is None:
                        total = part
                    else:
                        evaluator.add_inplace(total, part)
            for step in layer.tree:
                evaluator.add_inplace(total, self._rotate(total, step, keys))
            evaluator.add_inplace(total, self._biases[index])
            evaluator.square_inplace(total)
            evaluator.relinearize_inplace(total, keys.relin)
            evaluator.rescale_to_next_inplace(total)
            total.scale = _UNIT
            values = [total]
        return [self._sum([(values[0], weights)], keys) for weights in self._last]

    def _sum(self, terms: list[tuple[Any, Any]], keys: Keys) -> Any:
        """A sum of products of ciphertexts, relinearised once."""
        evaluator, total = self.ring.evaluator, seal.Ciphertext()
        for index, (value, weights) in enumerate(terms):
            product = seal.Ciphertext() if index else total
            evaluator.multiply(value, weights, product)
            if index:
                evaluator.add_inplace(total, product)
        evaluator.relinearize_inplace(total, keys.relin)
        return total

    def _rotate(self, value: Any, step: int, keys: Keys) -> Any:
        rotated = seal.Ciphertext()
        element = self.ring.galois_element(step)
        self.ring.evaluator.apply_galois(value, element, keys.galois, rotated)
        return rotated
