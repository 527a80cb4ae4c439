"""The data owner: makes keys for exactly one plan, encrypts, decrypts."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import double_array, of_kind
from privacy.inference.ckks import (
    SEED_BYTES,
    Parts,
    Plaintext,
    Residues,
    Ring,
    SecretKey,
    deal,
)
from privacy.inference.errors import MessageError, OutOfRangeError, SecretsError
from privacy.inference.input_range import bounds, by_feature, label, shown
from privacy.inference.messages import Reader, Tag, open_message, seal_message
from privacy.inference.owner.codec import answer_reader, packer
from privacy.inference.owner.release_policy import Answer, ClassOnly, EachLabel, ReleasePolicy
from privacy.inference.owner.secret_state import SecretState
from privacy.inference.plan import SESSION_KEY_BYTES, Plan

_ENCRYPTION = 4
"""Products of residues that a byte of a fresh ciphertext takes as long as."""


class DataOwner:
    """Holds the secret key of one plan: encrypts inputs and decrypts answers.

    Only :class:`Answer` leaves it. Whoever saw decryptions in full precision would learn the
    secret key (Li and Micciancio 2021).

    Parameters
    ----------
    plan : Plan
        The compiled model's. It is checked again here: the parameters hold 128 bits of security
        whoever made it.
    release : ReleasePolicy, optional
        Which part of a decryption leaves. Default: ``ClassOnly()``, or ``EachLabel()`` where the
        plan is of a multi-label model.

    Raises
    ------
    ReleaseError
        If the plan cannot carry the policy.
    """

    def __init__(self, plan: Plan, *, release: ReleasePolicy | None = None) -> None:
        secret = SecretKey(self._set_up(plan, release))
        session_key = secrets.token_bytes(SESSION_KEY_BYTES)
        self._take(secret, SecretState(session_key, secret.residues))

    def _set_up(self, plan: Plan, release: ReleasePolicy | None) -> Ring:
        of_kind("plan", plan, Plan, "the plan, as in compiled.plan or Plan.from_json(text)")
        usual = EachLabel() if plan.multi_label else ClassOnly()
        policy = usual if release is None else release
        if isinstance(policy, type) or not callable(getattr(policy, "check", None)):
            raise TypeError(f"release is {release!r}; give a release policy, such as ClassOnly()")
        self.plan = plan
        self._policy = policy
        self._policy.check(plan)
        self._digest = plan.digest
        self._ring = Ring(plan.degree, plan.prime_bits)
        self._packer = packer(plan, self._ring)
        self._lock = threading.Lock()
        return self._ring

    def _take(self, secret: SecretKey, state: SecretState) -> None:
        self._secret, self._state = secret, state
        self._session_key = state.session_key
        self._reader = answer_reader(self.plan, self._ring, secret)

    def secret_state(self) -> bytes:
        """The secret key, the session key and the open queries, for a file of mode 0600.

        Whoever has these bytes can read all queries and answers under these keys. They never
        travel; an evaluator refuses them.
        """
        with self._lock:
            return self._state.to_bytes(self._digest)

    @classmethod
    def from_secret_state(
        cls, plan: Plan, content: bytes, *, release: ReleasePolicy | None = None
    ) -> Self:
        """The owner whose :meth:`secret_state` this is, after a restart.

        It counts the answers that were released before the state was written, and no later ones:
        keep one copy, and replace or remove it when answers have been read.

        Parameters
        ----------
        plan : Plan
            The same.
        content : bytes
        release : ReleasePolicy, optional

        Raises
        ------
        SecretsError
            If the bytes are damaged or belong to another plan.
        ReleaseError
            If the plan cannot carry the policy.
        """
        owner = cls.__new__(cls)
        ring = owner._set_up(plan, release)
        state = SecretState.from_bytes(content, owner._digest, (len(ring.primes), ring.degree))
        try:
            owner._take(SecretKey(ring, state.residues), state)
        except ValueError as error:
            raise SecretsError(f"the secret state holds no key ({error}); make new keys") from error
        return owner

    def public_material(self, *, binding: bytes = b"") -> bytes:
        """A public key, evaluation keys and the session key, for the evaluator.

        Send it over a channel that is authenticated and confidential (TLS): the session key in
        it authenticates every later message.

        Parameters
        ----------
        binding : bytes
            From a service, which binds material to a token and to its own start: the same bytes
            are then refused under another token and after a restart.
        """
        plan = self.plan
        body = [self._session_key, *_bytes(*self._secret.public_key())]
        if plan.relin_level:
            body += _switching_key(self._secret.relinearisation_key(plan.relin_level))
        for element, level in plan.rotation_levels:
            body += _switching_key(self._secret.rotation_key(element, level))
        key, content = self._session_key, b"".join(body)
        return seal_message(Tag.MATERIAL, plan, self._digest, 0, content, key, binding=binding)

    def encrypt(self, x: ArrayLike) -> bytes:
        """Encrypt one input, or a batch.

        Parameters
        ----------
        x : array_like
            Shape ``input_shape`` of the plan, elements in its ``input_range``; for a plan with a
            ``batch_size`` above 1, up to that many inputs, shape (images, ...).

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
        images = self._checked(x)
        body = self._encrypted(self._packer(images))
        with self._lock:
            query_id = self._state.open_query(len(images))
        return seal_message(Tag.QUERY, self.plan, self._digest, query_id, body, self._session_key)

    def _encrypted(self, plaintexts: list[Callable[[], Plaintext]]) -> bytearray:
        """The body of a query, its ciphertexts encoded and encrypted on all cores."""
        length = 8 * self._ring.levels * self._ring.degree
        one = length + SEED_BYTES
        body = bytearray(one * len(plaintexts))

        def work(start: int, stop: int) -> None:
            for index in range(start, stop):
                residues, seed = self._secret.encrypt(plaintexts[index]())
                place = slice(one * index, one * index + length)
                np.frombuffer(memoryview(body)[place], dtype="<u8")[:] = residues.reshape(-1)
                body[place.stop : place.stop + SEED_BYTES] = seed

        deal(work, len(plaintexts), _ENCRYPTION * length * len(plaintexts))
        return body

    def _checked(self, x: ArrayLike) -> NDArray[np.float64]:
        plan = self.plan
        values = double_array("the input", x, "shape input_shape, or one axis more for a batch")
        if plan.batch_size == 1:
            values = values[None]
        if values.shape[1:] != plan.input_shape or not 1 <= len(values) <= plan.batch_size:
            several = (
                f"(images, {', '.join(map(str, plan.input_shape))}), 1 to {plan.batch_size} images"
            )
            give = several if plan.batch_size > 1 else plan.input_shape
            raise ValueError(f"the input has shape {np.shape(x)}; give {give}")
        low, high = bounds(plan.input_range, plan.input_shape)
        outside = ~((values >= low) & (values <= high))
        if bool(outside.any()):
            raise OutOfRangeError(_outside(plan, values, outside))
        return values.reshape(len(values), -1)

    def decrypt(self, answer: bytes) -> Answer:
        """Decrypt an answer and release it as the policy allows.

        Raises
        ------
        MessageError
            If the answer was truncated, altered, belongs to other keys, or its query is not open
            (each is answered once; of more than 65,536 that wait, the oldest are given up).
        ReleaseError
            If the policy has released as many answers as it may.
        """
        logits = self._logits(answer)
        with self._lock:
            released = self._state.released
            self._state.released += 1
        released_answer = self._policy.release(logits, self.plan, released)
        names = self.plan.class_names
        if not names:
            return released_answer
        if released_answer.label_sets is not None:
            sets = tuple(tuple(names[k] for k in each) for each in released_answer.label_sets)
            return replace(released_answer, name_sets=sets)
        return replace(released_answer, names=tuple(names[k] for k in released_answer.labels))

    def _logits(self, answer: bytes) -> NDArray[np.float64]:
        """All logits in full precision, shape (images, logits)."""
        query_id, body = open_message(
            answer, Tag.ANSWER, self.plan, self._digest, lambda _: self._session_key
        )
        with self._lock:
            images = self._state.open.pop(query_id, None)
        if images is None:
            raise MessageError(
                f"query {query_id} is not open: the answer was replayed, or decrypted before"
            )
        return self._reader(Reader(body))[:images]


class MeasurementOwner(DataOwner):
    """A data owner whose logits may be seen, since its keys protect nothing.

    For certificates, tests and benchmarks on data that is not secret, with keys that never met
    other data and are forgotten afterwards. Raw decryptions reveal the secret key.
    """

    def logits(self, answer: bytes) -> NDArray[np.float64]:
        """Decrypt an answer in full precision, shape (images, logits)."""
        return self._logits(answer)


def _outside(plan: Plan, values: NDArray[np.float64], outside: NDArray[np.bool_]) -> str:
    """Which input is outside its range; of features, the first that is."""
    remedy = "clip them, or compile for a wider input_range"
    if not by_feature(plan.input_range):
        if bool(np.isnan(values).any()):
            _, *where = np.argwhere(np.isnan(values))[0].tolist()
            at = label(tuple(where))
            return f"the input has NaN at feature {at}, the plan was proved for numbers"
        return (
            f"the input has elements in [{values.min():g}, {values.max():g}], the plan was proved "
            f"for {shown(plan.input_range)}; {remedy}"
        )
    image, *where = np.argwhere(outside)[0].tolist()
    low, high = bounds(plan.input_range, plan.input_shape)
    place, features = tuple(where), int(outside.any(axis=0).sum())
    others = f" ({features} features are outside theirs)" if features > 1 else ""
    return (
        f"the input has {values[(image, *place)]:g} at feature {label(place)}, the plan was proved "
        f"for [{low[place]:g}, {high[place]:g}] there{others}; {remedy}"
    )


def _switching_key(key: Parts) -> list[bytes]:
    return [part for residues, seed in key for part in _bytes(residues, seed)]


def _bytes(residues: Residues, seed: bytes) -> list[bytes]:
    return [np.ascontiguousarray(residues, dtype="<u8").tobytes(), seed]
