"""Whoever watches a run sees what was released, and nothing else."""

import math
import struct
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import MetricRecord

from privacy.errors import MissingExtraError
from strategies import (
    DPFedAvg,
    InProcessGrid,
    LocalEvaluation,
    Metrics,
    NoisedMetrics,
    OnRound,
    Poisson,
    RoundProgress,
)
from strategies.tracking import MLflowWriter, PrometheusExporter, TensorBoardWriter, WandbWriter
from tests.strategies.distributed_dpsgd.silos import PERSONS, initial, silo_app, strategy_of
from tests.strategies.federation import grid_of, model, private

FIGURES = {
    "privacy/epsilon",
    "privacy/clipping_norm",
    "run/opened",
    "evaluate/loss",
    "server/accuracy",
}
CLIENTS = 37
SECRET = {number * 0.0123456789 for number in range(1, CLIENTS + 1)}
"""The clients' updates, each of a norm below S."""


def watched(folder: Path, on_round: OnRound, **settings: Any) -> DPFedAvg:
    """Run three rounds of clients, about half of whom each draws."""
    rule = NoisedMetrics(ranges={"loss": (0.0, 40.0)}, noise_multiplier=1e3)
    strategy = private(
        folder,
        population=CLIENTS,
        sampling=Poisson(0.5),
        metrics=Metrics(fraction_evaluate=1.0, evaluate=rule),
        on_round=on_round,
        **settings,
    )
    grid = grid_of(CLIENTS, lambda p, r, a: [np.full_like(x, sorted(SECRET)[p] / 2) for x in a])
    strategy.start(
        grid,
        model(),
        num_rounds=3,
        evaluate_fn=lambda number, _: MetricRecord({"accuracy": 0.5 + number / 10}),
    )
    return strategy


def test_an_observer_is_told_of_each_paid_round_in_public_figures(tmp_path: Path) -> None:
    told: list[RoundProgress] = []
    strategy = watched(tmp_path, told.append)
    assert [p.round for p in told] == [1, 2, 3]
    assert {p.round: p.epsilon for p in told} == strategy.epsilon_by_round
    for progress in told:
        assert progress.figures().keys() == FIGURES
        assert progress.metrics["server/accuracy"] == 0.5 + progress.round / 10
        assert (progress.rounds, progress.delta, progress.epsilon_limit) == (3, 1e-5, math.inf)
        assert progress.expected_cohort == CLIENTS / 2  # what it is on average, not what it was
        assert progress.opened
        assert progress.seconds > 0
        assert progress.model_bytes == len(next(iter(model().values())).data)


def test_an_observer_that_fails_is_logged_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rounds: list[int] = []

    def failing(progress: RoundProgress) -> None:
        rounds.append(progress.round)
        raise ConnectionError("the tracker is away")

    strategy = watched(tmp_path, failing)
    assert rounds == [1, 2, 3] == list(strategy.epsilon_by_round)
    words = [r.getMessage() for r in caplog.records if "the tracker is away" in r.getMessage()]
    assert len(words) == 1
    assert "after round 1" in words[0]


def test_a_run_that_its_budget_ends_tells_of_the_paid_rounds_alone(tmp_path: Path) -> None:
    told: list[RoundProgress] = []
    unlimited = private(tmp_path, on_round=told.append)
    unlimited.start(grid_of(4), model(), num_rounds=1)
    once = told.pop().epsilon
    for name in ("again", "resumed"):
        (tmp_path / name).mkdir()
    strategy = private(
        tmp_path / "again", budget=type(unlimited.budget)(once * 1.01, 1e-5), on_round=told.append
    )
    strategy.start(grid_of(4), model(), num_rounds=5)
    assert [p.round for p in told] == [1]


def test_steps_over_silos_are_told_of_as_well(tmp_path: Path) -> None:
    told: list[RoundProgress] = []
    evaluation = LocalEvaluation(every=2, noise_multiplier=1.0)
    strategy = strategy_of(tmp_path, evaluation=evaluation, on_round=told.append)
    strategy.start(InProcessGrid(silo_app(), 4), initial(), num_rounds=3)
    assert {p.round: p.epsilon for p in told} == strategy.epsilon_by_round
    assert ["evaluate/persons" in p.metrics for p in told] == [False, True, False]
    assert {p.expected_cohort for p in told} == {0.5 * 4 * PERSONS}


@pytest.mark.parametrize("on_round", [3, lambda: None, lambda a, b: None])
def test_what_cannot_be_told_of_a_round_is_refused(tmp_path: Path, on_round: Any) -> None:
    with pytest.raises(TypeError, match=r"on_round is .* a function of a RoundProgress"):
        private(tmp_path, on_round=on_round)


def scalars_of(folder: Path) -> dict[str, list[tuple[float, int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert "settings/text_summary" not in events.Tags()["scalars"]
    return {
        tag: [(e.wall_time, e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


@pytest.mark.parametrize("timing", [False, True])
def test_tensorboards_own_reader_reads_the_run(tmp_path: Path, timing: bool) -> None:
    folder = tmp_path / "board"
    with TensorBoardWriter(folder, settings={"purpose": "a test"}, timing=timing) as writer:
        strategy = watched(tmp_path, writer)
    scalars = scalars_of(folder)
    assert scalars.keys() == FIGURES | ({"run/seconds"} if timing else set())
    epsilon = {step: value for _, step, value in scalars["privacy/epsilon"]}
    assert epsilon == pytest.approx(strategy.epsilon_by_round)
    stamps = {wall for values in scalars.values() for wall, _, _ in values}
    assert (len(stamps) > 1) == timing
    assert_holds_no_secret(folder)
    (file,) = folder.iterdir()
    assert b"purpose | a test" in file.read_bytes()


@pytest.mark.parametrize("timing", [False, True])
def test_mlflows_own_client_reads_the_run(
    tmp_path: Path, timing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    (tmp_path / "store").mkdir()
    store = f"sqlite:///{tmp_path / 'store' / 'mlflow.db'}"
    with MLflowWriter(store, run_name="one", settings={"q": 0.5}, timing=timing) as writer:
        strategy = watched(tmp_path, writer)
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("bloomseal")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "one",
        "FINISHED",
        {"q": "0.5"},
    )
    assert run.data.metrics.keys() == FIGURES | ({"run/seconds"} if timing else set())
    history = client.get_metric_history(run.info.run_id, "privacy/epsilon")
    assert {m.step: m.value for m in history} == pytest.approx(strategy.epsilon_by_round)
    stamps = {m.timestamp for m in history} | {run.info.start_time, run.info.end_time}
    assert (len(stamps) > 1) == timing
    assert_holds_no_secret(tmp_path / "store")
    with pytest.raises(KeyError), MLflowWriter(store):  # joins the experiment
        raise KeyError
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(r.info.status for r in runs) == ["FAILED", "FINISHED"]


def test_prometheus_scrapes_the_last_round(tmp_path: Path) -> None:
    with PrometheusExporter(0) as exporter:
        strategy = watched(tmp_path, exporter)
        address = f"http://127.0.0.1:{exporter.port}/metrics"
        with urllib.request.urlopen(address) as answer:
            lines = dict(
                line.rsplit(" ", 1)
                for line in answer.read().decode().splitlines()
                if not line.startswith("#")
            )
    assert float(lines["bloomseal_round"]) == 3
    assert float(lines["bloomseal_epsilon"]) == strategy.epsilon_by_round[3]
    assert float(lines['bloomseal_metric{name="server/accuracy"}']) == 0.8
    assert float(lines["bloomseal_unopened_rounds_total"]) == 0


def assert_holds_no_secret(folder: Path) -> None:
    """No file has a client's own value, as text or as a float, or a size of a cohort by name."""
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    assert content
    assert b"cohort" not in content
    for value in SECRET | {value / 2 for value in SECRET}:
        assert repr(value).encode() not in content
        for form in ("<f", "<d", ">f", ">d"):
            assert struct.pack(form, value) not in content


@pytest.mark.parametrize(
    ("make", "module", "extra"),
    [
        (lambda folder: TensorBoardWriter(folder), "tensorboard", "tensorboard"),
        (lambda folder: MLflowWriter(folder), "mlflow", "mlflow"),
        (lambda folder: WandbWriter(folder=folder), "wandb", "wandb"),
        (lambda _: PrometheusExporter(), "prometheus_client", "prometheus"),
    ],
)
def test_a_missing_extra_is_one_sentence_with_the_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[[Path], object],
    module: str,
    extra: str,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    missing = f"needs {module}, which is not installed: pip install 'bloomseal\\[{extra}]'$"
    with pytest.raises(MissingExtraError, match=missing):
        make(tmp_path)
