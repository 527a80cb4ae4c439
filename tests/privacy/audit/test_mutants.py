"""The audit and the honest strategy, and strategies that are wrong on purpose.

Every mutant claims in its ledger what the honest strategy claims. The mutants are broken here
and nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from scipy import stats

from privacy.accounting import FixedSize, Sampling
from privacy.audit import AuditResult
from privacy.audit.correlated import SEPARATION
from privacy.correlated_noise import BandedFactor, Factor
from privacy.mechanisms import (
    ClippingGeometry,
    LatticeGaussian,
    SeededRandomness,
)
from strategies import (
    BLT,
    BandedMF,
    Budget,
    CappedWeights,
    CyclicGroups,
    DPFedAvg,
    Full,
    Poisson,
    ServerSGD,
    audit_strategy,
)
from strategies.noise_alone import noise_alone

CLIENTS, CANARIES, PARAMETERS = 20, 200, 400
IN_TURNS = 120  # so that with 4 groups no cohort is without one of them, in 10⁶ rounds
ROUNDS = 2
Make = Callable[[Path], DPFedAvg]


def ordinary_clients() -> ClientApp:
    """Small, light updates of their own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        draw = np.random.default_rng()
        arrays = message.content["arrays"].to_numpy_ndarrays()
        moved = [a + draw.normal(0, 0.01, a.shape).astype(a.dtype) for a in arrays]
        content = {"arrays": ArrayRecord(moved), "metrics": MetricRecord({"num-examples": 1.0})}
        return Message(RecordDict(content), reply_to=message)

    return app


def settings(folder: Path, **changed: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "population": CLIENTS + CANARIES,
        "sampling": Full(),
        "clipping": 0.5,
        "budget": Budget(1.0, 1e-5),
        "ledger": folder / "ledger.jsonl",
    }
    return usual | changed


def audited(make: Make, *, rounds: int = ROUNDS) -> AuditResult:
    return audit_strategy(
        make,
        ordinary_clients(),
        ArrayRecord([np.zeros((20, 10), np.float32), np.zeros(PARAMETERS - 200, np.float32)]),
        clients=CLIENTS,
        canaries=CANARIES,
        num_rounds=rounds,
    )


def honest(**changed: Any) -> Make:
    return lambda folder: DPFedAvg(**settings(folder, **changed))


# The mutants ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoNoise(LatticeGaussian):
    def open(self, reference: Any, geometry: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return super().open(reference, geometry, noise_multiplier=0.0, **rest)


@dataclass(frozen=True)
class HalfTheNoise(LatticeGaussian):
    def open(self, reference: Any, geometry: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return super().open(reference, geometry, noise_multiplier=0.5 * noise_multiplier, **rest)


@dataclass(frozen=True)
class NoiseForTheMeanWeight(LatticeGaussian):
    """As if every client weighed what a client weighs on average: a tenth of the heaviest."""

    def open(self, reference: Any, geometry: Any, *, noise_multiplier: float, **rest: Any) -> Any:
        return super().open(reference, geometry, noise_multiplier=0.1 * noise_multiplier, **rest)


@dataclass(frozen=True)
class ClippingSkipped(LatticeGaussian):
    """A bound that nobody reaches, and the noise of the claimed one."""

    def open(
        self, reference: Any, geometry: ClippingGeometry, *, noise_multiplier: float, **rest: Any
    ) -> Any:
        loose = ClippingGeometry(tuple(1e4 * n for n in geometry.norms), geometry.group_of)
        return super().open(reference, loose, noise_multiplier=noise_multiplier / 1e4, **rest)


class FixedSeed(SeededRandomness):
    """A generator with a seed that says it has none."""

    private = True


def drawing(sampling: Sampling) -> Make:
    """Draws cohorts by ``sampling``; its ledger says Poisson with a rate of 1/4."""

    def make(folder: Path) -> DPFedAvg:
        strategy = DPFedAvg(**settings(folder, sampling=Poisson(0.25)))
        draw = strategy._run.draw
        strategy._run.draw = lambda name, _, grid: draw(name, sampling, grid)  # type: ignore[method-assign]
        return strategy

    return make


def drawn_once(folder: Path) -> DPFedAvg:
    """Draws a cohort by Poisson sampling, and keeps it."""
    strategy = DPFedAvg(**settings(folder, sampling=Poisson(0.25)))
    first = strategy._run.draw
    kept: list[Any] = []

    def once(*given: Any) -> Any:
        if not kept:
            kept.append(first(*given))
        return kept[0]

    strategy._run.draw = once  # type: ignore[method-assign]
    return strategy


MUTANTS: dict[str, tuple[Make, str]] = {
    "no noise": (honest(mechanism=NoNoise()), "last model"),
    "half the noise": (honest(mechanism=HalfTheNoise()), "noise: there is less of it"),
    "noise for the mean of weights": (
        honest(
            mechanism=NoiseForTheMeanWeight(),
            weighting=CappedWeights(cap=10.0, total_weight=20.0),
        ),
        "last model",
    ),
    "clipping skipped": (honest(mechanism=ClippingSkipped()), "last model"),
    "a seed fixed": (lambda f: DPFedAvg(**settings(f, randomness=FixedSeed(7))), "second run"),
    "Poisson claimed over fixed size": (
        drawing(FixedSize(round(0.25 * (CLIENTS + CANARIES)), CLIENTS + CANARIES)),
        "cohorts: their sizes",
    ),
    "half the sampling rate claimed": (drawing(Poisson(0.5)), "cohorts: their sizes"),
    "one cohort for all rounds": (drawn_once, "do not draw them independently"),
}


# Of correlated noise: nothing moves but it, in a model of a few thousand places.


def in_turns(folder: Path, rate: float = 1.0, **changed: Any) -> DPFedAvg:
    sampling, mechanism = CyclicGroups(4, rate), changed.pop("mechanism", BandedMF(4))
    budget = Budget(2.0, 1e-5)
    given = settings(folder, sampling=sampling, mechanism=mechanism, budget=budget, **changed)
    given["population"] = IN_TURNS + CANARIES
    return DPFedAvg(**given, optimizer=ServerSGD(momentum=0.9))


@dataclass(frozen=True)
class BlindFactor(BandedMF):
    """That of a server without momentum."""

    def factor(self, *, rounds: int, momentum: float, groups: int) -> BandedFactor:
        return super().factor(rounds=rounds, momentum=0.0, groups=groups)


def with_another_factor(folder: Path) -> DPFedAvg:
    """Its noise has another factor than its mechanism says."""
    strategy = in_turns(folder)
    assert strategy._correlated is not None
    strategy._correlated._mechanism = BlindFactor(4)
    return strategy


@dataclass(frozen=True)
class ColumnsNotNormed(BandedMF):
    """Noise as if the columns of the factor had length 1, as in a peer's code."""

    def sigma(self, factor: Factor, **given: Any) -> float:
        return super().sigma(factor, **given) / factor.norm


@dataclass(frozen=True)
class OverlapNotPaid(BLT):
    """Noise as if no two columns of a client overlapped."""

    def sigma(self, factor: Factor, **given: Any) -> float:
        alone = float(np.linalg.norm(factor.coefficients))
        return super().sigma(factor, **given) * alone / factor.norm


def with_one_key(folder: Path) -> DPFedAvg:
    """Every row has the key of the first."""
    strategy = in_turns(folder)
    rounds = strategy._correlated
    assert rounds is not None
    begin = rounds.begin_row

    def begin_row() -> Any:
        turn = begin()
        assert rounds._instance is not None
        first = rounds._instance.keys[0]
        keys = (first,) * rounds._instance.rows
        rounds._instance = replace(rounds._instance, keys=keys)
        return turn

    rounds.begin_row = begin_row  # type: ignore[method-assign]
    return strategy


def out_of_turn(folder: Path) -> DPFedAvg:
    """Half of everybody is asked, whoever's turn it is."""
    strategy = in_turns(folder)
    rounds = strategy._correlated
    assert rounds is not None
    begin = rounds.begin_row

    def begin_row() -> Any:
        begin()
        return lambda identity: hash(identity) % 2 == 0

    rounds.begin_row = begin_row  # type: ignore[method-assign]
    return strategy


def whole_groups(folder: Path) -> DPFedAvg:
    """Everybody of a group is asked; its ledger says half."""
    strategy = in_turns(folder, 0.5)
    draw = strategy._run.draw
    strategy._run.draw = lambda name, _, grid, **turn: draw(name, Full(), grid, **turn)  # type: ignore[method-assign]
    return strategy


CORRELATED_MUTANTS: dict[str, tuple[Make, str]] = {
    "another factor": (with_another_factor, "factor:"),
    "columns not normed": (lambda f: in_turns(f, mechanism=ColumnsNotNormed(4)), "less of it"),
    "overlap not paid": (lambda f: in_turns(f, mechanism=OverlapNotPaid()), "less of it"),
    "one key for all rows": (with_one_key, "reused noise:"),
    "out of turn": (out_of_turn, "separation:"),
    "half of a group claimed": (whole_groups, "cohorts"),
}


def audited_in_turns(make: Make) -> AuditResult:
    return audit_strategy(
        make,
        ordinary_clients(),
        ArrayRecord([np.zeros(4000, np.float32)]),
        clients=IN_TURNS,
        canaries=CANARIES,
        num_rounds=6,
    )


@pytest.mark.parametrize("name", CORRELATED_MUTANTS)
def test_a_mutant_with_correlated_noise_is_caught_by_name(name: str) -> None:
    make, by = CORRELATED_MUTANTS[name]
    result = audited_in_turns(make)
    assert any(by in finding for finding in result.findings), result
    others = {says for _, says in CORRELATED_MUTANTS.values()} - {by}
    if by in ("factor:", "reused noise:"):
        # A shorter factor has less noise as well; of one key's rows, later ones can cancel earlier.
        others.remove("less of it")
    assert not any(says in finding for finding in result.findings for says in others)


def test_honest_correlated_noise_is_contradicted_no_oftener_than_stated() -> None:
    kinds: list[dict[str, Any]] = [{"rate": 0.5}, {"rate": 1.0}, {"mechanism": BLT()}] * 2
    results = [audited_in_turns(partial(in_turns, **kind)) for kind in kinds]
    contradicted = sum(not result.passed for result in results)
    assert contradicted <= stats.binom.isf(1e-6, len(results), 0.05)


def test_rounds_in_which_nobody_was_asked_count_for_the_separation(tmp_path: Path) -> None:
    """Of an honest run: three clients in four groups, so that a cohort in four is empty or more."""
    strategy = in_turns(tmp_path)
    arrays = ArrayRecord([np.zeros(4000, np.float32)])
    p_values = noise_alone(strategy, arrays, nodes=3, rounds=9)
    assert p_values[SEPARATION] == 1.0


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught(name: str) -> None:
    make, by = MUTANTS[name]
    rounds = {"cohorts: their sizes": 20, "do not draw them independently": 10}
    result = audited(make, rounds=rounds.get(by, ROUNDS))
    assert result.claimed_epsilon <= 1.0
    assert not result.passed
    assert any(by in finding for finding in result.findings), result.findings


def test_an_honest_strategy_is_contradicted_no_oftener_than_stated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """16 audits at 95 %, Full and Poisson and weighted: a false alarm in 10⁶ of this test."""
    kinds: Sequence[dict[str, Any]] = (
        {},
        {"sampling": Poisson(0.5)},
        {"weighting": CappedWeights(cap=10.0, total_weight=20.0)},
        {"budget": Budget(8.0, 1e-5)},
    )
    results = [audited(honest(**kinds[i % len(kinds)])) for i in range(16)]
    contradicted = sum(not result.passed for result in results)
    assert contradicted <= stats.binom.isf(1e-6, len(results), 0.05)
    # With ε = 8 there is something to be seen, and the audit sees it.
    loose = [result.epsilon_lower for result in results[3::4]]
    assert np.median(loose) > 1.0
    assert np.median([result.gaussian_epsilon_lower for result in results[3::4]]) > 1.8
    # Canaries that are not there.
    assert not any(record.exc_info for record in caplog.records)
    assert not [line for line in caplog.messages if "dropped a reply" in line]


def test_the_population_must_be_that_of_the_audit() -> None:
    with pytest.raises(ValueError, match="220"):
        audited(honest(population=100))


def test_each_canary_needs_a_parameter() -> None:
    with pytest.raises(ValueError, match="the model has 10 parameters"):
        audit_strategy(
            honest(),
            ordinary_clients(),
            ArrayRecord([np.zeros(10, np.float32)]),
            clients=CLIENTS,
            canaries=CANARIES,
        )
