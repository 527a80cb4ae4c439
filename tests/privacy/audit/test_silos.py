"""The audit of silos' sums: what they do as documented passes, and what is wrong is named.

The mutants are broken here and nowhere else; each claims what the honest silos claim.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import mse_loss

from privacy.audit import AuditResult, audit_silo_steps
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.training import Persons, SiloStep, silo_sum

STEP = SiloStep(
    mechanism=SiloGaussian(4, 1),
    clipping_norm=0.5,
    noise_multiplier=4.0,
    sampling_rate=0.3,
    persons=10_000,
)
Silo = Callable[[int, nn.Module, Persons, SiloStep], Any]


def honest(silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
    return silo_sum(model, persons, loss=mse_loss, step=step, ledger=None)


def a_share_left_out(silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
    """The last of the honest silos adds next to no noise."""
    return honest(silo, model, persons, replace(step, noise_multiplier=1e-3) if silo == 2 else step)


def noise_for_all(silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
    """Shares that are enough if all of 6 silos take part and none colludes."""
    return honest(silo, model, persons, replace(step, mechanism=SiloGaussian(7, 1)))


def person_ids_ignored(silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
    rows = persons.take(torch.arange(persons.rows))
    return honest(silo, model, Persons(rows), step)


class Shuffled:
    """Goes through the persons in batches of equal size, shuffled anew for every pass."""

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._draw = np.random.default_rng(5)

    def __call__(self, silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
        size = round(step.sampling_rate * len(persons))
        if len(self._waiting) < size or max(self._waiting, default=0) >= len(persons):
            self._waiting = self._draw.permutation(len(persons)).tolist()
        batch, self._waiting = self._waiting[:size], self._waiting[size:]
        rows = [row for person in sorted(batch) for row in persons.groups[person]]
        drawn = Persons(persons.take(torch.tensor(rows, dtype=torch.int64)), _ids(persons, rows))
        return honest(silo, model, drawn, replace(step, sampling_rate=1.0))


def _ids(persons: Persons, rows: list[int]) -> Any:
    return persons.person_of_row[rows]


class SameNoise:
    """Every silo's noise from a seed that is fixed: the colluders know it."""

    def __call__(self, silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
        return silo_sum(
            model, persons, loss=mse_loss, step=step, ledger=None, randomness=SeededRandomness(1)
        )


MUTANTS: dict[str, tuple[Silo, str, dict[str, Any]]] = {
    "a silo's share left out": (a_share_left_out, "noise:", {}),
    "noise for all instead of survivors": (noise_for_all, "noise:", {}),
    "person ids ignored": (person_ids_ignored, "canary persons:", {"rows": 48, "steps": 5}),
    "Poisson claimed over shuffled batches": (Shuffled(), "cohorts:", {}),
    "the same coins in every step": (SameNoise(), "cohorts:", {}),
}


def audited(silo: Silo = honest, **changed: Any) -> AuditResult:
    usual: dict[str, Any] = {"steps": 4, "canaries": 60}
    return audit_silo_steps(STEP, silo=silo, **usual | changed)


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught_by_name(name: str) -> None:
    silo, by, changed = MUTANTS[name]
    result = audited(silo, **changed)
    assert result.claimed_epsilon < 3
    assert not result.passed
    assert any(finding.startswith(by) for finding in result.findings), result.findings


def test_the_silos_as_documented_are_contradicted_no_oftener_than_stated() -> None:
    """16 audits at 95 %: a false alarm of this test once in 10⁵."""
    results = [audited(steps=2, canaries=40) for _ in range(16)]
    contradicted = sum(not result.passed for result in results)
    assert contradicted <= stats.binom.isf(1e-5, len(results), 0.05)
    for result in results:
        assert result.cohort_p_value is not None
        assert result.noise_p_value is not None
        assert result.noise_p_value > 1e-7


def test_an_audit_sees_what_there_is_to_see() -> None:
    """With ε of a hundred every canary is guessed right."""
    loud = replace(STEP, noise_multiplier=0.05, sampling_rate=1.0)
    result = audit_silo_steps(loud, steps=1, canaries=100)
    assert result.claimed_epsilon > 100
    assert result.passed
    assert result.epsilon_lower > 2
    assert result.cohort_p_value is None


def test_another_vector_is_refused() -> None:
    def short(silo: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
        return honest(silo, model, persons, step)[:-1]

    with pytest.raises(ValueError, match="silo 0 sent"):
        audited(short)
    with pytest.raises(TypeError, match="step is"):
        audit_silo_steps("step")  # type: ignore[arg-type]
