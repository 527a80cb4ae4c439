"""Private records are read by the accounted trainer alone, and paid for before."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from privacy.accounting import Budget
from privacy.inference import (
    PrivateData,
    PublicData,
    compile_model,
    replace_activations,
)
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, NominalCount, PoissonBatches
from privacy.training.errors import LocalBudgetError
from tests.privacy.inference.replacement.replacement_models import (
    deeper,
    drawn,
    mlp,
    public,
    trained,
)


def private(
    inputs: Tensor | None = None, ledger: ClientLedger | None = None, *, noise: float = 1.0
) -> PrivateData:
    records, labels = drawn()
    return PrivateData(
        inputs=records if inputs is None else inputs,
        labels=labels,
        stand_ins=torch.rand(500, 6, generator=torch.Generator().manual_seed(8)) * 2 - 1,
        protection=ClipAndNoise(
            clipping_norm=1.0, noise_multiplier=noise, delta=1e-5, count=NominalCount(records=400)
        ),
        batches=PoissonBatches(sampling_rate=0.25, steps=20),
        ledger=ClientLedger(dataset="ward-7") if ledger is None else ledger,
        learning_rate=0.02,
    )


def test_training_on_private_records_is_charged_to_their_ledger() -> None:
    ledger = ClientLedger(dataset="ward-7")
    result = replace_activations(trained(mlp(), public()), data=private(ledger=ledger))
    assert len(ledger.events) == 1
    assert result.training is not None
    assert result.training.epsilon == ledger.epsilon(delta=1e-5)
    assert 0 < ledger.epsilon(delta=1e-5) < math.inf
    assert result.training.guarantee.level == "record"
    assert "private" in result.report.data
    assert result.report.accuracy_before is None
    assert result.report.accuracy_after is None
    assert result.report.agreement > 0.8
    assert isinstance(result.model, nn.Sequential)
    assert all(each.requires_grad for each in result.model.parameters())
    compile_model(result.model, input_shape=6, input_range=(-1.0, 1.0))


def test_a_spent_budget_reads_no_record() -> None:
    ledger = ClientLedger(dataset="ward-7", budget=Budget(epsilon=1.0, delta=1e-5))
    with pytest.raises(LocalBudgetError):
        replace_activations(mlp(), data=private(ledger=ledger))
    assert ledger.events == ()


def test_records_reach_the_ranges_and_the_report_through_trained_weights_alone() -> None:
    """Ranges and fits are those of the stand-ins, whatever the records are."""
    model = trained(mlp(), public())
    records, _ = drawn()
    reports = [
        replace_activations(model, data=private(inputs)).report
        for inputs in (records, 100 * records)
    ]
    public_report = replace_activations(
        model, data=PublicData(private().stand_ins), epochs=0
    ).report
    kept = ("name", "low", "high", "degree", "fit_error")
    for row, other in zip(reports[0].activations, reports[1].activations, strict=True):
        (expected,) = public_report.activations
        for name in kept:
            assert getattr(row, name) == getattr(other, name) == getattr(expected, name)


def test_private_training_learns_to_answer_as_the_original() -> None:
    """With hardly any noise, which the ledger shows: the loss and the penalty are the same."""
    model = trained(deeper(), public(2000))
    data = dataclasses.replace(
        private(noise=1e-3), labels=None, batches=PoissonBatches(sampling_rate=0.25, steps=100)
    )
    inputs = torch.rand(2000, 6, generator=torch.Generator().manual_seed(77)) * 2 - 1
    fitted = replace_activations(model, data=PublicData(data.stand_ins), epochs=0).model
    result = replace_activations(model, data=data)
    with torch.no_grad():
        expected = model(inputs).argmax(1)
        before, after = (
            float((new(inputs).argmax(1) != expected).float().mean())
            for new in (fitted, result.model)
        )
    assert before > 0.05
    assert after < 0.6 * before


def test_batch_normalisation_is_frozen_for_the_training_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4))
    trained(model, public())
    new = replace_activations(model, data=private()).model
    assert isinstance(new, nn.Sequential)
    assert torch.equal(new[1].weight, model[1].weight)
    assert torch.equal(new[1].running_mean, model[1].running_mean)
    assert new[1].weight.requires_grad
    assert not torch.equal(new[0].weight, model[0].weight)


@pytest.mark.parametrize("name", ["epochs", "learning_rate", "logit_bits"])
def test_settings_of_public_training_are_refused_beside_private_records(name: str) -> None:
    given = {name: 1, "input_range": (0.0, 1.0)} if name == "logit_bits" else {name: 1}
    with pytest.raises(ValueError, match=f"{name} is given with PrivateData"):
        replace_activations(mlp(), data=private(), **given)  # type: ignore[arg-type]


def test_private_records_without_noise_are_refused() -> None:
    protection = ClipOnly(clipping_norm=1.0)
    with pytest.raises(TypeError, match="without noise no record is protected"):
        dataclasses.replace(private(), protection=protection)  # type: ignore[arg-type]


def test_stand_ins_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="alike but for their number"):
        private(inputs=torch.rand(400, 5))


def test_no_error_depends_on_what_a_record_holds() -> None:
    """Records that cannot be learned from add nothing; the charge is the same."""
    records, labels = drawn()
    broken = [
        {"inputs": torch.full_like(records, torch.nan)},
        {"labels": labels - 7},
        {"labels": labels + 7},
        {"inputs": records[:0], "labels": labels[:0]},
    ]
    for given in broken:
        data = dataclasses.replace(private(), **given)  # type: ignore[arg-type]
        result = replace_activations(mlp(), data=data)
        assert isinstance(data.ledger, ClientLedger)
        assert len(data.ledger.events) == 1
        assert all(bool(torch.isfinite(each).all()) for each in result.model.parameters())


def test_labels_of_private_records_are_integers_by_type() -> None:
    with pytest.raises(TypeError, match="integers"):
        dataclasses.replace(private(), labels=[0.0] * 400)
    with pytest.raises(ValueError, match="one each"):
        dataclasses.replace(private(), labels=[0] * 399)


def test_the_ledger_is_charged_before_a_record_is_looked_at() -> None:
    inner = trained(mlp(), public())
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), inner)
    seen: list[int] = []
    ledger = ClientLedger(dataset="ward-7")

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if float(inputs[0].detach().abs().max()) == 123.0:
            seen.append(len(ledger.events))

    model.register_forward_pre_hook(note)
    replace_activations(model, data=private(torch.full((400, 6), 123.0), ledger))
    assert seen
    assert set(seen) == {1}
