"""The audit of silos' sums, of what a silo makes of a server's request: before it is masked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord
from torch import nn
from torch.nn.functional import mse_loss

from privacy.audit import AuditResult, audit_silo_steps
from privacy.mechanisms import SiloGaussian
from privacy.training import Persons, SiloStep
from strategies import SiloTask
from strategies.distributed_dpsgd import silo_sums
from strategies.distributed_dpsgd.requests import GradientSum, read_request
from strategies.distributed_dpsgd.silo_sums import _gradients
from strategies.model_schema import ModelSchema

STEP = SiloStep(
    mechanism=SiloGaussian(4, 1),
    clipping_norm=0.5,
    noise_multiplier=4.0,
    sampling_rate=0.3,
    persons=10_000,
)


def answered(number: int, model: nn.Module, persons: Persons, step: SiloStep) -> Any:
    """A silo's sum for the request that a server writes for such a step."""
    record = ConfigRecord({"message": b""})
    GradientSum(
        unit="person",
        persons=60,
        clipping_norm=step.clipping_norm,
        sampling_rate=step.sampling_rate,
        noise_multiplier=step.noise_multiplier,
        mechanism=step.mechanism,
    ).write_into(record)
    request = read_request(record)
    assert isinstance(request, GradientSum)
    task = SiloTask(model=model, loss=mse_loss, persons=lambda: persons)
    return _gradients(request, task, ModelSchema(ArrayRecord(model.state_dict())))


def audited(**changed: Any) -> AuditResult:
    usual: dict[str, Any] = {"steps": 4, "canaries": 60}
    return audit_silo_steps(STEP, silo=answered, **usual | changed)


def test_a_silo_does_what_its_ledger_says() -> None:
    """At 95 % confidence one audit of a sound silo in 20 would say otherwise; three hardly ever."""
    assert any(audited().passed for _ in range(3))


def rows_alone(load: Callable[[], Persons], request: Any) -> Persons:
    persons = load()
    return Persons(persons.take(torch.arange(persons.rows)))


def half_the_noise(**given: Any) -> SiloStep:
    return SiloStep(**{**given, "noise_multiplier": given["noise_multiplier"] / 2})


@pytest.mark.parametrize(
    ("name", "mutant", "words", "how"),
    [
        (f"{silo_sums.__name__}._loaded", rows_alone, "canary persons:", {"rows": 48, "steps": 5}),
        ("privacy.training.SiloStep", half_the_noise, "noise:", {}),
    ],
)
def test_a_silo_that_does_less_is_caught_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, mutant: Any, words: str, how: dict[str, int]
) -> None:
    monkeypatch.setattr(name, mutant)
    result = audited(**how)
    assert not result.passed
    assert any(finding.startswith(words) for finding in result.findings)
