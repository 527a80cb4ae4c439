"""Messages that were altered, cut, replayed or belong elsewhere are refused."""

import hashlib
import hmac
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from privacy.inference import DataOwner, Evaluator, Square, compile_model
from privacy.inference.ckks import seal_keys
from privacy.inference.errors import MessageError
from privacy.inference.messages import MAC_BYTES
from privacy.inference.plan import MESSAGE_OVERHEAD
from tests.privacy.inference.inference_models import linear

X = [0.0, 1.0, 0.5, 0.25]
HEAD = MESSAGE_OVERHEAD - MAC_BYTES


class Session:
    """One owner, one evaluator and a message of each kind."""

    def __init__(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), Square(), nn.Linear(4, 2))
        self.compiled = compile_model(
            model, input_shape=(4,), input_range=(0.0, 1.0), tolerance=1.0
        )
        self.owner = DataOwner(self.compiled.plan)
        self.material = self.owner.public_material()
        self.evaluator = Evaluator(self.compiled, self.material)
        self.key = self.material[HEAD : HEAD + 32]
        self.messages = self.receivers()

    def receivers(self) -> dict[str, tuple[bytes, object]]:
        query = self.owner.encrypt(X)
        answer = self.evaluator.evaluate(self.owner.encrypt(X))
        return {
            "material": (self.material, lambda m: Evaluator(self.compiled, m)),
            "query": (query, self.evaluator.evaluate),
            "answer": (answer, self.owner.decrypt),
        }

    def sign(self, message: bytes) -> bytes:
        """What someone who has the session key could send."""
        signed = message[:-MAC_BYTES]
        return signed + hmac.new(self.key, signed, hashlib.sha256).digest()


@pytest.fixture(scope="module")
def session() -> Session:
    return Session()


@given(data=st.data())
@settings(max_examples=500, deadline=None)
def test_a_mutated_message_is_refused(session: Session, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["material", "query", "answer"]))
    message, receive = session.messages[kind]
    mutant = bytearray(message)
    how = data.draw(st.sampled_from(["flip", "cut", "extend", "overwrite", "swap"]))
    if how == "flip":
        # Half of the flips fall into the header, where the meaning is.
        end = data.draw(st.sampled_from([HEAD, len(mutant)]))
        at = data.draw(st.integers(0, end - 1))
        mutant[at] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del mutant[data.draw(st.integers(0, len(mutant) - 1)) :]
    elif how == "extend":
        mutant += data.draw(st.binary(min_size=1, max_size=64))
    elif how == "overwrite":
        noise = data.draw(st.binary(min_size=1, max_size=64))
        at = data.draw(st.integers(0, len(mutant) - len(noise)))
        mutant[at : at + len(noise)] = noise
    else:
        mutant = bytearray(session.messages[{"material": "query"}.get(kind, "material")][0])
    if bytes(mutant) == message:
        return
    with pytest.raises(MessageError):
        receive(bytes(mutant))


def test_after_that_every_message_works_unaltered(session: Session) -> None:
    for message, receive in session.messages.values():
        receive(message)
    session.owner.decrypt(session.evaluator.evaluate(session.owner.encrypt(X)))


def test_a_query_is_answered_once(session: Session) -> None:
    query = session.owner.encrypt(X)
    session.evaluator.evaluate(query)
    with pytest.raises(MessageError, match="answered before"):
        session.evaluator.evaluate(query)


def test_queries_may_arrive_out_of_order(session: Session) -> None:
    first, second = session.owner.encrypt(X), session.owner.encrypt(X)
    session.owner.decrypt(session.evaluator.evaluate(second))
    session.owner.decrypt(session.evaluator.evaluate(first))
    with pytest.raises(MessageError, match="answered before"):
        session.evaluator.evaluate(second)


def test_a_query_that_lags_too_far_is_refused(session: Session) -> None:
    late = session.owner.encrypt(X)
    newest = bytearray(session.owner.encrypt(X))
    offset = HEAD - 16
    number = struct.unpack_from("<Q", newest, offset)[0]
    struct.pack_into("<Q", newest, offset, number + 2000)
    session.evaluator.evaluate(session.sign(bytes(newest)))
    with pytest.raises(MessageError, match="answered before"):
        session.evaluator.evaluate(late)
    session.evaluator = Evaluator(session.compiled, session.material)


@pytest.mark.parametrize("kind", ["material", "query", "answer"])
def test_residues_beyond_their_prime_are_refused_even_when_signed(
    session: Session, kind: str
) -> None:
    message, receive = session.receivers()[kind]
    mutant = bytearray(message)
    at = HEAD + (32 if kind == "material" else 0)
    mutant[at : at + 8] = b"\xff" * 8
    with pytest.raises(MessageError, match="below its prime"):
        receive(session.sign(bytes(mutant)))


@pytest.mark.parametrize("kind", ["material", "query"])
def test_a_secret_key_is_refused_under_every_tag(session: Session, kind: str) -> None:
    owner = session.owner
    message, receive = session.receivers()[kind]
    with pytest.raises(MessageError):
        receive(seal_keys.save(owner._secret._seal.key))
    residues = owner._secret.residues
    if kind == "query":
        residues = residues[: session.compiled.plan.levels]
    mutant = bytearray(message)
    at = HEAD + (32 if kind == "material" else 0)
    mutant[at : at + residues.nbytes] = np.ascontiguousarray(residues).tobytes()
    with pytest.raises(MessageError, match="secret key"):
        receive(session.sign(bytes(mutant)))


def test_one_owners_keys_are_not_used_for_anothers_query(session: Session) -> None:
    other = DataOwner(session.compiled.plan)
    with pytest.raises(MessageError, match="authentication"):
        session.evaluator.evaluate(other.encrypt(X))


def test_another_version_of_the_model_is_refused(session: Session) -> None:
    compiled = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0))
    owner = DataOwner(compiled.plan)
    with pytest.raises(MessageError):
        Evaluator(session.compiled, owner.public_material())
