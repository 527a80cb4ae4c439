"""The evaluator: answers encrypted questions, and cannot hold a secret key."""

import struct
from typing import Any

import numpy as np

from privacy.inference import _wire
from privacy.inference._encoded import Keys
from privacy.inference._seal import SEED_BYTES, Residues, Ring, seal
from privacy.inference._wire import MessageError, Reader, Tag
from privacy.inference.compiled import CompiledModel
from privacy.inference.plan import SESSION_KEY_BYTES, Plan


class Evaluator:
    """Answers one data owner's queries with a compiled model.

    Parameters
    ----------
    compiled : CompiledModel
    public_material : bytes
        What :meth:`DataOwner.public_material` returned. It is fixed by the plan to the byte: a
        session key, a public key and the evaluation keys that the plan names. There is no field
        and no method that takes a secret key.

    Raises
    ------
    MessageError
        If the material is not exactly that.
    """

    def __init__(self, compiled: CompiledModel, public_material: bytes) -> None:
        self.plan = compiled.plan
        self._encoded = compiled.encoded
        self._ring = self._encoded.ring
        digest = self._encoded.digest
        _, body = _wire.open_message(
            public_material,
            Tag.MATERIAL,
            self.plan,
            digest,
            lambda body: bytes(body[:SESSION_KEY_BYTES]),
        )
        reader = Reader(body)
        self._session_key = reader.raw(SESSION_KEY_BYTES)
        self._keys = _read_keys(reader, self._ring, self.plan)
        self._encryptor = seal.Encryptor(self._ring.context, self._keys.public)
        self._encoded.prepare()

    def evaluate(self, query: bytes) -> bytes:
        """Answer one query.

        Parameters
        ----------
        query : bytes
            What :meth:`DataOwner.encrypt` returned.

        Returns
        -------
        bytes
            For :meth:`DataOwner.decrypt`; to everyone else it is noise.

        Raises
        ------
        MessageError
            If the query was truncated, altered, belongs to another plan or other keys.
        """
        ring, plan = self._ring, self.plan
        query_id, body = _wire.open_message(
            query, Tag.QUERY, plan, self._encoded.digest, lambda _: self._session_key
        )
        reader = Reader(body)
        scale = 2.0**plan.input_scale_bits
        primes = ring.primes[: ring.levels]
        ciphertexts = []
        for _ in range(plan.ciphertexts):
            residues = reader.residues(primes, plan.degree)
            ciphertexts.append(ring.seeded_ciphertext(residues, reader.raw(SEED_BYTES), scale))
        answers = self._encoded(ciphertexts, self._keys)
        released = [
            self._release(answer, positions, biases)
            for answer, positions, biases in zip(
                answers, plan.answers, self._encoded.answer_biases, strict=True
            )
        ]
        return _wire.seal_message(
            Tag.ANSWER, plan, self._encoded.digest, query_id, b"".join(released), self._session_key
        )

    def _release(self, answer: Any, positions: tuple[int, ...], biases: list[int]) -> bytes:
        """What leaves of an answer: its second polynomial and the coefficients that are read.

        A fresh encryption of zero makes the second polynomial independent of the query's, which
        would otherwise give away the weights by division in the ring. Of the first polynomial
        every coefficient that is not read is left out, which tells exactly as little as a
        uniformly random mask on it would, and makes the answer half as long.
        """
        ring = self._ring
        zero = seal.Ciphertext()
        self._encryptor.encrypt_zero(ring.parms_id(1), zero)
        zero.scale = answer.scale
        ring.evaluator.add_inplace(answer, zero)
        ring.evaluator.transform_from_ntt_inplace(answer)
        first, second = ring.ciphertext_residues(answer)[:, 0]
        modulus = ring.primes[0]
        read = [
            (int(first[position]) + bias) % modulus
            for position, bias in zip(positions, biases, strict=True)
        ]
        return bytes(second.tobytes()) + struct.pack(f"<{len(read)}Q", *read)


def _read_keys(reader: Reader, ring: Ring, plan: Plan) -> Keys:
    public = ring.public_key(reader.residues(ring.primes, plan.degree), reader.raw(SEED_BYTES))
    relin = None
    if plan.relin_level:
        relin = ring.relin_keys(_read_switching_key(reader, ring, plan.relin_level))
    galois = None
    if plan.rotation_levels:
        galois = ring.galois_keys(
            {
                element: _read_switching_key(reader, ring, level)
                for element, level in plan.rotation_levels
            }
        )
    return Keys(public, relin, galois)


def _read_switching_key(reader: Reader, ring: Ring, level: int) -> list[tuple[Residues, bytes]]:
    """A switching key that is used up to ``level``; what it lacks above is zero, and unused."""
    primes = (*ring.primes[:level], ring.primes[-1])
    parts = []
    for index in range(ring.levels):
        whole = np.zeros((len(ring.primes), ring.degree), dtype=np.uint64)
        seed = bytes(SEED_BYTES)
        if index < level:
            whole[[*range(level), len(ring.primes) - 1]] = reader.residues(primes, ring.degree)
            seed = reader.raw(SEED_BYTES)
        parts.append((whole, seed))
    return parts


__all__ = ["Evaluator", "MessageError"]
