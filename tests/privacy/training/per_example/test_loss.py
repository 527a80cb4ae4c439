"""A loss has one value an example, in which no other example has a part, or is refused."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
)
from privacy.training.errors import GradientError
from tests.privacy.training.one_step import (
    CLASSES,
    Loss,
    flat_data,
    focal,
    noised,
    refused,
    trained,
)


def ctc(outputs: Tensor, targets: Tensor) -> Tensor:
    """A word of one letter in what a classifier says as two time steps."""
    steps = torch.stack([outputs, outputs.flip(1)]).log_softmax(2)
    ones = torch.ones(len(outputs), dtype=torch.long)
    letters = targets[:, None] % (CLASSES - 1) + 1
    return F.ctc_loss(steps, letters, 2 * ones, ones, reduction="none")


def one_hot_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - F.one_hot(targets, CLASSES)).square().mean(1)


def picky(outputs: Tensor, targets: Tensor) -> Tensor:
    """Python decides by value, which torch.func.vmap cannot follow."""
    return torch.stack([o.logsumexp(0) - o[int(t)] for o, t in zip(outputs, targets, strict=True)])


class Subclassed(nn.CrossEntropyLoss):
    """A forward of its own."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().forward(outputs * 2, targets)


SEPARATE: dict[str, tuple[Loss, Loss]] = {
    # what is given, and its mean as torch has it
    "function": (F.cross_entropy, F.cross_entropy),
    "module": (nn.CrossEntropyLoss(), F.cross_entropy),
    "summed": (nn.CrossEntropyLoss(reduction="sum"), F.cross_entropy),
    "smoothed": (
        nn.CrossEntropyLoss(label_smoothing=0.2),
        partial(F.cross_entropy, label_smoothing=0.2),
    ),
    "partial": (partial(F.cross_entropy, label_smoothing=0.1),) * 2,
    "ignoring none": (nn.CrossEntropyLoss(ignore_index=9), F.cross_entropy),
    "equal weights": (
        nn.CrossEntropyLoss(weight=torch.full((CLASSES,), 0.5)),
        lambda o, t: 0.5 * F.cross_entropy(o, t),
    ),
    "focal": (focal, lambda o, t: focal(o, t).mean()),
    "ctc": (ctc, lambda o, t: ctc(o, t).mean()),
    "margin": (nn.MultiMarginLoss(), F.multi_margin_loss),
    "squares": (one_hot_error, lambda o, t: F.mse_loss(o, F.one_hot(t, CLASSES).float())),
    "lambda": (lambda o, t: F.cross_entropy(o, t, reduction="none"), F.cross_entropy),
    "picky": (picky, F.cross_entropy),
    "subclass": (Subclassed(), lambda o, t: F.cross_entropy(2 * o, t)),
}

# How an example's loss comes to depend on the others', given the losses of each alone.
MIXED: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "over the number": lambda each, o, t: each / len(t),
    "over the sum": lambda each, o, t: each / each.sum(),
    "minus the mean": lambda each, o, t: each - each.mean(),
    "times the mean, detached": lambda each, o, t: each * each.detach().mean(),
    "over the largest": lambda each, o, t: each / each.detach().max(),
    "balanced": lambda each, o, t: each / torch.bincount(t, minlength=CLASSES)[t],
    "targets centred": lambda each, o, t: each * (t - t.float().mean()),
    "next one's target": lambda each, o, t: each + o.gather(1, t.roll(1)[:, None])[:, 0],
    "ranked": lambda each, o, t: each * each.detach().argsort().argsort(),
    "centred outputs": lambda each, o, t: each + (o - o.mean(0)).square().sum(1),
    "in large batches": lambda each, o, t: each * (1 if len(t) < 4 else 2),
    "by place": lambda each, o, t: each * torch.arange(1, len(t) + 1),
    "a batch's triplets": lambda each, o, t: each + torch.cdist(o, o).mean(1),
    "a little": lambda each, o, t: each * (1 + 0.1 * each.detach().mean()),
}


@pytest.mark.parametrize("name", SEPARATE)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_a_loss_of_each_example_alone_is_taken_and_its_mean_is_torchs(name: str, seed: int) -> None:
    loss, mean = SEPARATE[name]
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    data = flat_data()
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    gradients = torch.autograd.grad(mean(model(data[0]), data[1]), list(model.parameters()))
    step = trained(model, data, loss, ClipOnly(clipping_norm=1e6)) - before
    expected = -torch.cat([gradient.flatten() for gradient in gradients])
    torch.testing.assert_close(step, expected, rtol=1e-4, atol=1e-5)
    trained(model, data, loss, noised(), ClientLedger(dataset="d"))


@settings(max_examples=40, deadline=None)
@given(
    base=st.sampled_from(["function", "focal", "squares", "picky", "lambda"]),
    mixture=st.sampled_from(sorted(MIXED)),
    seed=st.integers(0, 2**31),
)
def test_a_loss_that_mixes_examples_is_refused_whatever_it_is_made_of(
    base: str, mixture: str, seed: int
) -> None:
    given_loss, mix = SEPARATE[base][0], MIXED[mixture]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if given_loss is F.cross_entropy:
            return mix(F.cross_entropy(outputs, targets, reduction="none"), outputs, targets)
        return mix(given_loss(outputs, targets), outputs, targets)

    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, CLASSES))
    assert "the loss" in refused(model, flat_data(), loss)


@settings(max_examples=15, deadline=None)
@given(mixture=st.sampled_from(sorted(MIXED)), threshold=st.integers(6, 12), bad=st.floats(-9, 9))
def test_what_a_trial_cannot_see_in_a_loss_still_moves_a_step_by_one_norm(
    mixture: str, threshold: int, bad: float
) -> None:
    """A loss that mixes in larger batches than are tried has no batch to mix."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each if len(targets) < threshold else MIXED[mixture](each, outputs, targets)

    inputs, targets = flat_data(16)
    inputs, targets = inputs.double(), targets
    more = torch.cat([inputs, torch.full((1, 5), bad, dtype=torch.float64)])

    def step(*data: Tensor) -> Tensor:
        model = nn.Linear(5, CLASSES).double()
        nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
        return trained(model, data, loss, noised(0.1), ClientLedger(dataset="d"))

    moved = step(more, torch.cat([targets, targets[:1]])) - step(inputs, targets)
    assert float(moved.norm()) <= 0.1 * (1 + 1e-9)


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(), nn.L1Loss(), F.smooth_l1_loss, nn.HuberLoss(), nn.BCEWithLogitsLoss()],
    ids=lambda loss: getattr(loss, "__name__", type(loss).__name__),
)
@pytest.mark.parametrize("protection", [ClipOnly(clipping_norm=1.0), noised()])
def test_outputs_and_targets_that_would_be_broadcast_are_named(
    loss: Loss, protection: ClipOnly | ClipAndNoise
) -> None:
    ledger = ClientLedger(dataset="d")
    with pytest.raises(ValueError, match=r"\(5, 1\) with targets of shape \(5,\)"):
        trained(nn.Linear(5, 1), (flat_data()[0], torch.rand(12)), loss, protection, ledger)
    trained(nn.Linear(5, 1), (flat_data()[0], torch.rand(12, 1)), loss, protection, ledger)


def test_a_broadcast_in_a_loss_of_ones_own_is_refused() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean(1)

    reason = refused(nn.Linear(5, 1), (flat_data()[0], torch.rand(12)), loss)
    assert "(5, 1)" in reason
    assert "(5,)" in reason


@pytest.mark.parametrize("weight", [torch.ones(5), torch.arange(5.0)])
def test_weights_by_place_in_the_batch_are_refused(weight: Tensor) -> None:
    """Also where noise is not added: the loss of an example alone is another, or none."""
    data = flat_data(5)[0], torch.rand(5)
    model = nn.Sequential(nn.Linear(5, 1), nn.Flatten(0))
    loss = nn.BCEWithLogitsLoss(weight=weight)
    refused(model, data, loss)
    with pytest.raises(GradientError):
        trained(model, data, loss, ClipOnly(clipping_norm=1.0))


def test_weights_of_positives_are_taken() -> None:
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0]))
    data = flat_data()[0], torch.ones(12, 2)
    trained(nn.Linear(5, 2), data, loss, noised(), ClientLedger(dataset="d"))


def test_a_loss_that_remembers_is_refused() -> None:
    seen: list[Tensor] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        seen.append(outputs.detach().sum())
        return F.cross_entropy(outputs, targets, reduction="none") * len(seen)

    assert "asked again" in refused(nn.Linear(5, CLASSES), flat_data(), loss)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 5.0, 0.2, 0.0])])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_padding_is_left_out_of_an_examples_mean(weight: Tensor | None, smoothing: float) -> None:
    """As torch does for one example alone; its other examples' padding plays no part."""
    options: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
    torch.manual_seed(0)
    inputs, targets = torch.randn(3, 6, 5), torch.randint(0, CLASSES, (3, 6))
    for example, length in enumerate((6, 2, 4)):
        targets[example, length:] = -100

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.mT, targets, **options)

    model = nn.Linear(5, CLASSES)
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    means = [loss(model(x[None]), t[None]) for x, t in zip(inputs, targets, strict=True)]
    expected = torch.autograd.grad(torch.stack(means).mean(), list(model.parameters()))

    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inside(x).mT  # type: ignore[no-any-return]

    step = trained(
        Transposed(),
        (inputs, targets),
        nn.CrossEntropyLoss(**options),
        ClipOnly(clipping_norm=1e6),
    )
    torch.testing.assert_close(step - before, -torch.cat([e.flatten() for e in expected]))


class SubclassedAlone(nn.CrossEntropyLoss):
    """torch's by another name."""


def hooked(**options: Any) -> Loss:
    loss = nn.CrossEntropyLoss(**options)
    loss.register_forward_hook(lambda *_: None)
    return loss


def wrapped(**options: Any) -> Loss:
    def loss(outputs: Tensor, targets: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(outputs, targets, **options, reduction=reduction)

    return loss


@pytest.mark.parametrize("make", [SubclassedAlone, hooked, wrapped])
@pytest.mark.parametrize(
    "options",
    [{"ignore_index": 0}, {"weight": torch.tensor([0.1, 1.0, 5.0, 0.0])}, {"label_smoothing": 0.3}],
    ids=str,
)
@pytest.mark.parametrize("places", [(), (6,), (3, 2)], ids=str)
def test_another_name_of_torchs_loss_is_the_same_loss(
    make: Callable[..., Loss], options: dict[str, Any], places: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    inputs, targets = torch.randn(4, 5, *places), torch.randint(0, CLASSES, (4, *places))

    def step(loss: Loss) -> Tensor:
        torch.manual_seed(1)
        layer: nn.Module = nn.Linear(5, CLASSES)
        if places:
            layer = (nn.Conv1d if len(places) == 1 else nn.Conv2d)(5, CLASSES, 1)
        return trained(layer, (inputs, targets), loss, ClipOnly(clipping_norm=1e3))

    torch.testing.assert_close(step(make(**options)), step(nn.CrossEntropyLoss(**options)))


def test_a_sum_within_an_example_stays_one() -> None:
    torch.manual_seed(0)
    data = torch.randn(4, 5, 6), torch.randint(0, CLASSES, (4, 6))

    def step(loss: Loss) -> Tensor:
        torch.manual_seed(1)
        layer = nn.Conv1d(5, CLASSES, 1)
        before = nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
        return trained(layer, data, loss, ClipOnly(clipping_norm=1e3)) - before

    summed = step(SubclassedAlone(reduction="sum"))
    torch.testing.assert_close(summed, 6 * step(SubclassedAlone()), rtol=1e-4, atol=1e-5)
