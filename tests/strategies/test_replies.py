"""Replies of every width and naming: used as they are meant, or told on the server's console."""

import io
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import read_ledger
from privacy.secure_aggregation import Adversary
from strategies import (
    Budget,
    Checkpointing,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    Poisson,
    PublicMetrics,
    SecureAggregation,
    decline,
)
from strategies.errors import NoUsableReplyError
from tests.strategies.federation import answer, ask, client_app, grid_of, model, noiseless, released

FLOATS = ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", np.dtype(np.longdouble).str]
OTHERS = ["<i4", "<i8", "|b1", "<c8", "<u2", "|S4"]
NAMES = ("coef", "intercept")
SHAPES = ((2, 3), ())


@pytest.fixture
def console() -> Iterator[list[str]]:
    """What the log says that Flower shows on the server's console."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("flwr")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


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


def raising(message: Message) -> Message:
    return Message(Error(2, "secret words of the client's"), reply_to=message)


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
def test_the_console_is_told_once_why_replies_are_dropped_and_not_whose(
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


def failing(when: Callable[[int, int], bool]) -> ClientApp:
    """Clients that move the model by 0.1, and raise ``when(partition, round)`` says so."""

    def update(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        if when(partition, number):
            raise ValueError("secret")
        return [np.full_like(a, 0.1) for a in arrays]

    return client_app(update)


def test_a_run_whose_clients_all_fail_ends_before_it_pays(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, noise_multiplier=None, budget=Budget(2.0, 1e-5))
    grid = InProcessGrid(failing(lambda p, r: True), 4)
    with pytest.raises(NoUsableReplyError, match=r"round 1 .*raised an exception.*not paid"):
        strategy.start(grid, model(), num_rounds=5)
    assert not read_ledger(tmp_path / "ledger.jsonl").records


def declining(reason: str, *, crash: int | None = None) -> ClientApp:
    """Clients that decline; one of them raises instead."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == crash:
            raise RuntimeError(reason)
        return decline(message, reason)

    return app


@pytest.mark.parametrize("crash", [None, 0])
def test_clients_that_decline_are_told_from_clients_that_fail(
    crash: int | None, tmp_path: Path, console: list[str]
) -> None:
    """Their words are in the operator's log alone, cut and on one line."""
    grid = InProcessGrid(declining("enough\nis enough " * 100, crash=crash), 2)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(handler)
    remedy = "ask the nodes for what their owners allow" if crash is None else "mend the clients"
    try:
        with pytest.raises(NoUsableReplyError, match=remedy) as ended:
            noiseless(tmp_path, population=2).start(grid, model(), num_rounds=3)
    finally:
        logger.removeHandler(handler)
    dropped = [line for line in console if "dropped a reply" in line]
    assert sum("the node declines" in line for line in dropped) == 1
    assert sum("raised an exception" in line for line in dropped) == (crash is not None)
    assert not any("enough" in line for line in dropped)
    assert "enough" not in str(ended.value)
    words = [line for line in seen if "the node declined: 'enough\\nis enough" in line]
    assert len(words) == (2 if crash is None else 1)
    assert all(len(line) < 500 and "\n" not in line for line in words)


def test_a_run_whose_clients_fail_later_keeps_its_model_and_the_budget_left(
    tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path)
    grid = InProcessGrid(failing(lambda p, r: r > 2), 4)
    result = strategy.start(grid, model(), num_rounds=9)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], 0.2, rtol=1e-4)
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    assert "round 3 asked clients and could use no reply" in result.privacy.stopped
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2
    assert any(line.startswith("Stopping: round 3") for line in console)
    assert console[-1].startswith("Ended early: ")
    again = strategy.start(InProcessGrid(failing(lambda p, r: False), 4), model(), num_rounds=2)
    assert again.privacy is not None
    assert again.privacy.stopped is None
    assert console[-1].startswith("Finished: ")


class _BrokenError(Exception):
    """What ends a run in its middle."""


def _resumed(folder: Path, failing_from: int, *, broken_after: int) -> Any:
    """A run of clients that fail from a round on, resumed after another round."""

    def break_off(number: int, arrays: ArrayRecord) -> None:
        if number == broken_after:
            raise _BrokenError

    settings = {"checkpointing": Checkpointing(folder / "checkpoint"), "population": 8}
    grid = InProcessGrid(failing(lambda p, r: r >= failing_from), 8)
    with pytest.raises(_BrokenError):
        noiseless(folder, **settings).start(grid, model(), num_rounds=9, evaluate_fn=break_off)
    resumed = noiseless(
        folder, **settings | {"checkpointing": Checkpointing(resume=folder / "checkpoint")}
    )
    return resumed.start(grid, model(), num_rounds=9)


def test_a_resumed_run_whose_clients_fail_keeps_the_model_that_it_resumed(tmp_path: Path) -> None:
    """As an uninterrupted one. To begin again would throw away what was learned and paid."""
    result = _resumed(tmp_path, 3, broken_after=2)
    np.testing.assert_allclose(result.arrays.to_numpy_ndarrays()[0], 0.2, rtol=1e-4)
    assert "round 3 asked clients and could use no reply" in result.privacy.stopped
    assert result.privacy.rounds == 2
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


def test_a_run_resumed_before_its_first_round_has_nothing_to_keep(tmp_path: Path) -> None:
    with pytest.raises(NoUsableReplyError, match="Nothing was learned yet"):
        _resumed(tmp_path, 1, broken_after=0)


def test_one_client_alone_never_ends_a_run_nor_do_empty_rounds(tmp_path: Path) -> None:
    """Rounds that ask nobody, or only one that fails, are paid like any other."""
    strategy = noiseless(tmp_path, population=50, min_available_nodes=1, noise_multiplier=5.0)
    grid = InProcessGrid(failing(lambda p, r: True), 50)
    for number, offline in enumerate((set(range(2, 51)), set(range(1, 51))) * 3, start=1):
        grid.offline = offline
        ask(strategy, grid, model(), number)
        messages = ask(strategy, grid, model(), number)
        released(strategy, [raising(m) for m in messages.values()], number)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 6


def test_clients_that_are_only_late_are_not_reported_but_end_the_run(
    tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path)
    ask(strategy, grid_of(4), model())
    with pytest.raises(NoUsableReplyError, match="nobody answered in time"):
        strategy.aggregate_train(1, [])
    assert not any("dropped" in line for line in console)


@pytest.mark.parametrize("noised", [True, False])
def test_evaluation_that_nobody_can_answer_is_neither_asked_again_nor_paid(
    noised: bool, tmp_path: Path, console: list[str]
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, message.content["arrays"])

    rule: Any = PublicMetrics()
    if noised:
        rule = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=1.0)
    strategy = noiseless(tmp_path, metrics=Metrics(fraction_evaluate=1.0, evaluate=rule))
    result = strategy.start(InProcessGrid(app, 4), model(), num_rounds=3)
    assert not result.evaluate_metrics_clientapp
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3
    (line,) = [line for line in console if "Nobody is asked to evaluate" in line]
    assert "raised an exception" in line


def test_clients_without_the_mod_end_a_secure_run_with_the_budget_that_is_left(
    tmp_path: Path, console: list[str]
) -> None:
    secure = SecureAggregation(
        min_clients=3,
        adversary=Adversary(max_corrupt_fraction=0.0),
        dropout_probability=0.0,
        stage_timeout=5.0,
    )
    strategy = noiseless(tmp_path, population=6, secure_aggregation=secure, noise_multiplier=5.0)
    result = strategy.start(grid_of(6), model(), num_rounds=9)
    assert result.privacy is not None
    assert "round 1 asked clients and could use no reply" in str(result.privacy.stopped)
    assert {record.round for record in read_ledger(tmp_path / "ledger.jsonl").records} == {1}
    assert len([line for line in console if "dropped a reply" in line]) == 1
    assert console[-1].startswith("Ended early: ")


def test_a_node_that_goes_is_told_once_and_not_which(tmp_path: Path, console: list[str]) -> None:
    strategy = noiseless(tmp_path, population=40, sampling=Poisson(0.5))
    grid = grid_of(40)
    seen: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(handler)
    try:
        for number, offline in enumerate(({}, {31}, {31, 37}, {}, {31}), start=1):
            grid.offline = set(offline)
            ask(strategy, grid, model(), number)
    finally:
        logger.removeHandler(handler)
    (line,) = [line for line in console if "has gone" in line]
    assert "31" not in line
    gone = [line.rpartition(": ")[2] for line in seen if "have gone" in line]
    assert gone == ["[31]", "[37]", "[31]"]


@pytest.mark.parametrize(
    ("population", "nodes", "warned"), [(1000, 20, 1), (41, 20, 1), (40, 20, 0), (4, 4, 0)]
)
def test_a_population_most_of_which_is_absent_is_told_once_and_without_a_number(
    population: int, nodes: int, warned: int, tmp_path: Path, console: list[str]
) -> None:
    strategy = noiseless(tmp_path, population=population)
    strategy.start(grid_of(nodes), model(), num_rounds=3)
    told = [line for line in console if "Less than half of the population" in line]
    assert len(told) == warned
    for line in told:
        assert f"of {population} is connected" in line
        assert str(nodes) not in line
        assert "min_available_nodes" in line


def test_a_run_waits_before_it_judges_who_is_absent(
    tmp_path: Path, console: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clients that are still connecting, as long as the run waits for them, are not absent."""
    strategy = noiseless(tmp_path, population=20, min_available_nodes=12)
    grid = grid_of(20)
    grid.offline = set(range(1, 19))
    monkeypatch.setattr("time.sleep", lambda _: grid.offline.clear())  # a second later
    strategy.start(grid, model(), num_rounds=1)
    assert any("Waiting until 12 nodes" in line for line in console)
    assert not any("Less than half" in line for line in console)


def test_metrics_beside_a_reply_do_not_matter_to_its_arrays(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, population=2)
    asked = ask(strategy, grid_of(2), model())
    record = ArrayRecord([np.full(3, 0.1)])
    replies = [
        Message(RecordDict({"a": record, "m": MetricRecord({"x": 1})}), reply_to=m)
        for m in asked.values()
    ]
    np.testing.assert_allclose(released(strategy, replies)[0], 0.1, rtol=1e-4)


@pytest.mark.parametrize(("silent", "last"), [(False, 2), (True, 5)])
def test_small_cohorts_end_a_run_by_few_drops_or_many_silences(
    silent: bool, last: int, tmp_path: Path
) -> None:
    """After what was used, five clients whose replies are dropped; or twenty who say nothing."""
    strategy = noiseless(tmp_path, population=40)
    grid = grid_of(40)
    grid.offline = set(range(2, 41))
    for number in range(1, 20):
        messages = ask(strategy, grid, model(), number)
        replies = [] if silent else [raising(m) for m in messages.values()]
        if number == 1:
            replies = [answer(m, model()) for m in messages.values()]
        record, _ = strategy.aggregate_train(number, replies)
        if record is None:
            break
        first = 2 + (number - 1) * 5  # five others next
        grid.offline = set(range(1, 41)) - set(range(first, first + 5))
    assert number == last
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == last - 1
    assert "could use no reply" in str(strategy.report().stopped)
