"""The data owner: makes keys for exactly one plan, encrypts, decrypts."""

import secrets
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.inference import _wire
from privacy.inference._packing import EMPTY
from privacy.inference._seal import Residues, Ring, seal
from privacy.inference._wire import MessageError, Reader, Tag
from privacy.inference.plan import SESSION_KEY_BYTES, Plan


class OutOfRangeError(ValueError):
    """An input outside the range that the plan was proved for."""


@dataclass(frozen=True)
class Answer:
    """What the data owner's release policy lets out of an answer.

    Attributes
    ----------
    label : int
        The class with the largest logit.
    """

    label: int


class DataOwner:
    """Holds the secret key of one plan: encrypts inputs and decrypts answers.

    Only :class:`Answer` leaves it. A decryption in full precision does not: it would give the
    evaluator, or whoever sees it, the secret key (Li and Micciancio 2021).

    Parameters
    ----------
    plan : Plan
        The compiled model's. It is checked again here: the parameters hold 128 bits of security
        whoever made it.

    Raises
    ------
    ValueError
        If the plan is not consistent.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._digest = plan.digest
        self._ring = Ring(plan.degree, plan.prime_bits)
        self._taps = plan.taps
        self._generator = seal.KeyGenerator(self._ring.context)
        secret = self._generator.secret_key()
        self._encryptor = seal.Encryptor(self._ring.context, secret)
        self._secret = _ternary(self._ring, secret)
        self._session_key = secrets.token_bytes(SESSION_KEY_BYTES)
        self._lock = threading.Lock()
        self._next_id = 0
        self._open: set[int] = set()

    def public_material(self) -> bytes:
        """What the evaluator needs: a public key, evaluation keys and the session key.

        Send it over a channel that is authenticated and confidential (TLS): the session key in
        it authenticates every later message.
        """
        ring, plan = self._ring, self.plan
        zero = self._encryptor.encrypt_zero_symmetric(ring.key_id)
        body = [self._session_key, *_bytes(*ring.seeded_residues(zero))]
        if plan.relin_level:
            body += self._switching_key(self._generator.create_relin_keys(), plan.relin_level)
        for element, level in plan.rotation_levels:
            body += self._switching_key(self._generator.create_galois_keys([element]), level)
        return _wire.seal_message(
            Tag.MATERIAL, plan, self._digest, 0, b"".join(body), self._session_key
        )

    def _switching_key(self, serializable: object, level: int) -> list[bytes]:
        parts: list[bytes] = []
        for residues, seed in self._ring.switching_key_residues(serializable)[:level]:
            parts += _bytes(residues[[*range(level), len(residues) - 1]], seed)
        return parts

    def encrypt(self, x: ArrayLike) -> bytes:
        """Encrypt one input.

        Parameters
        ----------
        x : array_like
            Of the plan's ``input_shape``, with elements in its ``input_range``.

        Returns
        -------
        bytes
            A query for :meth:`Evaluator.evaluate`.

        Raises
        ------
        OutOfRangeError
            If an element is outside the range or not a number.
        ValueError
            If the shape is another.
        """
        plan, ring = self.plan, self._ring
        flat = self._checked(x)
        with_empty = np.append(flat, 0.0)
        scale = 2.0**plan.input_scale_bits
        placed = with_empty[np.where(self._taps == EMPTY, len(flat), self._taps)]
        body: list[bytes] = []
        for index in range(plan.ciphertexts):
            if plan.uses_slots:
                parts = placed[:, index]
                slots = parts[0] if len(parts) == 1 else parts[0] + 1j * parts[1]
                plain = ring.encode(slots, scale, ring.levels)
            else:
                coefficients = np.zeros(plan.degree)
                coefficients[: placed.shape[1]] = placed[index]
                plain = ring.encode_coefficients(coefficients, scale, ring.levels)
            body += _bytes(*ring.seeded_residues(self._encryptor.encrypt_symmetric(plain)))
        with self._lock:
            query_id = self._next_id
            self._next_id += 1
            self._open.add(query_id)
        return _wire.seal_message(
            Tag.QUERY, plan, self._digest, query_id, b"".join(body), self._session_key
        )

    def _checked(self, x: ArrayLike) -> NDArray[np.float64]:
        plan = self.plan
        values = np.asarray(x, dtype=np.float64)
        if values.shape != plan.input_shape:
            raise ValueError(f"the input has shape {values.shape}; give {plan.input_shape}")
        low, high = plan.input_range
        if not bool(((values >= low) & (values <= high)).all()):
            raise OutOfRangeError(
                f"the input has elements in [{values.min():g}, {values.max():g}], the plan was "
                f"proved for [{low:g}, {high:g}]; clip them, or compile for a wider input_range"
            )
        return values.ravel()

    def decrypt(self, answer: bytes) -> Answer:
        """Decrypt an answer and release what the policy allows: the class.

        Raises
        ------
        MessageError
            If the answer was truncated, altered, belongs to other keys, or answers a query that
            is not open (each is answered once).
        """
        return Answer(int(np.argmax(self._logits(answer))))

    def _logits(self, answer: bytes) -> NDArray[np.float64]:
        plan, ring = self.plan, self._ring
        query_id, body = _wire.open_message(
            answer, Tag.ANSWER, plan, self._digest, lambda _: self._session_key
        )
        with self._lock:
            if query_id not in self._open:
                raise MessageError(f"query {query_id} is not open: the answer was replayed")
            self._open.remove(query_id)
        reader = Reader(body)
        modulus = ring.primes[0]
        logits: list[float] = []
        for positions in plan.answers:
            second = reader.residues((modulus,), plan.degree)[0]
            low = (second & np.uint64(0xFFFFFFFF)).astype(np.int64)
            high = (second >> np.uint64(32)).astype(np.int64)
            indices = np.arange(plan.degree)
            for position in positions:
                first = int.from_bytes(reader.raw(8), "little")
                # Coefficient `position` of the second polynomial times the secret, mod X^N + 1.
                row = np.where(indices <= position, 1, -1) * self._secret[position - indices]
                value = (first + (int(row @ high) << 32) + int(row @ low)) % modulus
                value -= modulus if value > modulus // 2 else 0
                logits.append(value / 2.0**plan.answer_scale_bits)
        return np.array(logits)


class ThrowAwayOwner(DataOwner):
    """A data owner whose logits may be seen, since its keys protect nothing.

    For certificates, tests and benchmarks on data that is not secret, with keys that never met
    other data and are forgotten afterwards. Raw decryptions reveal the secret key.
    """

    def logits(self, answer: bytes) -> NDArray[np.float64]:
        """Decrypt an answer in full precision, shape (classes,)."""
        return self._logits(answer)


def _bytes(residues: Residues, seed: bytes) -> list[bytes]:
    return [np.ascontiguousarray(residues, dtype="<u8").tobytes(), seed]


def _ternary(ring: Ring, secret: object) -> NDArray[np.int64]:
    """The secret polynomial's coefficients, each -1, 0 or 1, shape (N,)."""
    first = ring.secret_residues(secret)[:1]
    holder = ring.ciphertext(np.stack([first, first]), 1.0)
    ring.evaluator.transform_from_ntt_inplace(holder)
    values = ring.ciphertext_residues(holder)[0, 0]
    signed = np.where(values > ring.primes[0] // 2, -1, values).astype(np.int64)
    if not bool(np.isin(signed, (-1, 0, 1)).all()):
        raise RuntimeError("SEAL's secret key is not ternary; TenSEAL 0.3 with SEAL 4 is needed")
    return signed
