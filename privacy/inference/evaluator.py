"""The evaluator: answers encrypted questions, and cannot hold a secret key."""

import threading

import numpy as np

from privacy.inference import _release, _wire
from privacy.inference._encoded import Keys
from privacy.inference._seal import SEED_BYTES, Residues, Ring, seal
from privacy.inference._wire import MessageError, Reader, Tag
from privacy.inference.compiled import CompiledModel
from privacy.inference.plan import SESSION_KEY_BYTES, Plan

REPLAY_WINDOW = 1024
"""How far a query may lag behind the newest one, in queries."""


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
        self._lock = threading.Lock()
        self._newest = -1
        self._seen = 0

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
            If the query was truncated, altered, replayed, or belongs to another plan or other
            keys.
        """
        ring, plan = self._ring, self.plan
        query_id, body = _wire.open_message(
            query, Tag.QUERY, plan, self._encoded.digest, lambda _: self._session_key
        )
        self._refuse_replay(query_id)
        reader = Reader(body)
        scale = 2.0**plan.input_scale_bits
        primes = ring.primes[: ring.levels]
        ciphertexts = []
        for _ in range(plan.ciphertexts):
            residues = reader.residues(primes, plan.degree)
            refuse_secret(ring, residues)
            ciphertexts.append(ring.seeded_ciphertext(residues, reader.raw(SEED_BYTES), scale))
        answers = self._encoded(ciphertexts, self._keys)
        released = []
        for answer, positions, biases in zip(
            answers, plan.answers, self._encoded.answer_biases, strict=True
        ):
            _release.rerandomise(ring, self._encryptor, answer)
            released.append(_release.extract(ring, answer, positions, biases))
        return _wire.seal_message(
            Tag.ANSWER, plan, self._encoded.digest, query_id, b"".join(released), self._session_key
        )

    def _refuse_replay(self, query_id: int) -> None:
        """Each query is answered once; ids may arrive out of order within a window."""
        with self._lock:
            age = self._newest - query_id
            if age >= REPLAY_WINDOW or (age >= 0 and self._seen >> age & 1):
                raise MessageError(f"query {query_id} was answered before; encrypt again")
            if age < 0:
                self._seen = (self._seen << -age if -age < REPLAY_WINDOW else 0) | 1
                self._seen &= (1 << REPLAY_WINDOW) - 1
                self._newest = query_id
            else:
                self._seen |= 1 << age


def refuse_secret(ring: Ring, residues: Residues) -> None:
    """Refuse a polynomial that is a secret key: all coefficients -1, 0 or 1.

    Public keys, evaluation keys and queries are uniform, so that this refuses nobody else. It
    catches a client that sends the wrong key; no check can see a secret that someone hides.

    Raises
    ------
    MessageError
        If the polynomial, as it is or out of the number-theoretic domain, is ternary.
    """
    first = residues[:1]
    transformed = ring.ciphertext(np.stack([first, first]), 1.0)
    ring.evaluator.transform_from_ntt_inplace(transformed)
    for values in (first[0], ring.ciphertext_residues(transformed)[0, 0]):
        if bool(((values <= 1) | (values == ring.primes[0] - 1)).all()):
            raise MessageError(
                "the message holds a secret key; it was discarded. Make new keys, and send only "
                "what public_material() and encrypt() return"
            )


def _read_keys(reader: Reader, ring: Ring, plan: Plan) -> Keys:
    residues = reader.residues(ring.primes, plan.degree)
    refuse_secret(ring, residues)
    public = ring.public_key(residues, reader.raw(SEED_BYTES))
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
            residues = reader.residues(primes, ring.degree)
            refuse_secret(ring, residues)
            whole[[*range(level), len(ring.primes) - 1]] = residues
            seed = reader.raw(SEED_BYTES)
        parts.append((whole, seed))
    return parts
