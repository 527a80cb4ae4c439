"""The evaluator: answers encrypted questions, and cannot hold a secret key."""

import threading

from privacy.arguments import of_kind
from privacy.inference.arithmetic.batch_model import BatchModel
from privacy.inference.arithmetic.encrypted_weights import BlindModel
from privacy.inference.arithmetic.slot_model import OneImageModel
from privacy.inference.ckks import Ring
from privacy.inference.errors import AnsweredBeforeError
from privacy.inference.messages import Reader, Tag, open_message, seal_message
from privacy.inference.packed_model import PackedModel
from privacy.inference.plan import Plan
from privacy.inference.public_keys import open_material, read_keys

_REPLAY_WINDOW = 1024
"""How far a query may lag behind the newest one, in queries."""


class ReplayGuard:
    """Lets each query under one set of keys pass once; ids may come out of order in a window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = -1
        self._seen = 0

    def admit(self, query_id: int) -> None:
        """Record a query whose authentication was checked.

        Raises
        ------
        AnsweredBeforeError
            If it was admitted before, or lags too far behind.
        """
        with self._lock:
            age = self._newest - query_id
            if age >= _REPLAY_WINDOW or (age >= 0 and self._seen >> age & 1):
                raise AnsweredBeforeError(f"query {query_id} was answered before; encrypt again")
            if age < 0:
                self._seen = (self._seen << -age if -age < _REPLAY_WINDOW else 0) | 1
                self._seen &= (1 << _REPLAY_WINDOW) - 1
                self._newest = query_id
            else:
                self._seen |= 1 << age


class Evaluator:
    """Answers one data owner's queries with a compiled model.

    Parameters
    ----------
    compiled : PackedModel
        From :func:`compile_model`, or of a file (:meth:`PackedModel.load`).
    public_material : bytes
        From :meth:`DataOwner.public_material`. The plan fixes it to the byte: a session key, a
        public key and the evaluation keys that the plan names. No field and no method takes a
        secret key.

    Raises
    ------
    MessageError
        If the material is not exactly that.
    ValueError
        If the model was compiled for a third party, who must not see its weights.
    """

    def __init__(self, compiled: PackedModel, public_material: bytes) -> None:
        of_kind(
            "compiled", compiled, PackedModel, "what compile_model or PackedModel.load returned"
        )
        if compiled.plan.parties:
            raise ValueError(
                f"the plan is for encrypted weights, evaluated by {compiled.plan.parties[2]!r}; "
                "give it BlindEvaluator, the plan and the message of encrypt_weights()"
            )
        encoded = compiled.encoded
        session_key, reader = open_material(public_material, compiled.plan, encoded.digest)
        self._begin(encoded, session_key, reader)

    def _begin(self, encoded: OneImageModel | BatchModel, session_key: bytes, keys: Reader) -> None:
        self.plan = encoded.plan
        self._encoded = encoded
        self._session_key = session_key
        self._keys = read_keys(keys, encoded.ring, self.plan)
        self._replays = ReplayGuard()

    def evaluate(self, query: bytes) -> bytes:
        """Answer one query.

        Parameters
        ----------
        query : bytes
            From :meth:`DataOwner.encrypt`.

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
        plan, digest, key = self.plan, self._encoded.digest, self._session_key
        query_id, body = open_message(query, Tag.QUERY, plan, digest, lambda _: key)
        self._replays.admit(query_id)
        answer = self._encoded.answer(body, self._keys)
        return seal_message(Tag.ANSWER, plan, digest, query_id, answer, key)


class BlindEvaluator(Evaluator):
    """Answers one data owner's queries with a model whose weights it cannot read.

    **Guarantee.** The evaluator learns the plan and nothing else of the model, under ring-LWE at
    128 bits; of queries nothing, as :class:`Evaluator`.

    **Assumptions.** The data owner, who has the key, and the evaluator, who has the encrypted
    weights, do not collude.

    **Not covered.** The plan: architecture, and magnitudes in whole bits. What answers reveal to
    the data owner. An evaluator that computes something else.

    Parameters
    ----------
    plan : Plan
        Of a model that was compiled with ``parties``.
    public_material : bytes
        From :meth:`DataOwner.public_material`.
    encrypted_weights : bytes
        From :meth:`CompiledModel.encrypt_weights` for that material.
    name : str
        Who evaluates: the third party that the plan names.

    Raises
    ------
    MessageError
        If a message is not exactly that.
    ValueError
        If the plan is not for encrypted weights, or names another evaluator.
    """

    def __init__(
        self, plan: Plan, public_material: bytes, encrypted_weights: bytes, *, name: str
    ) -> None:
        of_kind("plan", plan, Plan, "the plan, as in compiled.plan or Plan.from_json(text)")
        if not plan.parties:
            raise ValueError(
                "the plan names no third party; the model owner compiles with "
                "parties=ThreeParties(...), or evaluates with Evaluator"
            )
        if name != plan.parties[2]:
            raise ValueError(
                f"name is {name!r}; the plan is to be evaluated by {plan.parties[2]!r}"
            )
        ring, digest = Ring(plan.degree, plan.prime_bits), plan.digest
        session_key, reader = open_material(public_material, plan, digest)
        _, body = open_message(encrypted_weights, Tag.WEIGHTS, plan, digest, lambda _: session_key)
        self._begin(BlindModel(plan, ring, body), session_key, reader)
