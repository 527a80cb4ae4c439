"""What cannot work is named where it is given, before anything is charged or trained."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import prune
from torch.optim import lr_scheduler
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from privacy.accounting import Full, GaussianRelease
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NoisyCount,
    NominalCount,
    Persons,
    PoissonBatches,
    SiloStep,
    check_silo_sum,
    train,
)
from privacy.training.errors import GradientError, UnsupportedModelError

INPUTS = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
TARGETS = torch.arange(20) % 3
PROTECTION = ClipAndNoise(
    clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=20)
)


def refusal(model: nn.Module | None = None, **changes: Any) -> str:
    """Why a training is refused; that it changes nothing is checked here.

    It charges where, and only where, it follows from the records.
    """
    model = nn.Linear(4, 3) if model is None else model
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    ledger = ClientLedger(dataset="d")
    schedule = changes.pop("schedule", None)
    arguments: dict[str, Any] = {
        "model": model,
        "data": (INPUTS, TARGETS),
        "loss": F.cross_entropy,
        "optimizer": optimizer,
        "protection": PROTECTION,
        "batches": FullBatch(steps=5),
        "schedule": schedule(optimizer) if schedule else None,
        "ledger": ledger,
    }
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((TypeError, ValueError, GradientError, UnsupportedModelError)) as caught:
        train(**(arguments | changes))
    assert bool(ledger.events) == isinstance(caught.value, GradientError)
    for name, values in model.state_dict().items():
        assert torch.equal(values, before[name])
    return str(caught.value)


class Pictures(Dataset[Any]):
    """Records of any kind."""

    def __init__(self, record: Callable[[int], object]) -> None:
        self.record = record

    def __len__(self) -> int:
        return 20

    def __getitem__(self, row: int) -> object:
        return self.record(row)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[object]:
        return iter(())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4), "loader.dataset"),
        (DataLoader(INPUTS, batch_size=10), "data is a DataLoader"),  # type: ignore[arg-type]
        ((INPUTS.numpy(), TARGETS.numpy()), "torch.from_numpy"),
        ((INPUTS, TARGETS.tolist()), "data"),
        ([(INPUTS[i], int(TARGETS[i])) for i in range(20)], "torch.stack"),
        (INPUTS, "one tensor"),
        ((INPUTS,), "inputs and targets"),
        ((INPUTS, TARGETS[:10]), r"(20, 4), (10,)"),
        ((INPUTS, torch.tensor(1)), "()"),
        ({"x": INPUTS, "y": TARGETS}, "data is a dict"),
        (INPUTS.numpy(), "data is a numpy.ndarray"),
        (None, "data is a NoneType"),
        ("images", "data is a str"),
        (Stream(), "map-style"),
        (Pictures(lambda i: {"img": INPUTS[i], "label": TARGETS[i]}), "['img', 'label']"),
        (Pictures(lambda i: INPUTS[i]), "(input, target)"),
        (Pictures(lambda i: (object(), 1)), "place 0"),
        (Pictures(lambda i: ("text", 1)), "place 0 of a record of data is a str"),
    ],
)
def test_data_of_another_kind_is_named(data: object, words: str) -> None:
    reason = refusal(data=data)
    assert words in reason
    assert "data" in reason


def test_one_record_of_another_kind_is_malformed_and_stops_nothing() -> None:
    data = Pictures(lambda i: None if i == 0 else (INPUTS[i], int(TARGETS[i])))
    model, ledger = nn.Linear(4, 3), ClientLedger(dataset="d")
    train(
        model,
        data,
        loss=F.cross_entropy,
        optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
        protection=PROTECTION,
        batches=FullBatch(),
        ledger=ledger,
    )
    assert ledger.events


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": nn.CrossEntropyLoss}, "CrossEntropyLoss()"),
        ({"loss": "cross_entropy"}, "loss is 'cross_entropy'"),
        ({"optimizer": 0.1}, "optimizer is 0.1"),
        ({"optimizer": torch.optim.SGD}, "optimizer is the class SGD"),
        ({"protection": 1.0}, "protection is 1.0"),
        ({"protection": ClipAndNoise}, "protection is the class ClipAndNoise"),
        ({"batches": 5}, "batches is 5"),
        ({"ledger": "ledger.json"}, "ledger is 'ledger.json'"),
        ({"ledger": None}, "ledger is None"),
        ({"physical_batch_size": 0}, "physical_batch_size is 0"),
        ({"physical_batch_size": 64.0}, "physical_batch_size is 64.0"),
        ({"physical_batch_size": True}, "physical_batch_size is True"),
        ({"randomness": np.random.default_rng(0)}, "randomness is Generator(PCG64)"),
        ({"randomness": 7}, "randomness is 7"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "LBFGS"),
        ({"optimizer": torch.optim.SparseAdam([nn.Parameter(torch.ones(1))])}, "SparseAdam"),
    ],
)
def test_arguments_of_another_kind_are_named(changes: dict[str, object], words: str) -> None:
    assert words in refusal(**changes)


def test_a_scripted_model_is_named() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is deprecated
        scripted = torch.jit.script(nn.Linear(4, 3))
    assert "scripted" in refusal(scripted)
    assert "scripted" in refusal(nn.Sequential(scripted, nn.Linear(3, 3)))


def test_what_a_ledger_cannot_be_made_of_is_named() -> None:
    with pytest.raises(TypeError, match=r"budget is 3\.0; give Budget"):
        ClientLedger(dataset="d", budget=3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path is 7; give the path of a file"):
        ClientLedger(dataset="d", path=7)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"path is 'ledger\.jsonl', a relative path"):
        ClientLedger(dataset="d", path="ledger.jsonl")


def test_the_path_of_a_ledger_is_taken_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    event = GaussianRelease(1.0, Full())
    ClientLedger(dataset="d", path="~/ledger.jsonl").charge(event)
    assert ClientLedger(dataset="d", path=tmp_path / "ledger.jsonl").events == (event,)


def private_already() -> tuple[nn.Module, torch.optim.Optimizer, DataLoader[Any]]:
    """What Opacus makes of a model, an optimizer and a loader."""
    model = nn.Sequential(nn.Linear(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its randomness is for tests
        return PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=5),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )


@pytest.mark.parametrize("place", ["whole", "inside", "left behind"])
@pytest.mark.parametrize("protection", [PROTECTION, ClipOnly(clipping_norm=1.0)])
def test_a_model_of_opacus_is_refused_before_the_charge(place: str, protection: object) -> None:
    model, _, _ = private_already()
    given = {
        "whole": model,
        "inside": nn.Sequential(model, nn.Linear(3, 3)),
        "left behind": model.get_submodule("_module"),  # with the hooks still on it
    }[place]
    assert "to_standard_module()" in refusal(given, protection=protection)


def test_an_optimizer_and_a_loader_of_opacus_are_refused_before_the_charge() -> None:
    model, optimizer, loader = private_already()
    bare = model.to_standard_module()  # type: ignore[operator]
    assert "optimizer.original_optimizer" in refusal(bare, optimizer=optimizer)
    assert "loader.dataset" in refusal(bare, data=loader)
    model, _, _ = private_already()  # its hooks are on
    persons = Persons((INPUTS, TARGETS), range(20))
    with pytest.raises(TypeError, match="to_standard_module"):
        check_silo_sum(model, persons, loss=F.cross_entropy)


def test_a_model_with_what_was_opacus_s_taken_off_is_trained() -> None:
    model, optimizer, loader = private_already()
    result = train(
        model.to_standard_module(),  # type: ignore[operator]
        loader.dataset,
        loss=F.cross_entropy,
        optimizer=optimizer.original_optimizer,  # type: ignore[attr-defined]
        protection=PROTECTION,
        batches=FullBatch(),
        ledger=ClientLedger(dataset="d"),
    )
    assert result.steps == 1


@pytest.mark.parametrize(
    ("call", "name", "instead"),
    [
        (train, "max_grad_norm", r"protection=ClipAndNoise\(clipping_norm"),
        (train, "noise_multiplier", r"protection=ClipAndNoise\(clipping_norm"),
        (train, "target_epsilon", "calibrate_noise_multiplier"),
        (train, "max_physical_batch_size", "give physical_batch_size"),
        (train, "device", r"model\.to\(device\)"),
        (train, "criterion", "give loss"),
        (train, "epochs", r"PoissonBatches\.epochs"),
        (ClipAndNoise, "max_grad_norm", "give clipping_norm"),
        (ClipAndNoise, "target_epsilon", "calibrate_noise_multiplier"),
        (ClipAndNoise, "target_delta", "give delta"),
        (ClipAndNoise, "clip_norm", "give clipping_norm"),  # misspelt
        (ClipOnly, "max_grad_norm", "give clipping_norm"),
        (PoissonBatches, "sample_rate", "give sampling_rate"),
        (PoissonBatches, "epochs", r"PoissonBatches\.epochs"),
        (PoissonBatches.epochs, "sample_rate", "give sampling_rate"),
        (GradientDescent, "lr", "give learning_rate"),
        (SiloStep, "max_grad_norm", "give clipping_norm"),
    ],
)
def test_the_usual_names_of_arguments_are_answered_with_ours(
    call: Callable[..., Any], name: str, instead: str
) -> None:
    with pytest.raises(TypeError, match=f"{name}: not an argument here; .*{instead}"):
        call(**{name: 1})


class Positions(nn.Module):
    """Looks positions up once for all examples."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.last = nn.Embedding(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = self.position(torch.arange(4)[None])
        return self.last((x[..., None] * places).sum(1))


@pytest.mark.parametrize("protection", [PROTECTION, ClipOnly(clipping_norm=1.0)])
def test_positions_for_all_examples_at_once_are_refused_with_what_to_do(
    protection: object,
) -> None:
    assert "positions.expand(len(x), -1)" in refusal(Positions(), protection=protection)


def test_a_model_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match=r"model is \{\}; give an nn\.Module"):
        train(
            {},  # type: ignore[arg-type]
            (INPUTS, TARGETS),
            loss=F.cross_entropy,
            optimizer=torch.optim.SGD(nn.Linear(1, 1).parameters()),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FullBatch(steps=1.5), "steps is 1.5"),  # type: ignore[arg-type]
        (lambda: FullBatch(steps=True), "steps is True"),
        (lambda: PoissonBatches(sampling_rate="0.1", steps=1), "sampling_rate is '0.1'"),  # type: ignore[arg-type]
        (lambda: PoissonBatches(sampling_rate=0.1, steps=2.0), "steps is 2.0"),  # type: ignore[arg-type]
        (lambda: PoissonBatches.epochs(1, sampling_rate=1), "sampling_rate is 1"),
        (lambda: NominalCount(records=10.5), "records is 10.5"),  # type: ignore[arg-type]
        (lambda: NoisyCount(noise_multiplier=None), "noise_multiplier is None"),  # type: ignore[arg-type]
        (lambda: ClipOnly(clipping_norm="1"), "clipping_norm is '1'"),  # type: ignore[arg-type]
        (
            lambda: ClipAndNoise(
                clipping_norm=1.0,
                noise_multiplier=1.0,
                delta=1e-5,
                count=100,  # type: ignore[arg-type]
            ),
            "count is 100",
        ),
        (lambda: GradientDescent(nn.Linear(1, 1), learning_rate=1.0), "model.parameters()"),  # type: ignore[arg-type]
        (
            lambda: GradientDescent(nn.Linear(1, 1).state_dict(), learning_rate=1.0),
            "model.parameters()",
        ),
    ],
)
def test_plans_of_another_kind_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        make()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        (lr_scheduler.ReduceLROnPlateau, "ReduceLROnPlateau needs a metric"),
        (lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=3), "5 times"),
        (
            lambda _: lr_scheduler.StepLR(torch.optim.SGD(nn.Linear(1, 1).parameters()), 1),
            "another optimizer",
        ),
        (lambda _: 0.9, "schedule is 0.9"),
    ],
)
def test_a_schedule_that_cannot_be_stepped_is_refused_before_the_charge(
    schedule: Callable[[Any], Any], words: str
) -> None:
    assert words in refusal(schedule=schedule)


def test_trying_a_schedule_leaves_it_as_it_was() -> None:
    model = nn.Linear(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    schedule = lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=4)
    rates = []
    optimizer.register_step_pre_hook(
        lambda stepped, *_: rates.append(stepped.param_groups[0]["lr"])
    )
    train(
        model,
        (INPUTS, TARGETS),
        loss=F.cross_entropy,
        optimizer=optimizer,
        schedule=schedule,
        protection=ClipOnly(clipping_norm=1.0),
        batches=FullBatch(steps=3),
    )
    plain = torch.optim.Adam(nn.Linear(4, 3).parameters(), lr=0.1)
    alone = lr_scheduler.OneCycleLR(plain, 0.5, total_steps=4)
    expected = []
    for _ in range(3):
        expected.append(plain.param_groups[0]["lr"])
        plain.step()
        alone.step()
    assert rates == expected
    assert schedule.last_epoch == 3


class TiedHead(nn.Module):
    """The table read again as the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inside = nn.Embedding(6, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inside(self.table(x).mean(1))
        return F.linear(h, self.table.weight)


class Drawing(nn.Module):
    """Parameters of its own, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.scale * x, 0.5)


class Borrowing(nn.Module):
    """A module of its own that works with another's parameter."""

    def __init__(self, other: nn.Linear) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.borrowed = [other]

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.borrowed[0].weight.sum() * x


def penalised(model: nn.Linear, strength: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each + strength * model.weight.square().sum()

    return loss


@pytest.mark.parametrize("protection", [PROTECTION, ClipOnly(clipping_norm=1.0)])
class TestGradientsThatWouldBeWrong:
    """With noise and without: what is clipped is not the gradient."""

    def test_a_tied_head(self, protection: object) -> None:
        ids = torch.arange(60).reshape(20, 3) % 6
        assert "table.weight" in refusal(TiedHead(), data=(ids, TARGETS), protection=protection)

    @pytest.mark.parametrize("strength", [1.0, 1e-9])
    def test_a_parameter_in_the_loss(self, protection: object, strength: float) -> None:
        model = nn.Linear(4, 3)
        reason = refusal(model, loss=penalised(model, strength), protection=protection)
        assert "'weight'" in reason
        assert "weight_decay" in reason

    def test_a_parameter_in_another_layer(self, protection: object) -> None:
        last = nn.Linear(4, 3)
        model = nn.Sequential(Borrowing(last), last)
        assert "'1.weight'" in refusal(model, protection=protection)

    @pytest.mark.parametrize("hook", ["weight_norm", "spectral_norm", "pruning"])
    def test_old_hooks_that_compute_the_weight(self, protection: object, hook: str) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        if hook == "pruning":
            prune.random_unstructured(model[0], "weight", 0.5)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                getattr(nn.utils, hook)(model[0])
        assert "'0' (Linear)" in refusal(model, protection=protection)

    def test_a_forward_of_the_instances_own(self, protection: object) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        layer = model[0]
        layer.forward = lambda x: F.linear(x, 2 * layer.weight, layer.bias)
        assert "do not add up" in refusal(model, protection=protection)

    def test_a_module_of_ones_own_that_draws(self, protection: object) -> None:
        """Its masks could not be drawn again for each example."""
        model = nn.Sequential(Drawing(), nn.Linear(4, 3))
        assert "'0' (Drawing)" in refusal(model, protection=protection)

    @pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
    def test_hooks_on_a_parameter(self, protection: object, kind: str) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
        getattr(model[0].weight, kind)(lambda gradient: None)
        assert "'0.weight' has a hook" in refusal(model, protection=protection)

    def test_a_backward_pass_that_cannot_be_followed(self, protection: object) -> None:
        class Checkpointed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first, self.inside, self.last = (nn.Linear(4, 4) for _ in range(3))

            def forward(self, x: Tensor) -> Tensor:
                return self.last(checkpoint(self.inside, self.first(x), use_reentrant=True))

        assert "use_reentrant=False" in refusal(Checkpointed(), protection=protection)

    def test_complex_parameters(self, protection: object) -> None:
        model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64))
        assert "complex64" in refusal(model, protection=protection)


def test_hooks_on_what_layers_return_are_followed() -> None:
    """A hook that doubles an output doubles the gradient."""

    def step(*layers: nn.Module) -> Tensor:
        torch.manual_seed(0)
        first, last = nn.Linear(4, 4), nn.Linear(4, 3)
        if not layers:
            first.register_forward_hook(lambda *seen: 2 * seen[2])
        model = nn.Sequential(first, *layers, last)
        train(
            model,
            (INPUTS, TARGETS),
            loss=F.cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
            protection=ClipOnly(clipping_norm=1e6),
            batches=FullBatch(),
        )
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    torch.testing.assert_close(step(), step(Doubled()))


def test_weight_norm_as_a_parametrization_trains_by_its_own_gradient_or_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(model[0])
    before = copy.deepcopy(model)
    try:
        train(
            model,
            (INPUTS, TARGETS),
            loss=F.cross_entropy,
            optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
            protection=ClipOnly(clipping_norm=1e6),
            batches=FullBatch(),
        )
    except (GradientError, UnsupportedModelError) as error:
        assert "'0" in str(error)  # noqa: PT017
        return
    gradients = torch.autograd.grad(
        F.cross_entropy(before(INPUTS), TARGETS), list(before.parameters())
    )
    for new, old, gradient in zip(model.parameters(), before.parameters(), gradients, strict=True):
        torch.testing.assert_close(new.detach(), old.detach() - gradient, rtol=1e-4, atol=1e-5)


class Head(nn.Module):
    """Three classes by one layer; another has no part in them."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.used, self.unused, self.way = nn.Linear(4, 3), nn.Linear(4, 2), way

    def forward(self, inputs: Tensor) -> Tensor:
        return self.way(self.used(inputs))


def _hard(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs.argmax(1) != targets).float()


NO_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "detached": lambda o, t: F.cross_entropy(o.detach(), t, reduction="none"),
    "hard predictions": _hard,
    "constant": lambda o, t: torch.ones(len(t)),
    "of the targets alone": lambda o, t: t.float(),
    "by NumPy": lambda o, t: torch.from_numpy(o.detach().numpy().sum(1)),
}


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_a_loss_without_a_gradient_is_refused(name: str) -> None:
    assert "gives no trainable parameter a gradient" in refusal(loss=NO_GRADIENT[name])
    model = nn.Linear(4, 3)
    with pytest.raises(GradientError, match="gives no trainable parameter a gradient"):
        train(
            model,
            (INPUTS, TARGETS),
            loss=NO_GRADIENT[name],
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(steps=1),
        )


@pytest.mark.parametrize("way", [Tensor.detach, torch.no_grad()(lambda o: 2 * o)])
def test_a_model_that_cuts_its_gradient_off_is_refused(way: Callable[[Tensor], Tensor]) -> None:
    assert "gives no trainable parameter a gradient" in refusal(Head(way))


def test_a_layer_that_has_no_part_in_the_loss_is_accepted() -> None:
    model = Head(torch.relu)
    before = copy.deepcopy(model.state_dict())
    train(
        model,
        (INPUTS, TARGETS),
        loss=F.cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        protection=ClipOnly(clipping_norm=1.0),
        batches=FullBatch(steps=1),
    )
    assert not torch.equal(model.used.weight, before["used.weight"])
    assert torch.equal(model.unused.weight, before["unused.weight"])
