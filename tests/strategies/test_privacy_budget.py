"""What is spent is written down, never under-stated, and never more than the budget."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import PrivacySpent

from privacy import files as durable
from privacy.accounting import (
    AdditiveDelta,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    epsilon,
    read_ledger,
)
from privacy.accounting.errors import LedgerBusyError, LedgerError
from privacy.mechanisms import SeededRandomness
from strategies import (
    AdaptiveClipping,
    Budget,
    Checkpointing,
    DPFedAvg,
    Metrics,
    NoisedMetrics,
    ServerAdam,
    ServerSGD,
)
from strategies.checkpoint import Checkpoint
from strategies.errors import BudgetError, CheckpointError, SpentBudgetError
from tests.strategies.federation import answer, ask, grid_of, model, noiseless, released

STEP = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])


def private(folder: Path, **settings: Any) -> DPFedAvg:
    return noiseless(folder, **({"noise_multiplier": 20.0} | settings))


def spent(folder: Path) -> float:
    return read_ledger(folder / "ledger.jsonl").epsilon(1e-5)


def test_the_ledger_alone_gives_epsilon_back(tmp_path: Path) -> None:
    """Anybody can: the events of 5 rounds, through the accountant or by the closed form."""
    result = private(tmp_path).start(STEP, model(), num_rounds=5)
    assert result.privacy is not None
    assert result.privacy.epsilon == spent(tmp_path)
    event = GaussianRelease(20.0 / math.sqrt(5), Poisson(1.0))
    assert spent(tmp_path) == pytest.approx(epsilon([event], delta=1e-5), rel=1e-3)
    assert list(result.privacy.epsilon_by_round) == [1, 2, 3, 4, 5]
    assert sorted(result.privacy.epsilon_by_round.values()) == list(
        result.privacy.epsilon_by_round.values()
    )
    assert json.loads(json.dumps(result.privacy.as_dict()))["private"] is True


def test_what_is_reserved_is_left_over(tmp_path: Path) -> None:
    """Calibrated or given, the rounds leave room for what is to be paid after them."""
    later = GaussianRelease(2.0, Full())
    free = private(tmp_path, noise_multiplier=None, budget=Budget(4.0, 1e-5))
    free.start(STEP, model(), num_rounds=3)
    (folder := tmp_path / "reserved").mkdir()
    strategy = private(folder, noise_multiplier=None, budget=Budget(4.0, 1e-5), reserve=[later])
    strategy.start(STEP, model(), num_rounds=3)
    assert strategy.noise_multiplier > free.noise_multiplier
    paid = [record.event for record in read_ledger(folder / "ledger.jsonl").records]
    assert len(paid) == 3
    assert 3.99 < epsilon([*paid, later], delta=1e-5) <= 4.0

    (folder := tmp_path / "given").mkdir()
    result = private(folder, noise_multiplier=2.0, budget=Budget(4.0, 1e-5), reserve=[later]).start(
        STEP, model(), num_rounds=9
    )
    assert result.privacy is not None
    assert result.privacy.stopped
    rounds = result.privacy.rounds
    assert epsilon([later] * (rounds + 1), delta=1e-5) <= 4.0
    assert epsilon([later] * (rounds + 2), delta=1e-5) > 4.0


def test_a_round_is_paid_before_its_sum_exists(tmp_path: Path) -> None:
    """If the ledger cannot be written, nothing is released."""
    strategy = private(tmp_path)
    asked = ask(strategy, STEP, model())
    assert asked
    current: Any = strategy._round

    def full_disk(*args: Any, **kw: Any) -> None:
        assert not current._sum._released
        raise OSError(28, "No space left on device")

    strategy._privacy_budget.ledger.append = full_disk  # type: ignore[method-assign,assignment]
    replies = [answer(message, model()) for message in asked.values()]
    with pytest.raises(OSError, match="No space"):
        strategy.aggregate_train(1, replies)
    assert not current._sum._released
    assert strategy.aggregate_train(1, []) == (None, None)


def test_the_budget_stops_the_run_and_keeps_the_last_model(tmp_path: Path) -> None:
    """Round 4 of 9 would pass ε: it and the rest send nothing, and the result says so."""
    limit = epsilon({GaussianRelease(20.0, Poisson(1.0)): 3}, delta=1e-5) * 1.0001
    grid = grid_of(4, lambda p, r, a: [np.full_like(x, 0.1) for x in a])
    sent: list[int] = []
    push = grid.push_messages
    grid.push_messages = lambda m: sent.append(len(list(m))) or push(m)  # type: ignore
    models: list[ArrayRecord] = []

    def look(number: int, arrays: ArrayRecord) -> MetricRecord:
        models.append(arrays)
        return MetricRecord({"round": number})

    rule = NoisedMetrics(ranges={"loss": (0.0, 4.0)}, noise_multiplier=1e5)
    result = private(
        tmp_path, budget=Budget(limit, 1e-5), metrics=Metrics(fraction_evaluate=1.0, evaluate=rule)
    ).start(grid, model(), num_rounds=9, evaluate_fn=look)
    assert sent == [4, 4] * 3
    assert result.arrays is models[-1]
    assert len(models) == 4
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    assert "round 4" in result.privacy.stopped
    assert result.privacy.rounds == 3
    assert result.privacy.epsilon <= limit
    assert len(result.evaluate_metrics_clientapp) == 3


def test_the_stock_hooks_stop_as_well(tmp_path: Path) -> None:
    strategy = private(tmp_path, budget=Budget(1e-3, 1e-5))
    grid = grid_of(4)
    assert list(strategy.configure_train(1, model(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_train(1, []) == (None, None)
    assert list(strategy.configure_evaluate(1, model(), ConfigRecord(), grid)) == []
    assert strategy.aggregate_evaluate(1, []) is None
    assert not read_ledger(tmp_path / "ledger.jsonl").records


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
            SpentBudgetError, match=r"have paid ε = 2\.9.* of the budget of ε = 3.*buys"
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
    try:
        private(tmp_path, noise_multiplier=None, budget=Budget(3.0, 1e-5)).start(STEP, model())
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    (line,) = {m for m in caplog.messages if "have paid" in m}
    assert "more than 2 times the noise of a first run" in line


@pytest.mark.parametrize(("size", "drowned"), [(4, False), (4000, True)])
def test_noise_is_told_beside_the_norm_and_warned_of_where_it_drowns_the_model(
    size: int, drowned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("flwr").addHandler(caplog.handler)
    try:
        private(tmp_path, noise_multiplier=1.0).start(STEP, model((size,)), num_rounds=2)
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    told = math.sqrt(size) / 4  # z·√d/(q·N)
    assert any(f"about {told:.3g} times the clipping norm S" in m for m in caplog.messages)
    assert any("drowns" in m for m in caplog.messages) == drowned


def test_a_ledger_or_checkpoint_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: bytes) -> None:
        if path.name == full_file:
            raise OSError(28, "No space left on device")
        write(path, content)

    full_file = ""
    write = durable.write_durably
    monkeypatch.setattr("privacy.accounting.ledger.write_durably", full)
    monkeypatch.setattr("strategies.checkpoint.write_durably", full)
    strategy = private(tmp_path, checkpointing=Checkpointing(tmp_path / "checkpoint"))

    def fill(number: int, arrays: ArrayRecord) -> None:
        nonlocal full_file
        if number == 1:
            full_file = "ledger.jsonl"

    with pytest.raises(OSError, match=r"No space.*ledger\.jsonl cannot.*round 2 was not released"):
        strategy.start(STEP, model(), num_rounds=3, evaluate_fn=fill)
    assert Checkpoint.load(tmp_path / "checkpoint").round == 1
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 1
    full_file = "checkpoint"
    again = private(
        tmp_path,
        checkpointing=Checkpointing(tmp_path / "checkpoint", resume=tmp_path / "checkpoint"),
    )
    with pytest.raises(OSError, match=r"No space.*the checkpoint .*Round 2 stands in the ledger"):
        again.start(STEP, model(), num_rounds=3)


def refused(strategy: DPFedAvg, grid: Any = STEP, rounds: int = 4) -> BudgetError:
    """How ``start`` refuses a run: nobody was asked, nothing was evaluated."""
    looked: list[int] = []
    with pytest.raises(BudgetError) as told:
        strategy.start(grid, model(), num_rounds=rounds, evaluate_fn=lambda n, _: looked.append(n))
    assert not looked
    return told.value


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


def test_rounds_that_do_not_all_fit_are_told_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limit = epsilon({GaussianRelease(20.0, Poisson(1.0)): 3}, delta=1e-5) * 1.0001
    logging.getLogger("flwr").addHandler(caplog.handler)
    told: list[str] = []
    try:
        private(tmp_path, budget=Budget(limit, 1e-5)).start(
            STEP, model(), num_rounds=9, evaluate_fn=lambda n, _: told.extend(caplog.messages)
        )
    finally:
        logging.getLogger("flwr").removeHandler(caplog.handler)
    assert any("only 3 of 9 rounds fit" in line for line in told)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3


def test_a_resumed_run_keeps_its_model_when_nothing_is_left(tmp_path: Path) -> None:
    """One that has played a round; one that has not is refused like any other."""
    kept, limit = tmp_path / "kept", epsilon([GaussianRelease(20.0, Poisson(1.0))], delta=1e-5)
    settings = {"budget": Budget(limit * 1.0001, 1e-5), "checkpointing": Checkpointing(kept)}
    ended = private(tmp_path, **settings).start(STEP, model(), num_rounds=3)
    again = private(
        tmp_path, **settings | {"checkpointing": Checkpointing(kept, resume=kept)}
    ).start(STEP, model(), num_rounds=3)
    assert again.privacy is not None
    assert again.privacy.rounds == 1
    assert "round 2 would pass" in str(again.privacy.stopped)
    np.testing.assert_array_equal(
        again.arrays.to_numpy_ndarrays()[0], ended.arrays.to_numpy_ndarrays()[0]
    )

    (other := tmp_path / "other").mkdir()
    settings["checkpointing"] = Checkpointing(other / "kept")

    class KilledError(Exception):
        pass

    def killed(number: int, arrays: ArrayRecord) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        private(other, **settings).start(STEP, model(), num_rounds=3, evaluate_fn=killed)
    private(other).start(STEP, model(), num_rounds=1)
    error = refused(
        private(other, **settings | {"checkpointing": Checkpointing(resume=other / "kept")})
    )
    assert isinstance(error, SpentBudgetError)


def test_one_run_at_a_time_holds_the_ledger(tmp_path: Path) -> None:
    holder = private(tmp_path)
    with pytest.raises(LedgerBusyError):
        private(tmp_path)
    holder.start(STEP, model(), num_rounds=1)
    private(tmp_path).start(STEP, model(), num_rounds=1)
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 2


def test_another_population_cannot_use_the_ledger(tmp_path: Path) -> None:
    private(tmp_path).start(STEP, model(), num_rounds=1)
    with pytest.raises(LedgerError, match="population"):
        private(tmp_path, population=5)


def test_a_fixed_size_is_accounted_at_twice_the_sensitivity(tmp_path: Path) -> None:
    """Replace-one, Rényi, and dearer than what add-or-remove-one would claim."""
    strategy = private(tmp_path, sampling=FixedSize(2, 4))
    strategy.start(STEP, model(), num_rounds=2)
    report = strategy.report()
    assert (report.adjacency, report.accountant) == ("replace-one", "rdp")
    single = epsilon({GaussianRelease(20.0, FixedSize(4, 4)): 2}, delta=1e-5)
    claimed = epsilon({GaussianRelease(20.0, Poisson(1.0)): 2}, delta=1e-5, accountant="rdp")
    assert single > 1.9 * claimed


def test_a_seed_is_not_private_and_its_ledger_is_its_own(tmp_path: Path) -> None:
    """No private run can go on from a seeded one's ledger, nor the other way round."""
    seeded = {"randomness": SeededRandomness(1), "budget": Budget(5.0, 1e-5)}
    result = private(tmp_path, **seeded).start(STEP, model(), num_rounds=2)
    assert result.privacy is not None
    assert result.privacy.epsilon == math.inf
    assert not result.privacy.private
    with pytest.raises(LedgerError, match="population"):
        private(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    private(other).start(STEP, model(), num_rounds=1)
    with pytest.raises(LedgerError, match="population"):
        private(other, **seeded)


def test_the_same_seed_gives_the_same_models(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir()
        strategy = private(folder, randomness=SeededRandomness(7), sampling=Poisson(0.5))
        found.append(strategy.start(STEP, model(), num_rounds=3).arrays.to_numpy_ndarrays()[0])
    np.testing.assert_array_equal(found[0], found[1])


def test_no_noise_costs_everything(tmp_path: Path) -> None:
    result = noiseless(tmp_path).start(STEP, model(), num_rounds=1)
    assert result.privacy is not None
    assert result.privacy.epsilon == math.inf
    assert not result.privacy.private


def test_what_was_spent_is_told_in_flowers_words(tmp_path: Path) -> None:
    strategy = private(tmp_path)
    strategy.start(STEP, model(), num_rounds=2)
    assert strategy.privacy_spent() == PrivacySpent(spent(tmp_path), 1e-5, 2, "pld")


# Checkpoints ----------------------------------------------------------------------------------


def settings_of(optimizer: Any) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "clipping": AdaptiveClipping(initial_norm=1.0),
    }


@pytest.mark.parametrize(
    "optimizer",
    [ServerSGD(0.7, momentum=0.5, iterate_average=0.5), ServerAdam(0.1, iterate_average=0.5)],
)
def test_a_resumed_run_ends_where_an_unbroken_one_does(optimizer: Any, tmp_path: Path) -> None:
    """Without noise, to the last bit but the average's: optimizer, norm and average go on."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    start = ArrayRecord([np.zeros(3, np.float32), np.array(0.0, np.float32)])
    expected = noiseless(whole, **settings_of(optimizer)).start(STEP, start, num_rounds=6)
    path = broken / "checkpoint"
    kept = settings_of(optimizer) | {"checkpointing": Checkpointing(path)}
    noiseless(broken, **kept).start(STEP, start, num_rounds=4)
    resumed = noiseless(broken, **kept | {"checkpointing": Checkpointing(path, resume=path)}).start(
        STEP, start, num_rounds=6
    )
    for a, b in zip(
        expected.arrays.to_numpy_ndarrays(), resumed.arrays.to_numpy_ndarrays(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert resumed.privacy is not None
    assert list(resumed.privacy.epsilon_by_round) == [1, 2, 3, 4, 5, 6]
    assert resumed.privacy.clipping_norm == expected.privacy.clipping_norm  # type: ignore


def test_a_run_can_be_resumed_before_its_first_round_ended(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    class KilledError(Exception):
        pass

    def killed(partition: int, number: int, arrays: Any) -> Any:
        raise KilledError

    strategy = private(
        tmp_path, noise_multiplier=None, budget=Budget(2.0, 1e-5), checkpointing=Checkpointing(path)
    )
    strategy.aggregate_train = killed  # type: ignore[method-assign,assignment]
    with pytest.raises((KilledError, TypeError)):
        strategy.start(STEP, model(), num_rounds=3)
    del strategy
    again = private(
        tmp_path,
        noise_multiplier=None,
        budget=Budget(2.0, 1e-5),
        checkpointing=Checkpointing(resume=path),
    )
    result = again.start(STEP, model(), num_rounds=3)
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert result.privacy.epsilon <= 2.0


def test_a_checkpoint_holds_released_values_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path), optimizer=ServerSGD(momentum=0.9)).start(
        STEP, model(), num_rounds=2
    )
    kept = Checkpoint.load(path)
    assert set(kept.arrays) == {
        "model/0",
        "optimizer/velocity.0",
        "clipping/norm",
        "privacy/rounds",
        "privacy/epsilon",
        "privacy/aborted",  # which rounds opened is paid for
    }
    assert (kept.round, kept.noise_multiplier, kept.position.records) == (2, 20.0, 2)


def test_a_torn_or_altered_checkpoint_never_loads(tmp_path: Path) -> None:
    """Cut anywhere, or any one byte changed."""
    path, copy = tmp_path / "checkpoint", tmp_path / "copy"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        copy.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint.load(copy)
    for place in range(0, len(whole), 3):
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            kept = Checkpoint.load(copy)
        except CheckpointError:
            continue
        # What may change unseen is the spelling of safetensors' own header.
        assert kept.position == Checkpoint.load(path).position
        np.testing.assert_array_equal(
            kept.arrays["model/0"], Checkpoint.load(path).arrays["model/0"]
        )
    with pytest.raises(CheckpointError):
        Checkpoint.load(tmp_path / "nowhere")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    for changed, name in (
        ({"clipping": 2.0}, "clipping"),
        ({"noise_multiplier": 10.0}, "noise_multiplier"),
        ({"sampling": Poisson(0.5)}, "sampling"),
        ({"optimizer": ServerSGD(0.5)}, "optimizer"),
        ({"budget": Budget(math.inf, 1e-6)}, "budget"),
        ({"budget": Budget(9.0, 1e-5)}, "budget"),
    ):
        with pytest.raises(CheckpointError, match=name):
            private(tmp_path, checkpointing=Checkpointing(resume=path), **changed)
    for other in (model((4,)), model((3,), (1,)), model((3,), dtype=np.float64)):
        with pytest.raises(CheckpointError, match="another model"):
            private(tmp_path, checkpointing=Checkpointing(resume=path)).start(
                STEP, other, num_rounds=2
            )


def test_an_older_ledger_put_back_is_found_out(tmp_path: Path) -> None:
    path, ledger = tmp_path / "checkpoint", tmp_path / "ledger.jsonl"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    older = ledger.read_bytes()
    private(tmp_path, checkpointing=Checkpointing(path, resume=path)).start(
        STEP, model(), num_rounds=3
    )
    ledger.write_bytes(older)
    with pytest.raises(LedgerError):
        private(tmp_path, checkpointing=Checkpointing(resume=path))
    ledger.unlink()
    with pytest.raises(LedgerError, match="missing"):
        private(tmp_path, checkpointing=Checkpointing(resume=path))


def test_a_round_played_again_is_paid_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    strategy = private(tmp_path, checkpointing=Checkpointing(resume=path))
    asked = ask(strategy, STEP, model(), 2)
    released(
        strategy, [answer(m, model()) for m in asked.values()], 2
    )  # released, and then the process dies before its checkpoint
    before = spent(tmp_path)
    strategy._privacy_budget.ledger.close()
    private(tmp_path, checkpointing=Checkpointing(resume=path)).start(STEP, model(), num_rounds=2)
    assert [r.round for r in read_ledger(tmp_path / "ledger.jsonl").records] == [1, 2, 2]
    assert spent(tmp_path) > before
