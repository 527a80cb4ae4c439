"""The evaluator: answers encrypted questions, and cannot hold a secret key."""

from privacy.inference import messages as _wire
from privacy.inference.arguments import check_kind
from privacy.inference.arithmetic.batch_model import BatchModel
from privacy.inference.arithmetic.encrypted_weights import BlindModel
from privacy.inference.arithmetic.slot_model import OneImageModel
from privacy.inference.ckks import Ring
from privacy.inference.compiled_model import CompiledModel
from privacy.inference.evaluator.replays import Replays
from privacy.inference.messages import Reader, Tag
from privacy.inference.plan import Plan
from privacy.inference.public_keys import open_material, read_keys


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
    ValueError
        If the model was compiled for a third party, who must not see its weights.
    """

    def __init__(self, compiled: CompiledModel, public_material: bytes) -> None:
        check_kind("compiled", compiled, CompiledModel, "what compile_model returned")
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
        self._replays = Replays()

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
        plan = self.plan
        query_id, body = _wire.open_message(
            query, Tag.QUERY, plan, self._encoded.digest, lambda _: self._session_key
        )
        self._replays.take(query_id)
        answer = self._encoded.answer(body, self._keys)
        return _wire.seal_message(
            Tag.ANSWER, plan, self._encoded.digest, query_id, answer, self._session_key
        )


class BlindEvaluator(Evaluator):
    """Answers one data owner's queries with a model whose weights it cannot read.

    Parameters
    ----------
    plan : Plan
        Of a model that was compiled with ``parties``.
    public_material : bytes
        What :meth:`DataOwner.public_material` returned.
    encrypted_weights : bytes
        What :meth:`CompiledModel.encrypt_weights` returned for that material.
    name : str
        Who evaluates: the third party that the plan names.

    Guarantee
        The evaluator learns of the model what the plan says and no more, under ring-LWE at 128
        bits; of queries nothing, as :class:`Evaluator`.
    Assumptions
        The data owner, who has the key, and the evaluator, who has the encrypted weights, do not
        collude.
    Not covered
        What the plan says: architecture, and magnitudes in whole bits. What answers tell the
        data owner. An evaluator that computes something else.

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
        check_kind("plan", plan, Plan, "the plan, as in compiled.plan or Plan.from_json(text)")
        if not plan.parties:
            raise ValueError(
                "the plan names no third party; the model owner compiles with "
                "parties=ThreeParties(...), or evaluates with Evaluator"
            )
        if name != plan.parties[2]:
            raise ValueError(
                f"name is {name!r}; the plan is to be evaluated by {plan.parties[2]!r}"
            )
        ring = Ring(plan.degree, plan.prime_bits)
        digest = plan.digest
        session_key, reader = open_material(public_material, plan, digest)
        _, body = _wire.open_message(
            encrypted_weights, Tag.WEIGHTS, plan, digest, lambda _: session_key
        )
        self._begin(BlindModel(plan, ring, body), session_key, reader)
