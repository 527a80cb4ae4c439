"""The audit of a running silo strategy, and silos and servers that do less than they claim."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from privacy.audit import AuditResult
from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import DataPolicy, Persons
from strategies import Budget, DistributedDPSGD
from strategies.distributed_dpsgd import audit_silo_strategy, silo_sums
from strategies.distributed_dpsgd.requests import SumRequest
from strategies.distributed_dpsgd.steps import StepSetup


def audited(*, epsilon: float = 2.0, unit: Any = "person", **given: Any) -> AuditResult:
    def make(folder: Path) -> DistributedDPSGD:
        return DistributedDPSGD(
            silos=FewSilos(5, colluders=1, absent=1),
            persons=200,
            unit=unit,
            sampling_rate=0.9,
            clipping_norm=0.5,
            budget=Budget(epsilon, 1e-5),
            ledger=folder / "ledger.jsonl",
        )

    usual: dict[str, Any] = {"canaries": 60, "num_rounds": 2}
    return audit_silo_strategy(make, **usual | given)


def test_a_sound_strategy_is_not_contradicted() -> None:
    """At 95 % confidence one audit in 20 is; four in a row hardly ever."""
    assert any(audited().passed for _ in range(4))


def test_the_canaries_are_seen_in_the_released_models() -> None:
    """With ε of a hundred nearly every coin is guessed right."""
    result = audited(epsilon=100.0, num_rounds=1)
    assert result.passed
    assert result.attacks[0].correct >= 25


def rows_alone(load: Callable[[], Persons], request: Any) -> Persons:
    """A silo that forgets whose its rows are."""
    persons = load()
    return Persons(persons.take(torch.arange(persons.rows)))


ADD_SHARE = SiloGaussian.add_share


def half_a_share(mechanism: SiloGaussian, integers: Any, **given: Any) -> None:
    """Silos that add half of their noise."""
    given["noise_multiplier"] /= 2
    ADD_SHARE(mechanism, integers, **given)


def for_all(setup: StepSetup) -> SiloGaussian:
    """A server that sizes the noise as if no silo could be absent or collude."""
    return SiloGaussian(setup.silos.silos + 1, 1)


@pytest.mark.parametrize(
    ("owner", "name", "mutant", "words", "given"),
    [
        (silo_sums, "_loaded", rows_alone, "canary persons:", {"rows": 32}),
        (SiloGaussian, "add_share", half_a_share, "noise:", {}),
        (StepSetup, "mechanism", property(for_all), "noise:", {}),
    ],
    ids=["person ids ignored", "half of the noise", "noise for all silos"],
)
def test_a_strategy_that_does_less_is_caught_by_name(
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    mutant: Any,
    words: str,
    given: dict[str, Any],
) -> None:
    monkeypatch.setattr(owner, name, mutant)
    if name == "mechanism":  # or the silos and the protocol would refuse such a step
        monkeypatch.setattr(SumRequest, "check", lambda *_: None)
        monkeypatch.setattr(DataPolicy, "check_step", lambda *_, **__: None)
    result = audited(**given)
    assert result.claimed_epsilon <= 2.0
    assert any(finding.startswith(words) for finding in result.findings), result


def test_rows_are_audited_one_by_one() -> None:
    with pytest.raises(ValueError, match="give 1"):
        audited(unit="row")
