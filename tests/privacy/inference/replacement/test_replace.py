"""Fitting and fine-tuning: the new model does as the old one, which stays as it was."""

import copy
import io
import json
import logging
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from privacy.inference import (
    Polynomial,
    PublicData,
    compile_model,
    logit_bound,
    replace_activations,
)
from privacy.inference.errors import CannotPlanError, ReplacementError
from privacy.inference.replacement.tuning import Imitation, tune, watched
from tests.privacy.inference.replacement.replacement_models import (
    deeper,
    drawn,
    mlp,
    public,
    trained,
)


def deep(activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(6, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 4)
    )


def normalised() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(16, 16),
        nn.BatchNorm1d(16),
        nn.GELU(),
        nn.Linear(16, 4),
    )


def states(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_fine_tuning_brings_the_new_model_near_the_old_one_with_labels_or_without() -> None:
    data = public(2000)
    model = trained(deeper(), data)
    inputs = torch.rand(2000, 6, generator=torch.Generator().manual_seed(77)) * 2 - 1

    def disagreement(epochs: int, data: PublicData) -> float:
        new = replace_activations(model, data=data, epochs=epochs).model
        with torch.no_grad():
            return float((new(inputs).argmax(1) != model(inputs).argmax(1)).float().mean())

    fitted = disagreement(0, data)
    assert fitted > 0.05
    assert disagreement(5, data) < fitted / 2
    assert disagreement(5, PublicData(data.inputs)) < fitted / 2


def test_training_keeps_values_inside_the_ranges() -> None:
    """Ranges leave out one value in 10,000 on either side of those that they were observed on."""
    report = replace_activations(trained(deep(), public(2000)), data=public(2000), epochs=5).report
    assert all(row.outside < 2e-3 for row in report.activations)


def test_a_value_outside_its_range_costs_and_training_brings_it_back() -> None:
    """In ranges of half the width that values have, with the teacher's answers as they are."""
    data = PublicData(drawn(1000)[0])
    result = replace_activations(trained(deep(), public(1000)), data=data, epochs=0)
    new, inputs = result.model, data.inputs
    assert isinstance(inputs, Tensor)
    ranges = {row.name: (row.low / 2, row.high / 2) for row in result.report.activations}
    with torch.no_grad():
        targets = new(inputs)
    shares = []
    for epochs in (0, 20):
        tune(
            new,
            inputs,
            targets,
            loss=Imitation(spread=float(targets.std()), labelled=False),
            ranges=ranges,
            epochs=epochs,
            batch_size=64,
            learning_rate=1e-3,
            bound=None,
            bits=0.0,
            seed=0,
        )
        with torch.no_grad(), watched(new, ranges) as outside:
            new(inputs)
        shares.append([float(share) for share in outside.shares.values()])
    for before, after in zip(*shares, strict=True):
        assert before > 0.02
        assert after < 0.85 * before


def test_the_original_model_stays_as_it_was() -> None:
    model = trained(normalised(), public())
    model.train()
    before, children = states(model), dict(model.named_modules())
    gradients = [(each.requires_grad, each.grad) for each in model.parameters()]
    replace_activations(model, data=public(), epochs=1)
    assert same(states(model), before)
    assert dict(model.named_modules()) == children
    assert all(each.training for each in model.modules())
    for parameter, (learns, gradient) in zip(model.parameters(), gradients, strict=True):
        assert parameter.requires_grad == learns
        assert parameter.grad is gradient


@pytest.mark.parametrize("training", [False, True])
def test_layers_stay_in_their_modes(training: bool) -> None:
    model = trained(normalised(), public()).train(training)
    model[3].eval()
    new = replace_activations(model, data=public(), epochs=1).model
    modes = {name: each.training for name, each in new.named_modules()}
    assert modes == {name: each.training for name, each in model.named_modules()}


def test_batch_normalisation_keeps_its_statistics_and_the_result_compiles() -> None:
    model = trained(normalised(), public(2000))
    result = replace_activations(model, data=public(2000), epochs=3)
    new = result.model
    assert isinstance(new, nn.Sequential)
    for index in (1, 5):
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(getattr(new[index], name), getattr(model[index], name))
    compiled = compile_model(new, input_shape=6, input_range=(-1.0, 1.0))
    inputs = drawn(50)[0].double().numpy()
    with torch.no_grad():
        expected = new(torch.from_numpy(inputs).float()).numpy()
    assert np.allclose(compiled.predict(inputs), expected, atol=1e-4 * np.abs(expected).max())


def test_frozen_weights_stay_frozen() -> None:
    model = trained(deep(), public())
    model[0].requires_grad_(False)
    new = replace_activations(model, data=public(), epochs=2).model
    assert isinstance(new, nn.Sequential)
    assert torch.equal(new[0].weight, model[0].weight)
    assert not new[0].weight.requires_grad
    assert not torch.equal(new[2].weight, model[2].weight)


def test_the_same_seed_gives_the_same_model_and_another_seed_another() -> None:
    model = trained(deep(), public())
    random = torch.random.get_rng_state()
    first = replace_activations(model, data=public(), epochs=2, seed=3)
    second = replace_activations(model, data=public(), epochs=2, seed=3)
    other = replace_activations(model, data=public(), epochs=2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert same(states(first.model), states(second.model))
    assert first.report == second.report
    assert not same(states(first.model), states(other.model))


def test_a_saved_state_fits_the_same_architecture() -> None:
    result = replace_activations(trained(deep(), public()), data=public(), epochs=1)
    file = io.BytesIO()
    torch.save(result.model.state_dict(), file)
    file.seek(0)
    rows = result.report.activations
    again = deep()
    for row in rows:
        again[int(row.name)] = Polynomial([1.0] * (row.degree + 1), trainable=True)
    again.load_state_dict(torch.load(file, weights_only=True))
    inputs, _ = drawn(20)
    assert torch.equal(again(inputs), result.model(inputs))


def test_a_copy_answers_as_the_new_model() -> None:
    result = replace_activations(trained(deep(), public()), data=public(), epochs=1)
    inputs, _ = drawn(20)
    assert torch.equal(copy.deepcopy(result.model)(inputs), result.model(inputs))


@pytest.mark.parametrize("degree", range(2, 8))
def test_the_levels_of_the_report_are_the_compilers(degree: int) -> None:
    """Its refusal of a model beyond all rings names them."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(40):
        layers += [nn.Linear(6, 6), nn.SiLU()]
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=1.5)
    result = replace_activations(model, data=public(), degree=degree, epochs=0)
    assert isinstance(result.model, nn.Sequential)
    with pytest.raises(CannotPlanError, match=f"needs {result.report.levels} levels"):
        compile_model(result.model, input_shape=6, input_range=(-0.1, 0.1))


def test_a_budget_of_levels_goes_where_the_fit_is_worst() -> None:
    model = nn.Sequential(
        *(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 4))
    )
    torch.manual_seed(4)
    trained(model, public())
    with pytest.raises(CannotPlanError, match="give levels=3"):
        replace_activations(model, data=public(), levels=2, epochs=0)
    degrees = []
    for levels in (3, 4, 5, 7, 20):
        report = replace_activations(model, data=public(), levels=levels, epochs=0).report
        assert report.levels <= levels
        degrees.append(tuple(row.degree for row in report.activations))
    assert degrees == [(2, 2), (4, 2), (4, 4), (7, 7), (7, 7)]


def test_training_lowers_the_bound_of_the_logits() -> None:
    model = trained(deep(nn.Tanh), public())
    bounds = []
    for bits in (None, 8.0):
        given = {} if bits is None else {"input_range": ([-1.0] * 6, 1.0), "logit_bits": bits}
        new = replace_activations(model, data=public(), epochs=60, **given).model  # type: ignore[arg-type]
        assert isinstance(new, nn.Sequential)
        bound = logit_bound(new, input_shape=6, input_range=(-1.0, 1.0))
        bounds.append(bound.log2().item())
    assert bounds[0] > 10
    assert bounds[1] < 9


class _Skipping(nn.Module):
    """A block with a skip, one activation at both places: replaced, it is an fx.GraphModule."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        return cast(Tensor, self.last(x + torch.tanh(self.inner(x))))


def test_training_lowers_the_bound_of_a_network_with_skips() -> None:
    model = trained(_Skipping(), public())
    bounds = []
    for bits in (100.0, 7.0):
        given = {"input_range": (-1.0, 1.0), "logit_bits": bits}
        new = replace_activations(model, data=public(), epochs=40, **given)  # type: ignore[arg-type]
        assert isinstance(new.model, fx.GraphModule)
        assert new.report.accuracy_after is not None
        assert new.report.accuracy_after > 0.9
        bound = logit_bound(new.model, input_shape=6, input_range=(-1.0, 1.0))
        bounds.append(bound.log2().item())
    assert bounds[0] > 10
    assert bounds[1] < 9


def test_one_logit_is_taught_and_decided_by_its_sign() -> None:
    inputs, quarters = drawn(2000)
    labels = (quarters % 2).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(inputs)[:, 0], labels).backward()
        optimizer.step()
    report = replace_activations(model, data=PublicData(inputs, labels), epochs=3).report
    assert report.accuracy_before is not None
    assert report.accuracy_before > 0.95
    assert report.agreement > 0.95


def test_a_model_in_double_precision_stays_in_it() -> None:
    model = trained(deep(), public()).double()
    new = replace_activations(model, data=public(), epochs=1).model
    assert {each.dtype for each in new.parameters()} == {torch.float64}


def test_the_report_reads_as_json_and_as_a_table() -> None:
    report = replace_activations(trained(deep(), public()), data=public(), epochs=1).report
    read = json.loads(report.to_json())
    assert read["levels"] == 3
    assert [row["activation"] for row in read["activations"]] == ["ReLU", "ReLU"]
    table = str(report)
    for part in ("range", "outside", "accuracy", "agreement", "public"):
        assert part in table
    assert f"{report.agreement:.2%} of {report.inputs:,} inputs" in table


def test_long_work_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "privacy.inference"):
        replace_activations(mlp(), data=public(), epochs=2)
    assert "became a polynomial of degree 2" in caplog.text
    assert "6 of 6 steps" in caplog.text


def test_training_that_diverges_is_told() -> None:
    with pytest.raises(ReplacementError, match="learning_rate below"):
        replace_activations(deep(), data=public(), degree=7, epochs=20, learning_rate=1e4)


def test_a_bound_beyond_single_precision_is_told() -> None:
    layers = [layer for _ in range(5) for layer in (nn.Linear(6, 6), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(6, 4))
    given = {"input_range": (-1e3, 1e3), "logit_bits": 20}
    with pytest.raises(ReplacementError, match=r"model.double\(\)"):
        replace_activations(model, data=public(), degree=4, epochs=1, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "kind", "reason"),
    [
        ({"data": drawn()}, TypeError, "PublicData"),
        ({"degree": 8}, ValueError, "degree"),
        ({"degree": 1}, ValueError, "degree"),
        ({"degree": 2, "levels": 3}, ValueError, "one of them"),
        ({"levels": 1}, ValueError, "levels"),
        ({"epochs": -1}, ValueError, "epochs"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"logit_bits": 20}, ValueError, "input_range"),
        ({"input_range": (0.0, 1.0)}, ValueError, "logit_bits"),
        ({"input_range": (1.0, 0.0), "logit_bits": 20}, ValueError, "input_range"),
        ({"data": PublicData(torch.rand(40, 5))}, ValueError, "shape"),
        ({"data": PublicData(torch.rand(9, 6))}, ValueError, "10 or more"),
        ({"data": PublicData(torch.rand(20, 6), [7] * 20)}, ValueError, "labels hold 7"),
    ],
)
def test_arguments_are_refused_by_name(
    given: dict[str, object], kind: type[Exception], reason: str
) -> None:
    arguments = {"data": public()} | given
    with pytest.raises(kind, match=reason):
        replace_activations(mlp(), **arguments)  # type: ignore[arg-type]


def test_a_model_is_no_classifier_of_another_shape() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Unflatten(1, (2, 2)))
    with pytest.raises(ValueError, match=r"\(inputs, logits\)"):
        replace_activations(model, data=public())
    with pytest.raises(TypeError, match="trained nn"):
        replace_activations("model", data=public())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "labels", "reason"),
    [
        (torch.rand(6), None, "inputs has shape"),
        (torch.full((20, 6), torch.nan), None, "NaN"),
        (torch.rand(20, 6), [1] * 19, "one each"),
        (torch.rand(20, 6), [0.5] * 20, "classes"),
        (torch.rand(20, 6), [-1] * 20, "classes"),
    ],
)
def test_data_that_are_no_inputs_and_classes_are_refused(
    inputs: Tensor, labels: list[float] | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        PublicData(inputs, labels)


def test_a_model_in_half_precision_is_refused_with_the_precision_to_give() -> None:
    with pytest.raises(ValueError, match=r"float16, too coarse to train in; give model\.float\(\)"):
        replace_activations(mlp().half(), data=public())
    assert replace_activations(mlp().half().float(), data=public(), epochs=1).report.levels == 2
