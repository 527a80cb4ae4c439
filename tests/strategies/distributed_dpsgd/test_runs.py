"""Runs over silos in one process: the step, its price on both sides, and what is left out."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from torch import nn
from torch.utils.data import Dataset

from privacy.accounting import Budget, Repeated, SiloSum, read_ledger
from privacy.secure_aggregation import FewSilos
from privacy.training import DataPolicy, Persons
from strategies import Checkpointing, InProcessGrid, Population, ServerAdam, ServerSGD
from strategies.distributed_dpsgd import LocalEvaluation
from strategies.errors import BudgetError, CheckpointError, NoUsableReplyError
from strategies.progress import RoundProgress
from tests.strategies.distributed_dpsgd.silos import (
    CLASSES,
    FEATURES,
    PERSONS,
    ROWS_EACH,
    SILOS,
    FailsAfterTrials,
    initial,
    linear,
    persons,
    policy,
    rows,
    silo_app,
    strategy_of,
)
from tests.strategies.secure_aggregation.federation import KEY, Wire, asked

EVERYBODY = 1 - 2.0**-50
"""A sampling rate at which nobody is left out, but with a chance below 2^-40."""
HARDLY_ANY = 0.02
"""A noise multiplier with which a coordinate of the average has a deviation of about 2e-4."""
CLOSE = 1.5e-3
"""At least five deviations: 27 coordinates pass it once in 10^5 tests."""


def vector(arrays: ArrayRecord) -> Any:
    return np.concatenate([array.numpy().ravel() for array in arrays.values()])


def mean_of_clipped_persons(silos: range, norm: float) -> Any:
    """Each person's mean gradient at the model of zeros, clipped, summed, over the public N."""
    total = np.zeros(CLASSES * FEATURES + CLASSES)
    for silo in silos:
        x, y = rows(silo)
        for first in range(0, len(x), ROWS_EACH):
            model = linear()
            for parameter in model.parameters():
                parameter.data.zero_()
            mine = slice(first, first + ROWS_EACH)
            nn.functional.cross_entropy(model(x[mine]), y[mine]).backward()
            gradient = np.concatenate([p.grad.numpy().ravel() for p in model.parameters()])  # type: ignore[union-attr]
            total += gradient * min(1.0, norm / np.linalg.norm(gradient))
    return total / (4 * PERSONS)


def test_a_step_is_that_of_one_curator_over_all_persons(tmp_path: Path) -> None:
    strategy = strategy_of(
        tmp_path,
        sampling_rate=EVERYBODY,
        clipping_norm=0.7,
        noise_multiplier=HARDLY_ANY,
        optimizer=ServerSGD(learning_rate=2.0),
    )
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=1)
    expected = -2.0 * mean_of_clipped_persons(range(4), 0.7)
    np.testing.assert_allclose(vector(result.arrays), expected, atol=CLOSE)


def test_arrays_in_another_order_than_the_silos_own_are_stepped_by_name(tmp_path: Path) -> None:
    settings = {"sampling_rate": EVERYBODY, "noise_multiplier": HARDLY_ANY}
    backward = ArrayRecord(dict(reversed(list(initial().items()))))
    stepped = strategy_of(tmp_path, **settings).start(
        InProcessGrid(silo_app(), 4), backward, num_rounds=1
    )
    expected = -mean_of_clipped_persons(range(4), 1.0)
    by_name = ArrayRecord({name: stepped.arrays[name] for name in initial()})
    np.testing.assert_allclose(vector(by_name), expected, atol=CLOSE)


def test_silos_learn_together(tmp_path: Path) -> None:
    strategy = strategy_of(
        tmp_path,
        optimizer=ServerSGD(learning_rate=1.0, momentum=0.9),
        evaluation=LocalEvaluation(every=5, noise_multiplier=4.0),
    )
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=10)
    assert list(result.evaluate_metrics_clientapp) == [5, 10]
    last = result.evaluate_metrics_clientapp[10]
    # Noise of 4 persons on 160, and of 6 on their number: eight deviations.
    assert last["persons"] == pytest.approx(160, abs=48)
    assert float(last["accuracy"]) > 0.6, "a third is right by chance"  # type: ignore[arg-type]
    model = linear()
    model.load_state_dict(result.arrays.to_torch_state_dict())
    x, y = rows(99)
    assert (model(x).argmax(dim=1) == y).float().mean() > 0.7


def test_adam_steps_too(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, optimizer=ServerAdam(learning_rate=0.1))
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=3)
    assert vector(result.arrays).any()


# What it costs ----------------------------------------------------------------------------------


def test_server_and_silos_pay_the_same_events_before_anything_is_opened(tmp_path: Path) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=tmp_path / f"silo-{silo}.jsonl")

    strategy = strategy_of(
        tmp_path, evaluation=LocalEvaluation(every=2, noise_multiplier=3.0), clipping_norm=0.5
    )
    result = strategy.start(InProcessGrid(silo_app(kept), 4), initial(), num_rounds=4)
    server = read_ledger(tmp_path / "ledger.jsonl")
    steps = [r.event for r in server.records]
    step, counted = steps[0], steps[2]
    assert steps == [step, step, counted, step, step, counted]
    assert isinstance(step, SiloSum)
    assert (step.dimension, step.silos, step.colluders) == (27, 3, 1)
    assert isinstance(counted, SiloSum)
    assert counted.dimension == 2
    assert result.privacy is not None
    assert result.privacy.epsilon == server.epsilon(1e-5)
    for silo in range(4):
        own = read_ledger(tmp_path / f"silo-{silo}.jsonl")
        assert own.population == f"silo {silo}"
        assert own.events == (Repeated(step, 4), counted, counted), "paid ahead, in one line"
        assert own.epsilon(1e-5) == server.epsilon(1e-5)


def test_the_report_says_what_each_observer_learns(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path, silos=FewSilos(4, absent=0))
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=2)
    report = result.privacy
    assert report is not None
    assert (report.unit, report.population) == ("person", 160)
    by = report.epsilon_by_observer
    assert by["server-and-silos"] == report.epsilon
    assert by["server"] < by["silo"] <= by["server-and-silos"]
    assert report.secure_aggregation is not None
    assert report.secure_aggregation.presence_delta == 0
    assert report.as_dict()["epsilon_by_observer"] == by


def test_noise_is_calibrated_to_the_budget_and_the_run_ends_within_it(tmp_path: Path) -> None:
    strategy = strategy_of(
        tmp_path,
        noise_multiplier=None,
        budget=Budget(4.0, 1e-5),
        evaluation=LocalEvaluation(every=3, noise_multiplier=20.0),
    )
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=6)
    assert result.privacy is not None
    assert result.privacy.stopped is None
    assert 3.9 < result.privacy.epsilon <= 4.0
    assert len(result.evaluate_metrics_clientapp) == 2


def test_the_servers_budget_stops_the_run(tmp_path: Path) -> None:
    once = strategy_of(tmp_path)
    once.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=2)
    limit = once.epsilon() * 1.0001
    (tmp_path / "other").mkdir()
    strategy = strategy_of(tmp_path / "other", budget=Budget(limit, 1e-5))
    result = strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=5)
    assert result.privacy is not None
    assert "round 3 would pass the budget" in str(result.privacy.stopped)
    assert result.privacy.rounds == 2
    with pytest.raises(BudgetError):
        strategy_of(tmp_path / "other", budget=Budget(limit, 1e-5)).start(
            InProcessGrid(silo_app(), 4), initial(), num_rounds=1
        )


# What an owner does not allow -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "settings", "rule"),
    [
        ({"max_clipping_norm": 0.5}, {}, "max-clipping-norm"),
        ({"max_sampling_rate": 0.25}, {}, "max-sampling-rate"),
        ({"min_silos": 4}, {}, "min-silos"),
        ({}, {"unit": "row"}, "unit"),
        ({"max_epsilon": 0.3}, {}, "max-epsilon"),
    ],
)
def test_silos_decline_by_the_name_of_the_rule_before_anything_is_spent(
    tmp_path: Path,
    rules: dict[str, Any],
    settings: dict[str, Any],
    rule: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, **rules, ledger=tmp_path / f"silo-{silo}.jsonl")

    wire = Wire(silo_app(kept), 4)
    with pytest.raises(NoUsableReplyError, match="the node declines"):
        strategy_of(tmp_path, **settings).start(wire, initial(), num_rounds=3)
    (words,) = {reply.error.reason for reply in wire.replies}
    assert rule in words
    assert not any(character.isdigit() for character in words)
    assert not any(
        character.isdigit() for reply in wire.replies for character in reply.error.reason
    )
    assert not read_ledger(tmp_path / "ledger.jsonl").records
    for silo in range(4):
        path = tmp_path / f"silo-{silo}.jsonl"
        assert not path.exists() or not read_ledger(path).records


def test_one_silo_that_declines_costs_the_others_nothing(tmp_path: Path) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, max_clipping_norm=0.1) if silo == 2 else policy(silo)

    result = strategy_of(tmp_path).start(InProcessGrid(silo_app(kept), 4), initial(), num_rounds=3)
    assert result.privacy is not None
    assert result.privacy.stopped is None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == ()


def test_a_silo_takes_part_until_its_own_budget_is_spent_whatever_the_server_plans(
    tmp_path: Path,
) -> None:
    strategy_of(tmp_path).start(InProcessGrid(silo_app(), 4), initial(), num_rounds=3)
    three = read_ledger(tmp_path / "ledger.jsonl").epsilon(1e-5) * 1.0001
    file = tmp_path / "silo.jsonl"

    def kept(silo: int) -> DataPolicy:
        return policy(silo, max_epsilon=three, ledger=file) if silo == 1 else policy(silo)

    (tmp_path / "other").mkdir()
    wire = Wire(silo_app(kept), 4)
    strategy_of(tmp_path / "other").start(wire, initial(), num_rounds=6)
    own = read_ledger(file)
    assert own.epsilon(1e-5) <= three
    taken = [r for r in wire.requests if r.metadata.dst_node_id == 2 and "arrays" in r.content]
    assert len(taken) == 3, "and it declines the first message of the rest"


def test_a_policy_that_cannot_be_read_stays_on_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "policy.toml").write_text("max-epsilon = 3.1415\n")
    wire = Wire(silo_app(lambda silo: tmp_path / "policy.toml"), 4)
    logging.getLogger("flwr").addHandler(caplog.handler)
    with pytest.raises(NoUsableReplyError, match="the node declines"):
        strategy_of(tmp_path).start(wire, initial(), num_rounds=1)
    logging.getLogger("flwr").removeHandler(caplog.handler)
    assert "dataset is missing" in caplog.text
    assert {reply.error.reason for reply in wire.replies} == {
        "this silo cannot take part; its owner finds why in its log"
    }


# What is not shown ------------------------------------------------------------------------------


def broken(silo: int) -> Persons:
    raise OSError("row 17 of patients.csv: Ms Example")


def nobody(silo: int) -> Persons:
    return Persons((torch.empty(0, FEATURES), torch.empty(0, dtype=torch.int64)))


def malformed(silo: int) -> Persons:
    x, y = rows(silo)
    return Persons((x * math.nan, y + CLASSES))


def without_some_ids(silo: int) -> Persons:
    return Persons(rows(silo), [math.nan, "", *range(PERSONS * ROWS_EACH - 2)])


class OfAnotherShape(Dataset[tuple[torch.Tensor, ...]]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, row: int) -> tuple[torch.Tensor, ...]:
        return torch.zeros(FEATURES + 1), torch.tensor(0)


def of_another_shape(silo: int) -> Persons:
    return Persons(OfAnotherShape())


def tensors_of_another_shape(silo: int) -> Persons:
    x, y = rows(silo)
    return Persons((x[:, 1:], y))


@pytest.mark.parametrize(
    "load",
    [
        persons,
        nobody,
        malformed,
        without_some_ids,
        of_another_shape,
        FailsAfterTrials(persons, broken),
        FailsAfterTrials(persons, tensors_of_another_shape),
    ],
)
def test_a_reply_has_nothing_but_the_protocols_bytes_whatever_the_records_are(
    tmp_path: Path, load: Callable[[int], Persons]
) -> None:
    app = silo_app(load=lambda silo: load(silo) if silo == 0 else persons(silo))
    wire = Wire(app, 4)
    evaluation = LocalEvaluation(every=1, noise_multiplier=4.0)
    strategy_of(tmp_path, evaluation=evaluation).start(wire, initial(), num_rounds=1)
    by_silo: dict[int, list[int]] = {}
    for reply in wire.replies:
        assert reply.has_content(), reply.error
        (name,) = reply.content
        assert (name, list(reply.content[KEY])) == (KEY, ["message"])
        carried = reply.content[KEY]["message"]
        assert isinstance(carried, bytes)
        by_silo.setdefault(reply.metadata.src_node_id, []).append(len(carried))
    assert by_silo[1] == by_silo[2], "as many bytes as another silo's"


@pytest.mark.parametrize("load", [broken, tensors_of_another_shape])
def test_a_silo_that_cannot_begin_declines_and_pays_nothing(
    tmp_path: Path, load: Callable[[int], Persons]
) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=tmp_path / f"silo-{silo}.jsonl")

    app = silo_app(kept, load=lambda silo: load(silo) if silo == 0 else persons(silo))
    wire = Wire(app, 4)
    result = strategy_of(tmp_path).start(wire, initial(), num_rounds=2)
    assert result.privacy is not None
    assert (result.privacy.stopped, result.privacy.rounds) == (None, 2)
    (words,) = {reply.error.reason for reply in wire.replies if reply.has_error()}
    assert words == "this silo cannot take part; its owner finds why in its log"
    paid = [(tmp_path / f"silo-{silo}.jsonl").exists() for silo in range(4)]
    assert paid == [False, True, True, True]


def test_a_model_of_other_arrays_is_declined_before_it_is_paid(tmp_path: Path) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=tmp_path / f"silo-{silo}.jsonl")

    wire = Wire(silo_app(kept, model=lambda: nn.Linear(FEATURES, CLASSES, bias=False)), 4)
    result = strategy_of(tmp_path).start(wire, initial(), num_rounds=2)
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    (words,) = {reply.error.reason for reply in wire.replies if reply.has_error()}
    assert words.startswith("the model that was sent is not the silo's: bias differ")
    assert not any((tmp_path / f"silo-{silo}.jsonl").exists() for silo in range(4))


def test_training_and_evaluation_in_the_clear_are_refused(tmp_path: Path) -> None:
    wire = Wire(silo_app(), 1)
    content = ConfigRecord({"server-round": 1})
    message = Message(RecordDict({"arrays": initial(), "config": content}), 1, "train")
    (reply,) = wire.send_and_receive([message])
    assert reply.error.reason.startswith("UnprotectedRequestError")


# Silos that go missing --------------------------------------------------------------------------


def missing(*silos: int, of: str) -> Callable[[Message], bool]:
    """Cut the replies of these silos to messages of one kind."""
    return lambda m: m.metadata.dst_node_id in silos and asked(m).name == of


@pytest.mark.parametrize("stage", ["INVITATION", "DELIVERIES", "PARTICIPANTS", "OPENING_REQUEST"])
def test_a_silo_that_goes_missing_in_any_stage_leaves_a_step_of_the_rest(
    tmp_path: Path, stage: str
) -> None:
    wire = Wire(silo_app(), 4, cut=missing(3, of=stage))
    strategy = strategy_of(tmp_path, sampling_rate=EVERYBODY, noise_multiplier=HARDLY_ANY)
    result = strategy.start(wire, initial(), num_rounds=1)
    rest = range(4) if stage == "OPENING_REQUEST" else [0, 1, 3]
    expected = -mean_of_clipped_persons(rest, 1.0)  # type: ignore[arg-type]
    np.testing.assert_allclose(vector(result.arrays), expected, atol=CLOSE)


@pytest.mark.parametrize(
    ("stage", "paid"), [("INVITATION", 0), ("DELIVERIES", 0), ("PARTICIPANTS", 5)]
)
def test_below_the_fewest_silos_nothing_is_opened_and_the_run_ends(
    tmp_path: Path, stage: str, paid: int
) -> None:
    """Only where silos were asked for their sums does a step cost anything."""
    wire = Wire(silo_app(), 4, cut=missing(2, 3, of=stage))
    told: list[RoundProgress] = []
    result = strategy_of(tmp_path, on_round=told.append).start(wire, initial(), num_rounds=9)
    assert result.privacy is not None
    assert result.privacy.rounds == len(result.privacy.epsilon_by_round) == len(told) == paid
    assert "steps 1 to 5 opened nothing: fewer silos than 3" in str(result.privacy.stopped)
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (1, 2, 3, 4, 5)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == paid
    assert not vector(result.arrays).any()


def test_a_step_that_was_not_paid_is_said_to_be_none(tmp_path: Path, console: list[str]) -> None:
    cut = missing(2, 3, of="INVITATION")
    lost: set[int] = set()

    def in_the_first_step(message: Message) -> bool:
        node = message.metadata.dst_node_id
        first = cut(message) and node not in lost
        return first and not lost.add(node)  # type: ignore[func-returns-value]

    told: list[RoundProgress] = []
    strategy = strategy_of(tmp_path, on_round=told.append)
    report = strategy.start(
        Wire(silo_app(), 4, cut=in_the_first_step), initial(), num_rounds=3
    ).privacy
    assert report is not None
    assert [record.round for record in read_ledger(tmp_path / "ledger.jsonl").records] == [2, 3]
    assert [progress.round for progress in told] == [2, 3]
    assert report.rounds == 2
    assert list(report.as_dict()["epsilon_by_round"]) == ["2", "3"]
    assert any(line.endswith("round 1/3: not paid") for line in console)


# A run that goes on -----------------------------------------------------------------------------


def test_a_resumed_run_goes_on_with_the_moments_and_the_ledgers(tmp_path: Path) -> None:
    def kept(silo: int) -> DataPolicy:
        return policy(silo, ledger=tmp_path / f"silo-{silo}.jsonl")

    def goes_on(rounds: int, **changes: Any) -> Any:
        strategy = strategy_of(
            tmp_path,
            optimizer=ServerSGD(momentum=0.9),
            checkpointing=Checkpointing(tmp_path / "checkpoint", resume=True),
            **changes,
        )
        return strategy.start(InProcessGrid(silo_app(kept), 4), initial(), num_rounds=rounds)

    goes_on(2)
    result = goes_on(5)
    assert result.privacy.rounds == 5
    records = read_ledger(tmp_path / "ledger.jsonl").records
    assert [record.round for record in records] == [1, 2, 3, 4, 5]
    own = read_ledger(tmp_path / "silo-0.jsonl")
    assert own.epsilon(1e-5) == read_ledger(tmp_path / "ledger.jsonl").epsilon(1e-5)
    with pytest.raises(CheckpointError, match=r"clipping_norm: 1\.0 → 2\.0"):
        goes_on(6, clipping_norm=2.0)


def test_the_server_is_told_every_so_many_steps(tmp_path: Path) -> None:
    seen: list[int] = []

    def look(number: int, arrays: ArrayRecord) -> MetricRecord:
        seen.append(number)
        return MetricRecord({"norm": float(np.linalg.norm(vector(arrays)))})

    strategy = strategy_of(tmp_path, evaluate_every=3)
    strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=7, evaluate_fn=look)
    assert seen == [0, 3, 6]


# Arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"silos": 4}, TypeError, "silos is 4; give FewSilos"),
        ({"persons": 0}, ValueError, "persons is 0"),
        ({"sampling_rate": 1.0}, ValueError, "sampling_rate is 1.0"),
        ({"clipping_norm": -1.0}, ValueError, "clipping_norm is -1.0"),
        ({"unit": "ward"}, ValueError, "unit is 'ward'; give 'person' or 'row'"),
        ({"noise_multiplier": None}, ValueError, "noise_multiplier is not set"),
        ({"noise_multiplier": 1e-6}, ValueError, "variance"),
        ({"evaluation": 3}, TypeError, "evaluation is 3"),
        ({"optimizer": "sgd"}, TypeError, "optimizer is 'sgd'"),
        ({"population": Population(("a", "b"))}, ValueError, "population lists 2 nodes"),
        ({"ledger": "ledger.jsonl"}, ValueError, "relative path"),
        (
            {"evaluation": LocalEvaluation(every=2, noise_multiplier=1.0), "evaluate_every": 3},
            ValueError,
            "leave evaluate_every out",
        ),
    ],
)
def test_arguments_are_refused_by_name(
    tmp_path: Path, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        strategy_of(tmp_path, **settings)


def test_the_fewest_silos_are_waited_for(tmp_path: Path) -> None:
    assert strategy_of(tmp_path).min_available_nodes == SILOS.min_silos == 3


# Whom a run protects ----------------------------------------------------------------------------


def ann(rows_of_hers: int) -> Callable[[int], Persons]:
    """Silo 0 holds rows of one person; with the second her mean turns around."""
    x = torch.zeros(2, FEATURES)
    x[:, 0] = torch.tensor([10.0, -100.0])

    def load(silo: int) -> Persons:
        count = rows_of_hers if silo == 0 else 0
        return Persons((x[:count], torch.zeros(count, dtype=torch.int64)), ["ann"] * count)

    return load


def test_a_run_over_rows_clips_each_row_by_itself_whosever_it_is(tmp_path: Path) -> None:
    def moved_to(rows_of_hers: int) -> Any:
        folder = tmp_path / str(rows_of_hers)
        folder.mkdir()
        app = silo_app(lambda silo: policy(silo, unit="row"), load=ann(rows_of_hers))
        strategy = strategy_of(
            folder, unit="row", sampling_rate=1 - 2**-50, noise_multiplier=0.005, persons=1
        )
        return vector(strategy.start(InProcessGrid(app, 4), initial(), num_rounds=1).arrays)

    assert 0.9 < np.linalg.norm(moved_to(2) - moved_to(1)) < 1.1, "S = 1"


@pytest.mark.parametrize(("allowed", "asked"), [("row", "person"), ("person", "row")])
def test_silos_decline_a_run_for_the_other_unit(tmp_path: Path, allowed: Any, asked: Any) -> None:
    wire = Wire(silo_app(lambda silo: policy(silo, unit=allowed)), 4)
    with pytest.raises(NoUsableReplyError):
        strategy_of(tmp_path, unit=asked).start(wire, initial(), num_rounds=1)
    (words,) = {reply.error.reason for reply in wire.replies}
    assert words == "the owner of the data does not allow it: unit"
