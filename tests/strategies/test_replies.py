"""Replies of every width and naming: used as they are meant, or told on the server's console."""

import gc
import io
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies import (
    InProcessGrid,
)
from strategies.replies import stream_replies
from tests.strategies.federation import (
    answer,
    ask,
    client_app,
    grid_of,
    idle,
    messages_to,
    model,
    noiseless,
    raising,
    released,
)

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", np.dtype(np.longdouble).str]
OTHERS = ["<i4", "<i8", "|b1", "<c8", "<u2", "|S4"]
NAMES = ("coef", "intercept")
SHAPES = ((2, 3), ())


def named(arrays: list[Any], names: tuple[str, ...] = NAMES) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(a)) for name, a in zip(names, arrays, strict=True)})


def npy_bfloat16(array: Any) -> Array:
    """An array as numpy and ml_dtypes write one of bfloat16: the upper halves of float32."""
    halves = (np.asarray(array, "<f4").view("<u4") >> 16).astype("<u2")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, halves.view("V2"))
    return Array("bfloat16", array.shape, "numpy.ndarray", stream.getvalue())


@settings(max_examples=60, deadline=None)
@given(
    sent=st.sampled_from(["<f2", "<f4", "<f8"]),
    replied=st.sampled_from(FLOATS + OTHERS),
    size=st.sampled_from([0.0, 0.25, 3.0, 6e4, 1e30, 1e300, float("nan"), float("-inf")]),
    order=st.permutations([0, 1]),
    names=st.sampled_from([NAMES, ("0", "1"), ("coef", "bias"), ("coef",), (*NAMES, "more")]),
    fortran=st.booleans(),
)
def test_a_reply_is_used_in_any_float_width_and_moves_the_sum_by_at_most_the_norm(
    sent: str,
    replied: str,
    size: float,
    order: list[int],
    names: tuple[str, ...],
    fortran: bool,
) -> None:
    """Its values where they fit the model's names and precision; else nothing of it."""
    with np.errstate(all="ignore"):
        made = [np.full(shape, size) for shape in (*SHAPES, (2,))][: len(names)]
        try:
            arrays = [np.asarray(a, order="F" if fortran else "C").astype(replied) for a in made]
        except (ValueError, OverflowError):  # NaN is no integer
            return
        before = [np.zeros(shape, sent) for shape in SHAPES]
        exact = [
            a.astype(np.result_type(np.float32, sent)) for a in arrays[:2] if replied in FLOATS
        ]
    good = replied in FLOATS and names == NAMES and bool(all(np.isfinite(a).all() for a in exact))
    norm = 1.0
    with tempfile.TemporaryDirectory() as folder:
        strategy = noiseless(Path(folder), population=2, clipping=norm)
        asked = ask(strategy, grid_of(2), named(before))
        record = named(arrays, names)
        if names == NAMES:
            record = ArrayRecord({names[i]: record[names[i]] for i in order})
        quiet = answer(asked[2], named(before))
        moved = released(strategy, [answer(asked[1], record), quiet])
    total = np.concatenate([2 * np.asarray(a, np.float64).reshape(-1) for a in moved])
    length = float(np.linalg.norm(total))
    slack = 2.0**-9 if sent == "<f2" else 1e-6
    assert length <= norm * (1 + slack)
    if not good:
        assert length == 0
        return
    wanted = np.concatenate([np.asarray(a, np.float64).reshape(-1) for a in exact])
    far = float(np.linalg.norm(wanted))
    if far > 1e18:  # its square overflows single precision: dropped, as documented
        return
    wanted *= min(1.0, norm / far) if far else 1.0
    np.testing.assert_allclose(total, wanted, rtol=slack, atol=1e-5 + slack * norm)


def test_a_reply_in_bfloat16_is_read(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, population=1, min_available_nodes=1)
    asked = ask(strategy, grid_of(1), ArrayRecord([np.zeros((2, 2), np.float32)]))
    array = npy_bfloat16(np.array([[0.25, -0.5], [0.125, 0.0]], np.float32))
    (weights,) = released(strategy, [answer(asked[1], ArrayRecord({"0": array}))])
    np.testing.assert_allclose(weights, [[0.25, -0.5], [0.125, 0]], atol=2e-6)


KINDS: dict[str, tuple[Callable[[Message], Message], str]] = {
    "raises": (raising, "raised an exception"),
    "named by position": (
        lambda m: answer(m, ArrayRecord([np.zeros((2, 3), np.float32), np.zeros((), np.float32)])),
        "named otherwise",
    ),
    "adapters only": (
        lambda m: answer(m, ArrayRecord({"coef": Array(np.zeros((2, 3), np.float32))})),
        "missing, extra or named otherwise",
    ),
    "integers": (
        lambda m: answer(m, named([np.zeros(s, np.int64) for s in SHAPES])),
        "not floating-point",
    ),
    "another shape": (
        lambda m: answer(m, named([np.zeros(s, np.float32) for s in ((3, 2), ())])),
        "another shape",
    ),
    "nan": (lambda m: answer(m, named([np.full(s, np.nan, np.float32) for s in SHAPES])), "NaN"),
    "too large": (lambda m: answer(m, named([np.full(s, 1e300) for s in SHAPES])), "too large"),
    "no arrays": (lambda m: Message(RecordDict(), reply_to=m), "one ArrayRecord"),
    "bytes": (
        lambda m: answer(
            m,
            ArrayRecord(
                {
                    n: Array("float32", s, "numpy.ndarray", b"words")
                    for n, s in zip(NAMES, SHAPES, strict=True)
                }
            ),
        ),
        "numpy's format",
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_console_shows_once_why_replies_are_dropped_and_not_whose(
    kind: str, tmp_path: Path, console: list[str]
) -> None:
    bad, words = KINDS[kind]
    strategy = noiseless(tmp_path)
    start = named([np.zeros(s, np.float32) for s in SHAPES])
    for number in (1, 2):
        asked = ask(strategy, grid_of(4), start, number)
        good = named([np.full(s, 0.1, np.float32) for s in SHAPES])
        replies = [bad(m) if node > 1 else answer(m, good) for node, m in asked.items()]
        assert released(strategy, replies, number)[0][0, 0] > 0
    (line,) = [line for line in console if "dropped" in line]
    assert words in line
    assert "secret" not in line
    assert not set("23456789") & set(line.replace("round 1", "").replace("0, 1", ""))


def test_metrics_beside_a_reply_do_not_matter_to_its_arrays(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, population=2)
    asked = ask(strategy, grid_of(2), model())
    record = ArrayRecord([np.full(3, 0.1)])
    replies = [
        Message(RecordDict({"a": record, "m": MetricRecord({"x": 1})}), reply_to=m)
        for m in asked.values()
    ]
    np.testing.assert_allclose(released(strategy, replies)[0], 0.1, rtol=1e-4)


class Slow(InProcessGrid):
    """A reply can be pulled the third time it is asked for; some cannot be decoded."""

    def __init__(self, *args: Any, undecodable: Iterable[int] = (), **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.asked: dict[str, int] = {}
        self.undecodable = set(undecodable)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = []
        for identifier in message_ids:
            self.asked[identifier] = self.asked.get(identifier, 0) + 1
            if self.asked[identifier] >= 3:
                message = self._waiting.get(identifier)
                if message is not None and message.metadata.dst_node_id in self.undecodable:
                    raise ValueError("unexpected set of children")
                found += super().pull_messages([identifier])
        return found


class Noting(InProcessGrid):
    """Notes when each message would expire; reads what it is given twice, as Flower's grid does."""

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.expire = [m.metadata.created_at + m.metadata.ttl for m in messages]
        return super().push_messages(messages)


def test_a_message_expires_with_the_round_it_is_of() -> None:
    """A node that was away does not train for rounds that are over."""
    grid = Noting(client_app(idle), 3)
    before = time.time()
    replies = list(stream_replies(grid, iter(messages_to(3)), timeout=1000.0))
    assert len(replies) == 3
    assert all(before + 1000 <= moment <= time.time() + 1000 for moment in grid.expire)


def test_replies_come_one_by_one_and_all() -> None:
    grid = Slow(client_app(idle), 5)
    replies = list(stream_replies(grid, messages_to(5)))
    assert sorted(r.metadata.src_node_id for r in replies) == [1, 2, 3, 4, 5]


def test_a_reply_that_cannot_be_decoded_costs_nobody_else() -> None:
    grid = Slow(client_app(idle), 5, undecodable=[2])
    replies = list(stream_replies(grid, messages_to(5)))
    assert sorted(r.metadata.src_node_id for r in replies) == [1, 3, 4, 5]


def test_the_missing_are_given_up_after_the_timeout() -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return []

    assert list(stream_replies(Silent(client_app(idle), 2), messages_to(2), timeout=0.05)) == []


def test_a_broken_network_ends_the_round_before_anything_is_paid(tmp_path: Path) -> None:
    class Broken(InProcessGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            raise ConnectionError("gone")

    strategy = noiseless(tmp_path, noise_multiplier=5.0)
    with pytest.raises(ConnectionError):
        strategy.start(Broken(client_app(idle), 4), model(), num_rounds=1)
    assert strategy.epsilon() == 0


@pytest.mark.parametrize("clients", [4, 40])
def test_memory_does_not_grow_with_the_cohort(clients: int, tmp_path: Path) -> None:
    """A round over clients whose replies are made as they are pulled: at most 8 models at once.

    Four are the server's (``benchmarks/aggregation.py`` measures them); the others are this
    process's clients, who hold the model, their update and its bytes.
    """
    size = 200_000
    grid = grid_of(clients, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    strategy = noiseless(tmp_path, population=clients)
    arrays = model((size,))
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    strategy.start(grid, arrays, num_rounds=1)
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    assert peak < 8 * 4 * size + 8e6
