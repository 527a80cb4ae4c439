"""Whether a run's rounds fit the budget, and with which noise: judged before anyone is asked."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from privacy.accounting import (
    AdditiveDelta,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    epsilon,
    read_ledger,
)
from strategies import (
    Budget,
    Checkpointing,
    DPFedAvg,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
)
from strategies.errors import BudgetError, SpentBudgetError
from strategies.model_schema import ModelSchema
from strategies.progress import RoundProgress
from tests.strategies.federation import STEP, answer, model, private, refused, spent


def test_the_noise_is_calibrated_for_what_is_left(tmp_path: Path) -> None:
    """Two runs share one ledger: the second gets the rest of the budget, not one of its own."""
    for limit in (2.0, 3.0):
        strategy = private(tmp_path, noise_multiplier=None, budget=Budget(limit, 1e-5))
        told = strategy.start(STEP, model(), num_rounds=4).privacy
        assert told is not None
        assert 0.995 * limit < told.epsilon <= limit
    alone = epsilon({GaussianRelease(told.noise_multiplier, Poisson(1.0)): 4}, delta=1e-5)
    assert alone < 2.1
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 8


def test_the_last_of_a_budget_is_not_spent_on_noise(tmp_path: Path) -> None:
    """A second run on a spent ledger is told what is left and what it would buy."""
    settings = {"noise_multiplier": None, "budget": Budget(3.0, 1e-5)}
    private(tmp_path, **settings).start(STEP, model(), num_rounds=3)
    before = read_ledger(tmp_path / "ledger.jsonl").records
    for rounds in (1, 3, 30):
        with pytest.raises(
            SpentBudgetError,
            match=r"have paid ε = 2\.9.* of the budget of ε = 3.*the rest allows .* only at",
        ):
            private(tmp_path, **settings).start(STEP, model(), num_rounds=rounds)
    assert read_ledger(tmp_path / "ledger.jsonl").records == before
    told = private(tmp_path, **settings | {"budget": Budget(6.0, 1e-5)}).start(STEP, model())
    assert told.privacy is not None
    assert told.privacy.rounds == 3


def test_little_left_of_a_budget_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    private(tmp_path, noise_multiplier=None, budget=Budget(2.6, 1e-5)).start(STEP, model())
    logging.getLogger("flwr").addHandler(caplog.handler)
    private(tmp_path, noise_multiplier=None, budget=Budget(3.0, 1e-5)).start(STEP, model())
    (line,) = {m for m in caplog.messages if "have paid" in m}
    assert "more than 2 times the noise of a first run" in line


@pytest.mark.parametrize(("size", "drowned"), [(4, False), (4000, True)])
def test_noise_is_logged_beside_the_norm_and_warned_of_where_it_drowns_the_model(
    size: int, drowned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").addHandler(caplog.handler)
    private(tmp_path, noise_multiplier=1.0).start(STEP, model((size,)), num_rounds=2)
    told = math.sqrt(size) / 4  # z·√d/(q·N)
    assert any(f"Noise: about {told:.3g}·S on each" in m for m in caplog.messages)
    assert any("drowns" in m for m in caplog.messages) == drowned


def test_a_spent_budget_begins_no_run(tmp_path: Path) -> None:
    """Neither with calibrated noise nor with noise that is given: it could teach nothing."""
    private(tmp_path).start(STEP, model(), num_rounds=4)
    before = read_ledger(tmp_path / "ledger.jsonl").records
    for noise in (None, 20.0):
        kept = tmp_path / f"checkpoint-{noise}"
        late = private(
            tmp_path,
            noise_multiplier=noise,
            budget=Budget(0.01, 1e-5),
            checkpointing=Checkpointing(kept),
        )
        error = refused(late)
        assert isinstance(error, SpentBudgetError)
        assert f"have paid ε = {spent(tmp_path):.6g}" in str(error)
        assert "give a ledger of their own" in str(error)
        assert not kept.exists()
    assert read_ledger(tmp_path / "ledger.jsonl").records == before
    assert late.report().rounds == 0


def test_a_budget_too_small_from_the_first_begins_no_run(tmp_path: Path) -> None:
    error = refused(
        private(tmp_path, noise_multiplier=None, budget=Budget(epsilon=1e-12, delta=1e-12))
    )
    assert "no noise is enough for 4 rounds" in str(error)
    assert str(error).endswith("raise budget.epsilon")
    assert not isinstance(error, SpentBudgetError)


@pytest.mark.parametrize("noise", [None, 20.0])
@pytest.mark.parametrize("paid", [0, 1])
def test_what_else_takes_from_the_budget_is_named(
    paid: int, noise: float | None, tmp_path: Path
) -> None:
    """Not as what is spent already: of that the ledger alone tells."""
    if paid:
        private(tmp_path, noise_multiplier=100.0).start(STEP, model(), num_rounds=paid)
    rule = NoisedMetrics(ranges={"loss": (0.0, 4.0)}, noise_multiplier=0.1)
    dear = {"metrics": Metrics(fraction_evaluate=1.0, evaluate=rule), "budget": Budget(3.0, 1e-5)}
    error = refused(private(tmp_path, noise_multiplier=noise, **dear))
    assert isinstance(error, SpentBudgetError) == bool(paid)
    times = 1 if noise else 4
    takes = epsilon({GaussianRelease(0.1, Poisson(1.0)): times}, delta=1e-5)
    number = "4 rounds" if times == 4 else "1 round"
    told = f"metrics.evaluate (noise_multiplier 0.1, in {number}) takes ε = {takes:.6g}"
    assert told in str(error)
    assert "give metrics.evaluate a larger noise_multiplier" in str(error)
    assert (f"have paid ε = {spent(tmp_path):.6g}" in str(error)) == bool(paid)
    assert "spent already" not in str(error)

    far_too_much = [AdditiveDelta(1e-3)]
    dear = {"reserve": far_too_much, "budget": Budget(3.0, 1e-5)}
    error = refused(private(tmp_path, noise_multiplier=noise, **dear))
    assert "what is reserved for after training takes ε = inf" in str(error)
    assert "reserve less" in str(error)
    assert "raise budget.epsilon" not in str(error), "it would not help"


@pytest.mark.parametrize("sampling", [Full(), Poisson(0.3), FixedSize(2, 4)])
def test_noise_too_small_for_a_first_round_is_refused_with_what_would_fit(
    sampling: Any, tmp_path: Path
) -> None:
    settings = {"sampling": sampling, "budget": Budget(3.0, 1e-5)}
    error = str(refused(private(tmp_path, noise_multiplier=0.3, **settings)))
    assert error.startswith("noise_multiplier is 0.3, with which not one round fits the budget")
    told = [float(words.split()[0]) for words in error.split("a noise_multiplier of ")[1:]]
    wanted = float(error.split("raise budget.epsilon to ")[1].split()[0])
    assert not read_ledger(tmp_path / "ledger.jsonl").records
    for rounds, noise, limit in ((4, told[0], 3.0), (1, told[1], 3.0), (1, 0.3, wanted)):
        folder = tmp_path / f"{rounds}-{limit}"
        folder.mkdir()
        remedied = settings | {"noise_multiplier": noise, "budget": Budget(limit, 1e-5)}
        report = private(folder, **remedied).start(STEP, model(), num_rounds=rounds).privacy
        assert report is not None
        assert (report.rounds, report.stopped) == (rounds, None)


def test_no_noise_and_a_reserve_beyond_the_budget_begin_no_run(tmp_path: Path) -> None:
    error = str(refused(private(tmp_path, noise_multiplier=0.0, budget=Budget(3.0, 1e-5))))
    assert "ε to inf" in error
    assert "raise budget.epsilon" not in error
    reserve = [GaussianRelease(0.1, Full())]
    error = str(refused(private(tmp_path, budget=Budget(3.0, 1e-5), reserve=reserve)))
    assert "what is reserved for after training takes ε = " in error


def test_rounds_that_do_not_all_fit_are_warned_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = epsilon({GaussianRelease(20.0, Poisson(1.0)): 3}, delta=1e-5) * 1.0001
    logging.getLogger("flwr").addHandler(caplog.handler)
    told: list[str] = []
    private(tmp_path, budget=Budget(limit, 1e-5)).start(
        STEP, model(), num_rounds=9, evaluate_fn=lambda n, _: told.extend(caplog.messages)
    )
    assert any("only 3 of 9 rounds fit" in line for line in told)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3


def asked_first(strategy: DPFedAvg, rounds: int) -> str:
    """The refusal of ``check_budget``, which is that of ``start``, word for word."""
    with pytest.raises(BudgetError) as told:
        strategy.check_budget(rounds, ModelSchema(model()).size)
    assert str(told.value) == str(refused(strategy, rounds=rounds))
    return str(told.value)


@pytest.mark.parametrize("z", [2.0, None])
def test_check_budget_counts_what_another_run_has_paid_since(
    z: float | None, tmp_path: Path
) -> None:
    strategy = private(tmp_path, noise_multiplier=z, budget=Budget(4.0, 1e-5))
    strategy.start(STEP, model(), num_rounds=1)
    other = private(tmp_path, noise_multiplier=1.0, budget=Budget(12.0, 1e-5))
    other.start(STEP, model(), num_rounds=3)
    assert "earlier runs on the ledger" in asked_first(strategy, 1)


def test_check_budget_calibrates_for_the_run_that_start_would_begin(tmp_path: Path) -> None:
    """Not with the noise of the run before, whose report stays."""
    strategy = private(tmp_path, noise_multiplier=None, budget=Budget(4.0, 1e-5))
    report = strategy.start(STEP, model(), num_rounds=3).privacy
    with pytest.raises(SpentBudgetError):
        strategy.check_budget(3, 3)
    assert strategy.report() == report
    assert "more than 10 times the noise of a first run" in asked_first(strategy, 3)


def test_check_budget_during_a_run_is_of_another_one(tmp_path: Path) -> None:
    asked: list[str] = []

    def ask(progress: RoundProgress) -> None:
        if progress.round == 1:
            asked.extend(strategy.check_budget(2, 3) or ["it would begin"])

    strategy = private(
        tmp_path, noise_multiplier=None, budget=Budget(4.0, 1e-5), on_round=ask, clipping=0.1
    )
    report = strategy.start(STEP, model(), num_rounds=2).privacy
    assert asked
    assert not any("rounds fit what is left" in words for words in asked)  # of this run's noise
    assert report is not None
    assert list(report.epsilon_by_round) == [1, 2]


def test_check_budget_counts_evaluations_that_the_run_before_gave_up(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answer(message, message.content["arrays"])

    noised = NoisedMetrics(ranges={"loss": (0.0, 1.0)}, noise_multiplier=1.5)
    strategy = private(
        tmp_path, budget=Budget(4.0, 1e-5), metrics=Metrics(evaluate=noised, fraction_evaluate=1.0)
    )
    strategy.start(InProcessGrid(app, 4), model(), num_rounds=2)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2
    other = private(tmp_path, noise_multiplier=1.5, budget=Budget(9.0, 1e-5))
    other.start(STEP, model(), num_rounds=1)
    assert "metrics.evaluate (noise_multiplier 1.5, in 1 round) takes" in asked_first(strategy, 1)
