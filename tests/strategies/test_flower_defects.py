"""What Flower's own private strategies get wrong, and that ``DPFedAvg`` does not.

Ours is asserted. Theirs is a note: where Flower no longer shows a defect, a test warns and passes.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message

from privacy.accounting import FixedSize, GaussianRelease, Poisson, epsilon
from strategies import AdaptiveClipping, CappedWeights
from tests.strategies.federation import answer, ask, grid_of, model, noiseless, released

NORM = 1.0


class FlowerDefectMendedWarning(UserWarning):
    """Flower no longer shows a defect, or no longer has what showed it."""


def theirs_show(defect: str, shown: Callable[[], bool]) -> None:
    """Warn unless Flower still shows a defect. Nothing of theirs fails a test of ours."""
    try:
        if shown():
            return
        reason = "it no longer shows"
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
    warnings.warn(f"{defect} ({reason})", FlowerDefectMendedWarning, stacklevel=2)


def raised(error: type[Exception], match: str, call: Callable[[], object]) -> bool:
    try:
        call()
    except error as raised_error:
        return match in str(raised_error)
    return False


def wrapped(clients: int = 10, noise: float = 0.0, **settings: Any) -> Any:
    from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg

    return DifferentialPrivacyServerSideFixedClipping(
        FedAvg(fraction_evaluate=0.0), noise, NORM, clients, **settings
    )


def accountant_of(clients: int, neighbouring: str, sampling: str) -> Any:
    from flwr.serverapp import PrivacyConfig, RdpAccountant
    from flwr.supercore.privacy_accounting import NeighboringRelation, SamplingMethod

    config = PrivacyConfig(
        1e-5, clients, NeighboringRelation[neighbouring], SamplingMethod[sampling]
    )
    return RdpAccountant(config)


def gaussian_event(z: float, cohort: int, clients: int) -> Any:
    from flwr.supercore.privacy_accounting import GaussianPrivacyEvent

    return GaussianPrivacyEvent(z, cohort, clients)


def theirs(strategy: Any, replies: Any, arrays: ArrayRecord) -> Any:
    """A round of theirs on replies that were made elsewhere."""
    if hasattr(strategy, "current_arrays"):
        strategy.current_arrays = arrays
    record, _ = strategy.aggregate_train(1, replies)
    return None if record is None else record.to_numpy_ndarrays()


def replies_of(nodes: dict[int, Any], far: int | None, examples: Any = lambda n: 1.0) -> list[Any]:
    """Small updates, and one far away."""
    return [
        answer(
            m,
            [np.array([100.0 * (n == far), 0, 0, 1e-3], np.float32)],
            {"num-examples": examples(n)},
        )
        for n, m in nodes.items()
    ]


def moved_by_theirs(make: Any, arrays: ArrayRecord) -> float:
    """How far one client moves their model."""
    with_it, without = (theirs(wrapped(), make(far), arrays)[0] for far in (1, None))
    return float(np.linalg.norm(with_it - without))


def test_a_mended_defect_warns_and_passes() -> None:
    with pytest.warns(FlowerDefectMendedWarning, match=r"it no longer shows"):
        theirs_show("a defect", lambda: False)
    with pytest.warns(FlowerDefectMendedWarning, match="ModuleNotFoundError"):
        theirs_show("a defect", lambda: bool(import_module("flwr.moved_elsewhere")))


def test_weights_move_no_more_than_the_noise_assumes(tmp_path: Path) -> None:
    """A client with 1,000 of 1,009 examples moves their model by 0.991·S, where σ = z·S/10."""
    arrays = model((4,))
    nodes = ask(noiseless(tmp_path, population=10), grid_of(10), arrays)

    def make(far: int | None) -> Any:
        return replies_of(nodes, far, lambda n: 1000.0 if n == 1 else 1.0)

    theirs_show(
        "one client moves their model by 0.991·S, where σ = z·S/10",
        lambda: (
            moved_by_theirs(make, arrays) == pytest.approx(0.991 * NORM, rel=2e-3)
            and wrapped(noise=1.0).num_sampled_clients == 10
        ),
    )
    moved = []
    for far in (1, None):
        folder = tmp_path / str(far)
        folder.mkdir()
        ours = noiseless(folder, population=10, weighting=CappedWeights(cap=1.0, total_weight=10.0))
        nodes = ask(ours, grid_of(10), arrays)
        moved.append(released(ours, make(far))[0])
    assert np.linalg.norm(moved[0] - moved[1]) <= NORM / 10  # σ = z·S/10


def test_a_lone_reply_is_not_averaged_alone(tmp_path: Path) -> None:
    """1 of 10 replies: it moves their model by S, where σ = z·S/10, with a warning only."""
    arrays = model((4,))
    nodes = ask(noiseless(tmp_path, population=10), grid_of(10), arrays)
    alone = {1: nodes[1]}
    theirs_show(
        "a lone reply moves their model by S",
        lambda: (
            moved_by_theirs(lambda far: replies_of(alone, far), arrays)
            == pytest.approx(NORM, rel=2e-3)
        ),
    )
    folder = tmp_path / "ours"
    folder.mkdir()
    ours = noiseless(folder, population=10)
    nodes = ask(ours, grid_of(10), arrays)
    (w,) = released(ours, replies_of({1: nodes[1]}, 1))
    assert np.linalg.norm(w) <= NORM / 10


def test_a_lost_reply_loses_no_round(tmp_path: Path) -> None:
    """One reply of ten is missing, or an error: their accounted mode gives the round up."""
    arrays = model((4,))
    ours = noiseless(tmp_path, population=10)
    nodes = ask(ours, grid_of(10), arrays)

    def gives_up(replies: list[Any]) -> bool:
        accountant = accountant_of(10, "ADD_OR_REMOVE_ONE", "NO_AMPLIFICATION")
        strategy = wrapped(noise=1.0, accountant=accountant)
        strategy._pending_events[1] = gaussian_event(1.0, 10, 10)
        released_nothing = theirs(strategy, replies, arrays) is None
        return released_nothing and accountant.get_privacy_spent().num_releases == 0

    def replies(error: bool) -> list[Any]:
        came = replies_of({node: m for node, m in nodes.items() if node > 1}, far=None)
        return [*came, Message(Error(0, "it fails"), reply_to=nodes[1])] if error else came

    for error in (True, False):
        theirs_show("one lost reply loses their round", lambda e=error: gives_up(replies(e)))
    (w,) = released(ours, replies(error=True))
    assert np.linalg.norm(w) > 0


def test_poisson_sampling_is_accounted(tmp_path: Path) -> None:
    """q = 120/3383, z = 1.2, T = 100, δ = 1e-5: 72.98 by theirs; 1.986 and 1.707 are proved."""

    def poisson_is_refused() -> bool:
        poisson = accountant_of(3383, "ADD_OR_REMOVE_ONE", "POISSON")
        return raised(ValueError, "no-amplification", lambda: wrapped(120, 1.2, accountant=poisson))

    def reports_seventy_two() -> bool:
        accountant = accountant_of(3383, "ADD_OR_REMOVE_ONE", "NO_AMPLIFICATION")
        wrapped(120, 1.2, accountant=accountant)
        accountant.compose(gaussian_event(1.2, 120, 3383), 100)
        return bool(accountant.get_epsilon(1e-5) == pytest.approx(72.98, abs=0.01))

    theirs_show("their wrapper refuses Poisson sampling", poisson_is_refused)
    theirs_show("their ε of Geyer's setting is 72.98", reports_seventy_two)
    ours = noiseless(tmp_path, population=3383, sampling=Poisson(120 / 3383), noise_multiplier=1.2)
    event = ours.mechanism.account(noise_multiplier=1.2, sampling=ours.sampling)
    assert epsilon({event: 100}, delta=1e-5) == pytest.approx(1.707, abs=0.002)
    assert epsilon({event: 100}, delta=1e-5, accountant="rdp") == pytest.approx(1.986, abs=0.002)


def test_replace_one_is_accounted_with_half_the_noise() -> None:
    """Their accountant takes z as it is where the sum moves by 2S: 3.56 for what costs 14.09."""
    ours = epsilon({GaussianRelease(1.2, FixedSize(120, 3383)): 100}, delta=1e-5)
    assert ours == pytest.approx(14.09, abs=0.01)

    def understates() -> bool:
        accountant = accountant_of(3383, "REPLACE_ONE", "WITHOUT_REPLACEMENT")
        accountant.compose(gaussian_event(1.2, 120, 3383), 100)
        return bool(ours > 3 * accountant.get_epsilon(1e-5))

    theirs_show("their ε under replace-one is a quarter of what it costs", understates)


def test_the_adaptive_norm_is_noised_for_its_own_round(tmp_path: Path) -> None:
    """When every client clips, theirs clips with one norm and draws noise for the next."""
    arrays = model((20_000,))
    nodes = ask(noiseless(tmp_path, population=100), grid_of(100), arrays)
    far = np.zeros(20_000, np.float32)
    far[0] = 100.0

    def noise_of_the_next_norm() -> bool:
        from flwr.serverapp.strategy import DifferentialPrivacyServerSideAdaptiveClipping, FedAvg

        strategy = DifferentialPrivacyServerSideAdaptiveClipping(
            FedAvg(fraction_evaluate=0.0), 1.0, 100, initial_clipping_norm=NORM
        )
        made = theirs(strategy, [answer(m, [far]) for m in nodes.values()], arrays)
        needed = strategy.noise_multiplier * NORM / 100
        # The next norm is exp(-0.2 · (1 ± 0.05 - 0.5)) = 0.905 of this one, give or take a little.
        return bool(0.85 * needed < made[0][1:].std() < 0.95 * needed)

    theirs_show("their adaptive norm is noised for the next round", noise_of_the_next_norm)
    folder = tmp_path / "ours"
    folder.mkdir()
    ours = noiseless(
        folder,
        population=100,
        noise_multiplier=1.0,
        clipping=AdaptiveClipping(initial_norm=NORM, count_noise=5.0),
    )
    nodes = ask(ours, grid_of(100), arrays)
    (w,) = released(ours, [answer(m, [far]) for m in nodes.values()])
    needed = (1 - 10.0**-2) ** -0.5 * NORM / 100
    # 20,000 draws: six standard errors of a standard deviation, 2·10⁻⁹.
    assert abs(w[1:].std() / needed - 1) < 6 / math.sqrt(2 * 20_000)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_nan_poisons_nothing(tmp_path: Path) -> None:
    arrays = model((4,))
    ours = noiseless(tmp_path, population=10)
    nodes = ask(ours, grid_of(10), arrays)

    def replies() -> list[Any]:
        return [answer(nodes[1], [np.full(4, np.nan, np.float32)]), *replies_of(nodes, None)[1:]]

    theirs_show(
        "one NaN makes their model NaN",
        lambda: bool(np.isnan(theirs(wrapped(), replies(), arrays)[0]).all()),
    )
    assert np.isfinite(released(ours, replies())[0]).all()


def test_a_zero_update_stops_nothing(tmp_path: Path) -> None:
    arrays = model((4,))
    ours = noiseless(tmp_path, population=10)
    nodes = ask(ours, grid_of(10), arrays)

    def make() -> list[Any]:
        return [answer(nodes[1], [np.zeros(4, np.float32)]), *replies_of(nodes, 2)[1:]]

    theirs_show(
        "a zero update divides theirs by zero",
        lambda: raised(ZeroDivisionError, "", lambda: theirs(wrapped(), make(), arrays)),
    )
    (w,) = released(ours, make())
    assert np.linalg.norm(w) == pytest.approx(NORM / 10, rel=1e-3)


@pytest.mark.parametrize("counter", [np.array([5]), np.array(5)], ids=["a list", "a number"])
def test_integer_buffers_keep_their_value(counter: Any, tmp_path: Path) -> None:
    """Such as BatchNorm's ``num_batches_tracked``."""
    arrays = ArrayRecord({"w": Array(np.zeros(3, np.float32)), "counter": Array(counter)})
    ours = noiseless(tmp_path)
    nodes = ask(ours, grid_of(4), arrays)

    def make() -> list[Any]:
        after = {"w": Array(np.full(3, 9, np.float32)), "counter": Array(np.asarray(counter + 1))}
        return [answer(m, ArrayRecord(dict(after))) for m in nodes.values()]

    def breaks_them() -> bool:
        if counter.ndim:
            return raised(TypeError, "int64", lambda: theirs(wrapped(4), make(), arrays))
        # One without dimensions is clipped, weighted and noised into a fraction.
        return bool(theirs(wrapped(4, 1.0), make(), arrays)[1].dtype == np.float64)

    theirs_show("integer buffers stop theirs, or become fractions", breaks_them)
    record, _ = ours.aggregate_train(1, make())
    assert record is not None
    np.testing.assert_array_equal(record["counter"].numpy(), counter)
    assert record["counter"].dtype == "int64"
    assert np.linalg.norm(record["w"].numpy()) == pytest.approx(NORM, rel=1e-4)


def test_noise_cannot_be_foretold(tmp_path: Path) -> None:
    """Whoever learns the state of ``np.random`` subtracts their noise; not so ours."""
    arrays = model((4,))
    ours = noiseless(tmp_path, population=10, noise_multiplier=1.0)
    updates = []
    for attempt in (1, 2):
        nodes = ask(ours, grid_of(10), arrays, attempt)
        np.random.seed(1)  # noqa: NPY002
        replies = [answer(m, [np.full(4, 0.1, np.float32)]) for m in nodes.values()]
        updates.append(released(ours, replies, attempt)[0])
    assert not np.array_equal(*updates)

    def repeats() -> bool:
        from flwr.supercore import differential_privacy

        noise = inspect.getsource(differential_privacy.add_gaussian_noise_inplace)
        made = []
        for _ in range(2):
            np.random.seed(1)  # noqa: NPY002
            replies = [answer(m, [np.full(4, 0.1, np.float32)]) for m in nodes.values()]
            made.append(theirs(wrapped(noise=1.0), replies, arrays)[0])
        return "np.random.normal" in noise and np.array_equal(*made)

    theirs_show("their noise comes from np.random", repeats)


def test_one_client_stops_nothing(tmp_path: Path) -> None:
    """One reply with another key ends their run; ours goes on."""
    arrays = model((4,))
    ours = noiseless(tmp_path, population=10)
    nodes = ask(ours, grid_of(10), arrays)
    odd = {"num-examples": 1.0, "extra": 1.0}

    def replies() -> list[Any]:
        made = [answer(m, [np.full(4, 0.1, np.float32)]) for m in nodes.values()]
        return [*made[:3], answer(nodes[4], [np.full(4, 0.1, np.float32)], odd), *made[4:]]

    theirs_show(
        "one reply with another metric ends their run",
        lambda: raised(Exception, "same keys", lambda: theirs(wrapped(), replies(), arrays)),
    )
    assert np.linalg.norm(released(ours, replies())[0]) > 0


def test_spending_survives_the_process(tmp_path: Path) -> None:
    """A new process, that is a new accountant, has spent nothing; our ledger remembers."""

    def forgets() -> bool:
        first, again = (accountant_of(10, "ADD_OR_REMOVE_ONE", "NO_AMPLIFICATION") for _ in "12")
        first.compose(gaussian_event(1.0, 10, 10), 5)
        return bool(first.get_epsilon(1e-5) > 1 and again.get_epsilon(1e-5) == 0)

    theirs_show("their spending dies with the process", forgets)
    ours = noiseless(tmp_path, noise_multiplier=5.0)
    spent = ours.start(grid_of(4), model(), num_rounds=2).privacy
    assert spent is not None
    assert noiseless(tmp_path, noise_multiplier=5.0).epsilon() == spent.epsilon > 0


def test_metrics_are_not_released(tmp_path: Path) -> None:
    """Their wrapper releases clients' exact losses; ours nothing."""
    arrays = model((4,))
    ours = noiseless(tmp_path)
    nodes = ask(ours, grid_of(4), arrays)

    def make() -> list[Any]:
        metrics = {"num-examples": 1.0, "loss": 0.123}
        return [answer(m, [np.full(4, 0.1, np.float32)], metrics) for m in nodes.values()]

    def releases_losses() -> bool:
        strategy = wrapped(4)
        strategy.current_arrays = arrays
        return bool(strategy.aggregate_train(1, make())[1]["loss"] == pytest.approx(0.123))

    theirs_show("their wrapper releases clients' losses", releases_losses)
    assert ours.aggregate_train(1, make())[1] is None
    assert list(ours.configure_evaluate(1, arrays, ConfigRecord(), grid_of(4))) == []
