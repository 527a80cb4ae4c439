"""Arguments of the wrong kind are refused by name where they are given, not a round later."""

import math
from typing import Any

import numpy as np
import pytest

from privacy.accounting import presence_delta
from privacy.mechanisms import DistributedGaussian
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundPlan,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
    plan_round,
)
from privacy.secure_aggregation.errors import MalformedRequestError
from strategies import FolderMemory, SecureAggregation, SecureAggregationMod
from tests.privacy.secure_aggregation.federation import HONEST, RUN, Federation, draw_vectors

KEY = bytes(32)
TERMS = {"run": RUN, "number": 1, "size": 4, "bound": 100, "min_clients": 3}
PLAN = {"clients": 12, "neighbours": 11, "threshold": 5, "min_survivors": 8, "cohort": 12}
# What each is made of, as it should be.
MADE: dict[Any, dict[str, Any]] = {
    Adversary: {"server": ServerModel.MALICIOUS, "max_corrupt_fraction": 0.1},
    RoundTerms: {**TERMS, "server": ServerModel.MALICIOUS, "request": KEY},
    Identity: {"private": KEY},
    ClientPolicy: {
        "min_clients": 3,
        "adversary": HONEST,
        "client_public_keys": [KEY],
        "clipping_norm": 1.0,
        "weight_cap": 0.0,
        "mechanism": None,
    },
    RoundPlan: PLAN,
    plan_round: {
        "clients": 12,
        "adversary": HONEST,
        "max_dropout_fraction": 0.1,
        "min_clients": 3,
        "cohort": 12,
    },
    SecureServer: {
        "terms": RoundTerms(**TERMS),  # type: ignore[arg-type]
        "adversary": HONEST,
        "max_dropout_fraction": 0.1,
        "cohort": 12,
        "client_public_keys": [KEY],
        "randomness": None,
    },
    SecureClient: {
        "policy": ClientPolicy(3),
        "identity": None,
        "configuration": b"",
        "randomness": None,
    },
    SecureAggregation: {
        "min_clients": 3,
        "adversary": HONEST,
        "max_dropout_fraction": 0.2,
        "noise_placement": "central",
        "max_clients": None,
        "dropout_probability": 0.02,
        "client_public_keys": [KEY],
        "stage_timeout": 600.0,
    },
    SecureAggregationMod: {"policy": ClientPolicy(3), "identity": None, "memory": None},
    FolderMemory: {"folder": "/somewhere"},
}
# What is wrong wherever it stands, but for those arguments that take it.
WRONG: list[Any] = ["ab" * 32, "3", 40.5, math.nan, True, None, [1], {"a": 1}, object(), b"ab" * 32]
TAKEN: dict[str, tuple[type, ...]] = {
    "max_corrupt_fraction": (float,),  # nan is refused as out of range
    "max_dropout_fraction": (float,),
    "dropout_probability": (float,),
    "stage_timeout": (float,),
    "clipping_norm": (float, type(None)),
    "weight_cap": (float, type(None)),
    "mechanism": (type(None),),
    "identity": (type(None),),
    "randomness": (type(None),),
    "memory": (type(None),),
    "max_clients": (type(None),),
    "cohort": (type(None),),
    "configuration": (bytes,),
    "folder": (str,),
    "noise_placement": (object,),  # one of two words: a ValueError
}
# Where None asks for a complete graph.
COMPLETE_GRAPH = [(plan_round, "max_dropout_fraction"), (SecureServer, "max_dropout_fraction")]
CASES = [
    pytest.param(make, name, wrong, id=f"{make.__name__}-{name}-{str(wrong)[:8]}")
    for make, usual in MADE.items()
    for name in usual
    for wrong in WRONG
    if not isinstance(wrong, TAKEN.get(name, ()))
    if wrong is not None or (make, name) not in COMPLETE_GRAPH
]


@pytest.mark.parametrize("make", MADE, ids=lambda make: make.__name__)
def test_what_they_are_made_of_here_is_right(make: Any) -> None:
    """Or the test below would find anything to be refused."""
    make(**MADE[make])


@pytest.mark.parametrize(("make", "name", "wrong"), CASES)
def test_the_wrong_kind_is_refused_by_name(make: Any, name: str, wrong: Any) -> None:
    # Bytes of another length are the right kind, and their number is told.
    sized = isinstance(wrong, bytes) and name in ("run", "request", "private")
    error = ValueError if sized else TypeError
    with pytest.raises(error, match=rf"{name} (is|has) .*; (give|it must)"):
        make(**MADE[make] | {name: wrong})


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (make, name)
        for make, usual in MADE.items()
        for name, value in usual.items()
        if isinstance(value, float)
    ],
)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -0.1])
def test_no_number_but_a_finite_one_in_range_is_taken(make: Any, name: str, wrong: float) -> None:
    with pytest.raises(ValueError, match=name):
        make(**MADE[make] | {name: wrong})


@pytest.mark.parametrize("noise", [None, 1, ["central"], "Central", b"central"], ids=str)
def test_the_noise_is_one_of_two_words(noise: Any) -> None:
    with pytest.raises(ValueError, match=r"noise_placement is .*choose"):
        SecureAggregation(min_clients=3, noise_placement=noise)


@pytest.mark.parametrize(
    ("make", "old", "new"),
    [
        (Adversary, "corrupt", "max_corrupt_fraction"),
        (ClientPolicy, "minimum_cohort", "min_clients"),
        (RoundTerms, "minimum", "min_clients"),
        (SecureServer, "dropout", "max_dropout_fraction"),
        (SecureAggregation, "dropout", "max_dropout_fraction"),
        (SecureAggregation, "client_dropout", "dropout_probability"),
        (SecureAggregation, "noise", "noise_placement"),
        (DistributedGaussian, "largest", "max_clients"),
        (plan_round, "minimum", "min_clients"),
        (plan_round, "dropout", "max_dropout_fraction"),
        (presence_delta, "dropout", "dropout_probability"),
        (presence_delta, "largest", "max_clients"),
    ],
)
def test_an_old_name_of_an_argument_is_answered_with_the_new_one(
    make: Any, old: str, new: str
) -> None:
    with pytest.raises(TypeError, match=f"^{old}: not an argument here; give {new}$"):
        make(**{old: 1})


@pytest.mark.parametrize("make", [ClientPolicy, SecureServer, SecureAggregation])
@pytest.mark.parametrize("wrong", [KEY.hex(), KEY, [KEY.hex()], [KEY, b"short"], [1], 7], ids=str)
def test_pinned_keys_are_keys(make: Any, wrong: Any) -> None:
    """Text and bytes can be iterated over as well, letter by letter."""
    with pytest.raises((TypeError, ValueError), match=r"client_public_keys (is|has)"):
        make(**MADE[make] | {"client_public_keys": wrong})


def test_numpys_numbers_are_numbers() -> None:
    terms = RoundTerms(RUN, *(np.int64(number) for number in (1, 4, 100, 3)))  # type: ignore[arg-type]
    assert terms.digest == RoundTerms(RUN, 1, 4, 100, 3).digest
    policy: Any = ClientPolicy(np.int64(3), Adversary(max_corrupt_fraction=np.float32(0.25)))  # type: ignore[arg-type]
    assert policy == ClientPolicy(3, Adversary(max_corrupt_fraction=0.25))
    assert type(policy.min_clients) is int
    setting = SecureAggregation(
        min_clients=np.int64(3), max_dropout_fraction=np.float64(0.25), max_clients=np.int16(9)
    )  # type: ignore[arg-type]
    assert setting == SecureAggregation(min_clients=3, max_dropout_fraction=0.25, max_clients=9)


@pytest.mark.parametrize("message", ["text", None, 5, bytearray(64), [b"a"]], ids=str)
def test_a_message_that_is_no_bytes_is_refused_as_malformed(message: Any) -> None:
    client = SecureClient(ClientPolicy(3))
    assert not client.needs_vector(message)
    with pytest.raises(MalformedRequestError):
        client.answer(message)
    with pytest.raises(MalformedRequestError):
        client.prepare(message)
    with pytest.raises(TypeError, match="state is"):
        SecureClient.from_bytes("text", ClientPolicy(3), identity=client.identity)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["request", "model"])
@pytest.mark.parametrize("wrong", ["x" * 32, b"short", b"x" * 33, None], ids=str)
def test_a_digest_is_32_bytes(name: str, wrong: Any) -> None:
    """A longer one would be cut where it is kept, and the model not known again."""
    federation = Federation(12)
    message = federation.play_to(federation.server(federation.terms(4)), draw_vectors(12, 4), 3)[0]
    with pytest.raises((TypeError, ValueError), match=name):
        federation.clients[0].prepare(message, **{name: wrong})
    federation.clients[0].prepare(message)  # the round goes on


@pytest.mark.parametrize("vector", [[1, 2, 3, 4], None, "text", 5], ids=str)
def test_a_vector_of_the_wrong_kind_counts_as_zeros(vector: Any) -> None:
    """To fail would tell the server of it."""
    federation = Federation(12)
    vectors = draw_vectors(12, 4)
    server = federation.server(federation.terms(4))
    messages = federation.play_to(server, vectors, 3)
    client = federation.clients[0]
    client.prepare(messages[0])
    server.receive(0, client.masked(messages[0], vector))
    for node in range(1, 12):
        server.receive(node, federation.clients[node].answer(messages[node], vectors[node]))
    messages = server.advance()
    while messages:
        messages = federation.exchange(server, messages, vectors)
    assert (server.open() == sum(vectors.values()) - vectors[0]).all()
