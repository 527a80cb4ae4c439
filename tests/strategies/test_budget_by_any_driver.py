"""No strategy pays more than its budget, whoever calls its hooks: here Flower's own driver."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from privacy.accounting import Budget, epsilon, read_ledger
from strategies import InProcessGrid, Metrics, NoisedMetrics
from strategies.accounted_strategy import AccountedStrategy
from strategies.distributed_dpsgd import LocalEvaluation
from strategies.replies import stream_replies
from tests.strategies.distributed_dpsgd.silos import initial, silo_app, strategy_of
from tests.strategies.federation import model, private

DELTA = 1e-5
Case = tuple[Callable[..., AccountedStrategy], Grid, ArrayRecord]


def clients() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord()})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def fedavg(every: int = 1) -> Case:
    """``DPFedAvg`` evaluates after every round."""
    assert every == 1
    rule = NoisedMetrics(ranges={"accuracy": (0.0, 1.0)}, noise_multiplier=3.0)
    metrics = Metrics(fraction_evaluate=1.0, evaluate=rule)

    def make(folder: Path, **settings: Any) -> AccountedStrategy:
        return private(folder, metrics=metrics, noise_multiplier=200.0, **settings)

    return make, InProcessGrid(clients(), 4), model()


def silos(every: int = 1) -> Case:
    evaluation = LocalEvaluation(every=every, noise_multiplier=3.0)

    def make(folder: Path, **settings: Any) -> AccountedStrategy:
        return strategy_of(folder, evaluation=evaluation, noise_multiplier=200.0, **settings)

    return make, InProcessGrid(silo_app(), 4), initial()


def of_one_evaluation(make: Callable[..., AccountedStrategy], folder: Path) -> float:
    folder.mkdir()
    return epsilon(list(make(folder)._evaluation_cost().events), delta=DELTA)


@pytest.mark.parametrize(("case", "every"), [(fedavg, 1), (silos, 1), (silos, 2), (silos, 5)])
@pytest.mark.parametrize("evaluations", [0.5, 1.2, 2.0])
def test_flowers_own_driver_pays_no_more_than_the_budget(
    case: Callable[[int], Case], every: int, evaluations: float, tmp_path: Path
) -> None:
    """The budget is that of so many evaluations, of which training takes next to nothing."""
    make, grid, start = case(every)
    limit = evaluations * of_one_evaluation(make, tmp_path / "probe")
    strategy = make(tmp_path, budget=Budget(limit, DELTA))
    Strategy.start(strategy, grid, start, num_rounds=3)
    contents = read_ledger(tmp_path / "ledger.jsonl")
    assert strategy.epsilon() == contents.epsilon(DELTA, accountant=strategy.accountant)
    assert strategy.epsilon() <= limit
    paid = [r.round for r in contents.records if r.event in strategy._evaluation_cost().events]
    assert all(number % every == 0 for number in paid)
    if evaluations > 1 and every < 5:
        assert paid[:1] == [every]


@pytest.mark.parametrize("case", [fedavg, silos])
def test_an_evaluation_that_is_asked_for_again_is_not_paid_beyond_the_budget(
    case: Callable[[], Case], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make, grid, arrays = case()
    limit = 1.5 * of_one_evaluation(make, tmp_path / "probe")
    strategy = make(tmp_path, budget=Budget(limit, DELTA))
    released = []
    for _ in range(6):
        asked = list(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid))
        replies = stream_replies(grid, asked, timeout=60)
        released.append(strategy.aggregate_evaluate(1, replies) is not None)
    assert released[0]
    assert not released[-1]
    assert strategy.epsilon() <= limit
    assert "would pass the budget" in caplog.text
