"""One malformed, malicious or vanished client never stops a run and never costs another."""

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from strategies import CappedWeights, DPFedAvg
from tests.strategies.federation import (
    MOVE,
    answer,
    ask,
    grid_of,
    honest,
    model,
    noiseless,
    released,
    two_arrays,
)


def with_array(array: Array) -> Callable[[Message], Message]:
    return lambda m: answer(m, ArrayRecord({"w": array, "n": Array(np.array(9))}))


def raw(data: bytes) -> Callable[[Message], Message]:
    return with_array(Array("float32", (2, 3), "numpy.ndarray", data))


def npy(array: Any, **kw: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.asarray(array), **kw)
    return stream.getvalue()


def header(text: bytes, version: bytes = b"\x01\x00", body: bytes = MOVE.tobytes()) -> bytes:
    length = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    return b"\x93NUMPY" + version + length + text + body


def weighing(examples: Any) -> Callable[[Message], Message]:
    record = ArrayRecord({"w": Array(MOVE.copy()), "n": Array(np.array(9))})
    return lambda m: answer(m, record, {} if examples is None else {"num-examples": examples})


def with_records(**records: Any) -> Callable[[Message], Message]:
    return lambda m: Message(RecordDict(records), reply_to=m)


def empty(message: Message) -> Message:
    reply = answer(message, two_arrays())
    reply.__dict__["_content"] = None
    return reply


def bare(value: Any) -> Callable[[Message], Message]:
    """An Array whose data is not bytes at all."""

    def make(message: Message) -> Message:
        reply = honest(message)
        reply.content["arrays"]["w"].data = value  # type: ignore[assignment]
        return reply

    return make


GOOD = ArrayRecord({"w": Array(MOVE.copy()), "n": Array(np.array(9))})
METRICS = MetricRecord({"num-examples": 1.0})

DROPPED: dict[str, Callable[[Message], Message]] = {
    "nan": with_array(Array(np.where(MOVE > 0, np.nan, 0).astype(np.float32))),
    "one nan": with_array(Array(np.array([[np.nan, 0, 0], [0, 0, 0]], np.float32))),
    "inf": with_array(Array(np.full((2, 3), np.inf, np.float32))),
    "overflow": with_array(Array(np.full((2, 3), 3e38, np.float32))),
    "missing": lambda m: answer(m, ArrayRecord({"w": Array(MOVE.copy())})),
    "extra": lambda m: answer(
        m, ArrayRecord({"w": Array(MOVE.copy()), "n": Array(np.array(9)), "x": Array(MOVE)})
    ),
    "renamed": lambda m: answer(m, ArrayRecord({"v": Array(MOVE.copy()), "n": Array(np.array(9))})),
    "no arrays": lambda m: answer(m, ArrayRecord()),
    "shape": with_array(Array(MOVE.T.copy())),
    "flat": with_array(Array(MOVE.reshape(-1))),
    "scalar": with_array(Array(np.array(1.0, np.float32))),
    "beyond the model's precision": with_array(Array(np.full((2, 3), 1e300))),
    "int32": with_array(Array(MOVE.astype(np.int32))),
    "complex": with_array(Array(MOVE.astype(np.complex64))),
    "two bytes of nothing": raw(npy(np.zeros((2, 3), "V2"))),
    "bool": with_array(Array(MOVE > 0)),
    "empty bytes": raw(b""),
    "not npy": raw(b"\x00" * 200),
    "pickle": raw(npy(np.array([{"a": 1}] * 6, dtype=object).reshape(2, 3), allow_pickle=True)),
    "short": raw(npy(MOVE)[:-1]),
    "long": raw(npy(MOVE) + b"\x00"),
    "very long": raw(npy(MOVE) + b"\x00" * 200_000),
    "other version": raw(header(b"{}", b"\x09\x00")),
    "header of nothing": raw(header(b"")),
    "header of brackets": raw(header(b"(" * 60_000)),
    "header of code": raw(header(b"__import__('os').system('true')\n")),
    "header without keys": raw(header(b"{'descr': '<f4'}\n")),
    "header of a dtype bomb": raw(
        header(b"{'descr': 'V1000000000', 'fortran_order': False, 'shape': (2, 3)}\n")
    ),
    "header of a huge shape": raw(
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 999999999999)}\n")
    ),
    "header of a negative shape": raw(
        header(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3)}\n")
    ),
    "header of bytes": raw(header(b"\xff\xfe\xfd")),
    "header cut off": raw(b"\x93NUMPY\x01\x00\xff\xff" + MOVE.tobytes()),
    "data of None": bare(None),
    "data of text": bare("text" * 100),
    "several array records": with_records(a=GOOD, b=GOOD, metrics=METRICS),
    "no array record": with_records(metrics=METRICS),
    "several metric records": with_records(a=GOOD, m=METRICS, n=METRICS),
    "only a config": with_records(c=ConfigRecord({"x": 1})),
    "nothing at all": with_records(),
    "an error": lambda m: Message(Error(1, "it broke"), reply_to=m),
    "no content": empty,
}

WEIGHTLESS: dict[str, Callable[[Message], Message]] = {
    "examples missing": weighing(None),
    "examples zero": weighing(0),
    "examples negative": weighing(-5),
    "examples nan": weighing(float("nan")),
    "examples inf": weighing(float("inf")),
    "examples list": weighing([1.0, 2.0]),
    "examples subnormal": weighing(5e-324),
    "examples beyond floats": weighing(10**400),
    "no metrics": with_records(a=GOOD),
}


def play(strategy: DPFedAvg, bad: Callable[[Message], Message]) -> list[Any]:
    """A round of four, the second of whom is bad; everyone else moves every weight by 0.1."""
    asked = ask(strategy, grid_of(4), two_arrays())
    replies = [bad(m) if node == 2 else honest(m) for node, m in asked.items()]
    return released(strategy, replies)


@pytest.mark.parametrize("kind", DROPPED)
def test_a_malformed_reply_is_dropped_and_logged_for_the_operator(
    kind: str, tmp_path: Path
) -> None:
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(handler)
    try:
        weights, counter = play(noiseless(tmp_path), DROPPED[kind])
    finally:
        logger.removeHandler(handler)
    np.testing.assert_allclose(weights, MOVE * 3 / 4, rtol=1e-4)
    assert counter == 7  # an integer buffer keeps the server's value
    assert any("dropped the reply of node 2" in line for line in seen), seen


@pytest.mark.parametrize("kind", WEIGHTLESS)
def test_a_reply_without_a_sound_weight_is_dropped(kind: str, tmp_path: Path) -> None:
    weighting = CappedWeights(cap=1.0, total_weight=4.0)
    weights, _ = play(noiseless(tmp_path, weighting=weighting), WEIGHTLESS[kind])
    np.testing.assert_allclose(weights, MOVE * 3 / 4, rtol=1e-4)


@pytest.mark.parametrize("examples", [1e308, 2**63 - 1, 10**300])
def test_absurd_weights_count_one(examples: Any, tmp_path: Path) -> None:
    weighting = CappedWeights(cap=1.0, total_weight=4.0)
    weights, _ = play(noiseless(tmp_path, weighting=weighting), weighing(examples))
    np.testing.assert_allclose(weights, MOVE, rtol=1e-4)


@pytest.mark.parametrize("spelling", ["fortran", "version 2", "numpy 1.20", "spaced"])
def test_other_spellings_of_a_sound_array_are_read(spelling: str, tmp_path: Path) -> None:
    """Fortran order, other header versions and paddings: the same numbers."""
    array = np.arange(6, dtype=np.float32).reshape(2, 3) / 100
    data = {
        "fortran": npy(np.asfortranarray(array)),
        "version 2": npy(array, version=(2, 0)),
        "numpy 1.20": header(
            b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }".ljust(117) + b"\n",
            body=array.tobytes(),
        ),
        "spaced": header(
            b"{ 'shape':(2,3),'fortran_order':False,   'descr':'<f4' }\n", body=array.tobytes()
        ),
    }[spelling]
    strategy = noiseless(tmp_path, population=1, min_available_nodes=1)
    asked = ask(strategy, grid_of(1), two_arrays())
    weights, _ = released(strategy, [raw(data)(m) for m in asked.values()])
    np.testing.assert_allclose(weights, array, atol=2e-6)


def test_a_server_model_in_fortran_order_is_not_transposed(tmp_path: Path) -> None:
    start = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    arrays = ArrayRecord({"w": Array(start)})
    strategy = noiseless(tmp_path, population=1, min_available_nodes=1)
    move = np.arange(6, dtype=np.float32).reshape(2, 3)[::-1] / 100
    orders: tuple[Literal["C", "F"], ...] = ("C", "F")
    for order in orders:
        asked = ask(strategy, grid_of(1), arrays)
        after = np.asarray(start + move, order=order)
        record = ArrayRecord({"w": Array(after)})
        (weights,) = released(strategy, [answer(m, record) for m in asked.values()])
        np.testing.assert_allclose(weights, start + move, atol=1e-5)


def test_scalars_stay_scalars(tmp_path: Path) -> None:
    """A parameter without dimensions keeps none, round after round."""
    strategy = noiseless(tmp_path, population=1, min_available_nodes=1)
    arrays = ArrayRecord([np.array(0.0, np.float32), np.zeros((0, 3), np.float32)])
    for number in (1, 2):
        asked = ask(strategy, grid_of(1), arrays, number)
        moved = [arrays["0"].numpy() + np.float32(0.25), np.zeros((0, 3), np.float32)]
        replies = [answer(m, [np.asarray(a) for a in moved]) for m in asked.values()]
        record, _ = strategy.aggregate_train(number, replies)
        assert record is not None
        arrays = record
        assert arrays["0"].shape == ()
        assert arrays["1"].shape == (0, 3)
        assert float(arrays["0"].numpy()) == pytest.approx(0.25 * number, rel=1e-4)


def test_duplicates_strangers_and_late_replies_count_nothing(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    grid = grid_of(4)
    first = ask(strategy, grid, two_arrays(), 1)
    late = honest(first[1])
    np.testing.assert_allclose(
        released(strategy, [honest(m) for m in first.values() if m is not first[1]])[0],
        MOVE * 3 / 4,
        rtol=1e-4,
    )
    second = ask(strategy, grid, two_arrays(), 2)
    forged = honest(second[1])
    forged.metadata.__dict__["_src_node_id"] = 6  # not in the population
    twice = honest(second[2])
    replies = [late, forged, twice, twice, honest(second[2]), honest(second[3])]
    np.testing.assert_allclose(released(strategy, replies, 2)[0], MOVE * 2 / 4, rtol=1e-4)


def test_replies_after_the_round_release_nothing(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    asked = ask(strategy, grid_of(4), two_arrays(), 1)
    released(strategy, [honest(asked[1])])
    assert strategy.aggregate_train(1, [honest(m) for m in asked.values()]) == (None, None)
    assert strategy.aggregate_train(9, []) == (None, None)


def test_models_that_cannot_be_averaged_are_refused(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path)
    for array, reason in (
        (np.zeros(3, np.int64), "no floating-point"),
        (np.array([np.nan], np.float32), "NaN"),
        (np.zeros(3, np.complex64), "complex64"),
        (np.zeros(3, np.longdouble), "longdouble|float128|float96"),
    ):
        with pytest.raises(ValueError, match=reason):
            ask(strategy, grid_of(4), ArrayRecord([array]))
    assert ask(strategy, grid_of(4), model((3,)))
