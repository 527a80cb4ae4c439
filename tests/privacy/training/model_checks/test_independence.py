"""One example's gradient depends on no other example: by construction of the loss, else refused."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.mechanisms import SeededRandomness
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NominalCount,
    replace_unsupported,
    train,
)
from privacy.training.errors import GradientError

Loss = Callable[[Tensor, Tensor], Tensor]
CLASSES = 4


def noised(norm: float = 1.0) -> ClipAndNoise:
    return ClipAndNoise(
        clipping_norm=norm, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=1)
    )


def trained(
    model: nn.Module,
    data: tuple[Tensor, ...],
    loss: Loss,
    protection: ClipOnly | ClipAndNoise,
    ledger: ClientLedger | None = None,
) -> Tensor:
    """The parameters after one step of learning rate 1, its noise always the same."""
    train(
        model,
        data,
        loss=loss,
        optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
        protection=protection,
        batches=FullBatch(),
        ledger=ledger,
        randomness=SeededRandomness(1),
    )
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def refused(model: nn.Module, data: tuple[Tensor, ...], loss: Loss) -> str:
    """Why it is refused, before anything is trained."""
    before = [p.detach().clone() for p in model.parameters()]
    ledger = ClientLedger(dataset="d")
    with pytest.raises((GradientError, ValueError)) as refusal:
        trained(model, data, loss, noised(), ledger)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    return str(refusal.value)


def flat_data(n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return (
        torch.randn(n, 5, generator=generator),
        torch.randint(0, CLASSES, (n,), generator=generator),
    )


def focal(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return (1 - torch.exp(-losses)) ** 2 * losses


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


class Mixing(nn.Module):
    """Features, then something that looks at other examples, then a layer."""

    def __init__(self, mix: Callable[[Tensor], Tensor], *, indices: bool = False) -> None:
        super().__init__()
        self.features = nn.Embedding(7, 5) if indices else nn.Linear(5, 5)
        self.gate = nn.Parameter(torch.zeros(1))
        self.last = nn.Linear(5, CLASSES)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.last(self.mix(h[:, 0] if h.dim() == 3 else h))  # type: ignore[no-any-return]


MODEL_MIXTURES: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda h: h - h.mean(0),
    "largest": lambda h: h / h.detach().abs().amax(),
    "number": lambda h: h / len(h),
    "large batches": lambda h: h if len(h) < 3 else 2 * h,
    "flip": lambda h: h + h.flip(0),
    "roll": lambda h: h + h.roll(2, 0),
    "shuffle": lambda h: h + h[torch.randperm(len(h))],
    "attention": lambda h: torch.softmax(h @ h.T, 1) @ h,
    "norm of the batch": lambda h: F.batch_norm(h, None, None, training=True),
    "softmax over examples": lambda h: torch.softmax(h, 0),
    "dropout and mean": lambda h: F.dropout(h, 0.3) - h.mean(0),
    "now and then": lambda h: 0.7 * h + 0.3 * h.roll(1, 0) if torch.rand(()) < 0.4 else h,
    "now and then, by Python": lambda h: h + h.mean(0) if random.random() < 0.4 else h,  # noqa: S311
    "now and then, by NumPy": lambda h: h + h.mean(0) if np.random.random() < 0.4 else h,  # noqa: NPY002
    "backward, by the norm": lambda h: backward(h, lambda g: g / g.norm()),
    "backward, by the number": lambda h: backward(h, lambda g: g / len(g)),
    "backward, by a mean": lambda h: backward(h, lambda g: g - g.mean(0)),
    "backward, of its own": lambda h: OverTheBatch.apply(h),
}


def backward(h: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    if h.requires_grad:
        h.register_hook(change)
    return h


class OverTheBatch(torch.autograd.Function):
    """Nothing forward; backward, each example's gradient over the batch's largest."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g / g.abs().amax()


@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("name", MODEL_MIXTURES)
def test_a_model_that_mixes_examples_is_refused(name: str, indices: bool) -> None:
    """Indices too, all the same, so that only what is behind the table can be exchanged."""
    inputs, targets = flat_data()
    model = Mixing(MODEL_MIXTURES[name], indices=indices)
    model.gate.requires_grad_(False)
    data = torch.full((12, 1), 3) if indices else inputs
    assert "first axis" in refused(model, (data, targets), F.cross_entropy)


class Gated(nn.Module):
    """Mixes through a gate that is shut at first: training opens it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.last = nn.Linear(5, 5, bias=False), nn.Linear(5, CLASSES)
        nn.init.zeros_(self.gate.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x + self.gate(x).mean(0))  # type: ignore[no-any-return]


def test_a_shut_gate_hides_no_mixture() -> None:
    model = Gated()
    assert "first axis" in refused(model, flat_data(), F.cross_entropy)
    assert not model.gate.weight.any()


class Squeezed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x).squeeze()  # type: ignore[no-any-return]


def test_a_model_that_takes_no_single_example_is_refused_before_the_charge() -> None:
    refused(Squeezed(), (flat_data()[0], torch.rand(12)), nn.MSELoss())


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, CLASSES)),
        nn.Sequential(nn.Linear(5, 6), nn.GroupNorm(2, 6), nn.ReLU(), nn.Linear(6, CLASSES)),
        nn.Sequential(
            nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 2), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        nn.Sequential(nn.BatchNorm1d(5).eval().requires_grad_(False), nn.Linear(5, CLASSES)),
    ],
    ids=["dropout", "group norm", "convolution", "frozen batch norm"],
)
def test_models_that_keep_examples_apart_are_taken(model: nn.Module) -> None:
    state = torch.random.get_rng_state()
    ledger = ClientLedger(dataset="d")
    trained(model, flat_data(), F.cross_entropy, noised(), ledger)
    assert ledger.events
    if not isinstance(model[1], nn.Dropout):
        assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_few_records_are_enough_for_the_trial(n: int) -> None:
    inputs, targets = flat_data(n)
    trained(nn.Linear(5, CLASSES), (inputs, targets), focal, noised(), ClientLedger(dataset="d"))
    refused(Mixing(MODEL_MIXTURES["mean"]), (inputs, targets), F.cross_entropy)


@settings(max_examples=15, deadline=None)
@given(
    mixture=st.sampled_from(sorted(MODEL_MIXTURES)),
    row=st.integers(0, 11),
    value=st.sampled_from([float("nan"), float("inf"), 1e38, -999.0, 0.0]),
)
def test_no_record_hides_a_mixture(mixture: str, row: int, value: float) -> None:
    inputs, targets = flat_data()
    inputs[row] = value
    model = Mixing(MODEL_MIXTURES[mixture])
    model.gate.requires_grad_(False)
    reason = refused(model, (inputs, targets), F.cross_entropy)
    clean = refused(model, flat_data(), F.cross_entropy)
    assert reason == clean


def random_states() -> tuple[object, ...]:
    numpys = np.random.get_state(legacy=False)  # noqa: NPY002
    key = numpys["state"]["key"].tolist()
    return random.getstate(), key, numpys["state"]["pos"], torch.get_rng_state().tolist()


def test_the_trial_leaves_all_random_states_as_they_were() -> None:
    model = nn.Linear(5, CLASSES)
    before = random_states()
    trained(model, flat_data(), focal, noised(), ClientLedger(dataset="d"))
    assert random_states() == before


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_targets_in_double_precision_are_no_mixture(seed: int) -> None:
    """The loss rounds as the model's single precision does."""
    torch.manual_seed(seed)
    data = flat_data()[0], torch.rand(12, 1, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1))
    trained(model, data, nn.MSELoss(), noised(), ClientLedger(dataset="d"))


def test_saturated_models_are_not_taken_for_mixing_ones() -> None:
    """Their gradients are rounding alone."""
    for size in (1e2, 1e4):
        for middle in (nn.Tanh(), nn.LayerNorm(2), nn.Softmax(1)):
            model = nn.Sequential(nn.Linear(5, 2), middle, nn.Linear(2, CLASSES))
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(size)
            trained(model, flat_data(), F.cross_entropy, noised(), ClientLedger(dataset="d"))


class Renamed(nn.Linear):
    """A class of the user's, which may do another thing the next time."""

    mixes = False

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0) if self.mixes else x)


def test_what_was_accepted_once_is_remembered_only_where_it_stays_the_same() -> None:
    data = flat_data()

    def taken(model: nn.Module, loss: Loss = F.cross_entropy) -> None:
        trained(model, data, loss, noised(), ClientLedger(dataset="d"))

    own = Renamed(5, CLASSES)
    taken(own)
    own.mixes = True
    refused(own, data, F.cross_entropy)

    hooked = nn.Linear(5, CLASSES)
    taken(hooked)
    hooked.register_forward_hook(lambda *seen: seen[2] - seen[2].mean(0))
    refused(hooked, data, F.cross_entropy)

    patched = nn.Linear(5, CLASSES)
    patched.forward = lambda x: F.linear(x - x.mean(0), patched.weight)  # type: ignore[method-assign]
    refused(patched, data, F.cross_entropy)

    taken(nn.Sequential(nn.Linear(5, CLASSES), nn.Softmax(1)))
    refused(nn.Sequential(nn.Linear(5, CLASSES), nn.Softmax(0)), data, F.cross_entropy)

    over = [False]

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, reduction="none")
        return each / len(each) if over[0] else each

    taken(nn.Linear(5, CLASSES), loss)
    over[0] = True
    refused(nn.Linear(5, CLASSES), data, loss)


# What records of data have and drawn numbers do not -----------------------------------------------


class Prepared(nn.Module):
    """A table's rows or numbers, prepared by a function of the batch, then a layer."""

    def __init__(self, prepare: Callable[..., Tensor], *, tokens: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 5) if tokens else nn.Identity()
        self.last: nn.Module = nn.Linear(5, CLASSES)
        self.prepare = prepare

    def forward(self, *inputs: Tensor) -> Tensor:
        h = self.table(self.prepare(*inputs)).float()
        return self.last(h.mean(1) if h.dim() == 3 else h)  # type: ignore[no-any-return]


def one_column_imputed(x: Tensor) -> Tensor:
    ages = x[:, 3]
    return torch.cat([x[:, :3], ages.where(~ages.isnan(), ages.nanmean())[:, None], x[:, 4:]], 1)


PREPARATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "missing ones are the column's mean": lambda x: torch.where(x.isnan(), x.nanmean(0), x),
    "missing ages are the mean": one_column_imputed,
    "zeros are the column's mean": lambda x: torch.where(x == 0, x.mean(0), x),
    "other numbers where any is missing": lambda x: 2 * x.nan_to_num() if x.isnan().any() else x,
    "bytes are scaled": lambda x: x / 255 if x.max() > 1.5 else x,
    "shifted where any is negative": lambda x: (x + 1) / 2 if x.min() < 0 else x,
}


def forward_filled(x: Tensor) -> Tensor:
    """As pandas' ffill does down a table."""
    rows = [x[0].nan_to_num()]
    for row in x[1:]:
        rows.append(torch.where(row.isnan(), rows[-1], row))
    return torch.stack(rows)


def backward_filled(x: Tensor) -> Tensor:
    return forward_filled(x.flip(0)).flip(0)


def running_means(x: Tensor) -> Tensor:
    known = ~x.isnan()
    means = x.nan_to_num().cumsum(0) / known.cumsum(0).clamp(min=1)
    return torch.where(known, x, means)


def row_before(x: Tensor) -> Tensor:
    return torch.where(x.isnan(), x.nan_to_num().roll(1, 0), x)


IN_ROW_ORDER: dict[str, Callable[[Tensor], Tensor]] = {
    "filled from the row before": forward_filled,
    "filled from the row after": backward_filled,
    "filled by the mean so far": running_means,
    "filled from the row before, or the last": row_before,
    "filled by the largest so far": lambda x: torch.where(
        x.isnan(), x.nan_to_num(-9e9).cummax(0).values.clamp(min=-9), x
    ),
}


@pytest.mark.parametrize("column", [None, 0, 2, 4])
@pytest.mark.parametrize("name", IN_ROW_ORDER)
def test_values_filled_in_from_earlier_or_later_rows_are_refused(
    name: str, column: int | None
) -> None:
    """In all columns and in one: the others' missing values would reach the layer."""
    fill = IN_ROW_ORDER[name]

    def filled(x: Tensor) -> Tensor:
        if column is None:
            return fill(x)
        one = slice(column, column + 1)
        return torch.cat([x[:, :column], fill(x[:, one]), x[:, column + 1 :]], 1)

    assert "examples meet" in refused(Prepared(filled), flat_data(), F.cross_entropy)


def test_texts_cut_at_the_longest_so_far_are_refused() -> None:
    def cut(x: Tensor) -> Tensor:
        longest = (x != 0).sum(1).cummax(0).values
        return torch.where(torch.arange(x.shape[1]) < longest[:, None], x, 3)

    data = torch.ones(12, 9, dtype=torch.long), flat_data()[1]
    assert "examples meet" in refused(Prepared(cut, tokens=True), data, F.cross_entropy)


SERIES: dict[str, Callable[[Tensor], Tensor]] = {
    "cut at the longest": lambda x: x[:, : int((x != 0).any(2).sum(1).max())],
    "cut at the last that is not missing": lambda x: x[
        :, : int((~x.isnan().all(2)).sum(1).max())
    ].nan_to_num(),
}

TRIMMED: dict[str, Callable[..., Tensor]] = {
    "at the longest": lambda x: x[:, : int((x != 0).sum(1).max())],
    "at the longest, padded by 1": lambda x: x[:, : int((x != 1).sum(1).max())],
    "at the longest, padded by -1": lambda x: x[:, : int((x >= 0).sum(1).max())].clamp(min=0),
    "at the longest, padded by -100": lambda x: x[:, : int((x != -100).sum(1).max())].clamp(min=0),
    "at the shortest": lambda x: x[:, : max(1, int((x != 0).sum(1).min()))],
    "on the left": lambda x: x[:, int((x != 0).long().argmax(1).min()) :],
    "columns without a word": lambda x: x[:, (x != 0).any(0)],
    "at the longest length": lambda x, length: x[:, : int(length.max())],
    "at the longest length, not of none": lambda x, length: x[:, : int(length.max())].unflatten(
        1, (1, int(length.max()))
    )[:, 0],
}


@pytest.mark.parametrize("name", PREPARATIONS)
def test_numbers_prepared_by_the_batchs_are_refused(name: str) -> None:
    reason = refused(Prepared(PREPARATIONS[name]), flat_data(), F.cross_entropy)
    assert "examples meet" in reason


@pytest.mark.parametrize(("columns", "width"), [(100, 5), (400, 5), (100, 2**18)])
def test_one_column_of_a_wide_table_is_no_hiding_place(columns: int, width: int) -> None:
    """Nor of a table of more columns than are tried alone, or of a model too large for that."""

    def imputed(x: Tensor) -> Tensor:
        ages = x[:, columns - 43]
        return torch.cat([x[:, :4], ages.where(~ages.isnan(), ages.nanmean())[:, None]], 1)

    model = Prepared(imputed)
    model.last = nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, CLASSES))
    data = torch.randn(12, columns), flat_data()[1]
    assert "examples meet" in refused(model, data, F.cross_entropy)


@pytest.mark.parametrize("width", [2**17, 2**20])
def test_each_columns_gaps_at_most_double_what_a_large_model_is_asked(width: int) -> None:
    asked = []

    def counted(x: Tensor) -> Tensor:
        asked.append(len(x))
        return x[:, :1].expand(-1, 5)

    def rows(columns: int) -> int:
        model = Prepared(counted)
        model.last = nn.Sequential(nn.Linear(5, width), nn.Linear(width, CLASSES))
        asked.clear()
        data = torch.randn(2, columns), flat_data(2)[1]
        trained(model, data, F.cross_entropy, noised(), ClientLedger(dataset="d"))
        return sum(asked)

    assert rows(100) <= 2 * rows(1)


@pytest.mark.parametrize("name", SERIES)
def test_series_cut_by_the_batchs_longest_are_refused(name: str) -> None:
    targets = flat_data()[1]
    data = torch.randn(12, 9, 5), targets
    assert "examples meet" in refused(Prepared(SERIES[name]), data, F.cross_entropy)


@settings(max_examples=24, deadline=None)
@given(name=st.sampled_from(sorted(TRIMMED)), length=st.integers(2, 40), more=st.booleans())
def test_texts_trimmed_by_the_batchs_are_refused_at_every_length(
    name: str, length: int, more: bool
) -> None:
    tokens, targets = torch.ones(12, length, dtype=torch.long), flat_data()[1]
    data: tuple[Tensor, ...] = tokens, targets
    if "length" in name:
        data = tokens, torch.ones(12, dtype=torch.int32 if more else torch.long), targets
    assert "examples meet" in refused(Prepared(TRIMMED[name], tokens=True), data, F.cross_entropy)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(("padding_idx", "padding"), [(49, 49), (None, 49), (-1, 49), (7, 7)])
def test_texts_trimmed_by_a_tables_own_padding_are_refused(
    padding_idx: int | None, padding: int, small: bool, frozen: bool
) -> None:
    """What the table says is padding, or its last index as with GPT-2; beside a smaller table."""
    model = Prepared(lambda x: x[:, : int((x != padding).sum(1).max())], tokens=True)
    model.table = nn.Embedding(50, 5, padding_idx=padding_idx).requires_grad_(not frozen)
    model.unused = nn.Embedding(3, 5, padding_idx=2).requires_grad_(False) if small else None
    data = torch.ones(12, 9, dtype=torch.long), flat_data()[1]
    assert "examples meet" in refused(model, data, F.cross_entropy)


@pytest.mark.parametrize("first", [False, True])
def test_a_tables_own_padding_is_tried_beside_other_indices(first: bool) -> None:
    class Segmented(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.segments = nn.Embedding(50, 5), nn.Embedding(2, 5)
            self.last = nn.Linear(5, CLASSES)

        def forward(self, *inputs: Tensor) -> Tensor:
            x, segments = inputs if first else inputs[::-1]
            longest = int((x != 49).sum(1).max())
            h = self.words(x[:, :longest]) + self.segments(segments[:, :longest])
            return self.last(h.mean(1))  # type: ignore[no-any-return]

    ones = torch.ones(12, 9, dtype=torch.long)
    assert "examples meet" in refused(Segmented(), (ones, ones, flat_data()[1]), F.cross_entropy)


def test_images_scaled_where_one_has_bytes_are_refused() -> None:
    data = torch.randint(0, 256, (12, 5), dtype=torch.uint8), flat_data()[1]
    reason = refused(
        Prepared(lambda x: x.float() / 255 if x.max() > 1 else x.float()), data, F.cross_entropy
    )
    assert "examples meet" in reason
    trained(
        Prepared(lambda x: x.float() / 255),
        data,
        F.cross_entropy,
        noised(),
        ClientLedger(dataset="d"),
    )


def finite_alone(x: Tensor) -> Tensor:
    if not bool(x.isfinite().all()):
        raise ValueError("not finite")
    return x


def filled_along_time(x: Tensor) -> Tensor:
    return torch.stack([forward_filled(series) for series in x])


def learnt_mean_filled(x: Tensor) -> Tensor:
    known = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    return torch.where(x.isnan(), known, x)


APART: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "missing ones are zeros": (lambda x: x.nan_to_num(), (5,)),
    "missing ones are the record's mean": (
        lambda x: torch.where(x.isnan(), x.nanmean(1, keepdim=True), x),
        (5,),
    ),
    "each by its own size": (lambda x: x / x.norm(dim=1, keepdim=True), (5,)),
    "a masked mean": (
        lambda x: x.sum(1) / (x != 0).any(2).sum(1, keepdim=True),
        (9, 5),
    ),
    "missing ones are means known before": (learnt_mean_filled, (5,)),
    "missing ones are the series' last": (filled_along_time, (9, 5)),
    "missing ones are told": (
        lambda x: torch.where(x.isnan().any(1, keepdim=True), -1.0, x.nan_to_num(7.0)),
        (5,),
    ),
    "missing ones stay": (lambda x: x, (5,)),
    "logarithms": (torch.log1p, (5,)),
    "not for what is not finite": (finite_alone, (5,)),
}


@pytest.mark.parametrize("name", APART)
def test_what_each_record_is_prepared_by_alone_is_taken(name: str) -> None:
    prepare, shape = APART[name]
    data = torch.rand(12, *shape), flat_data()[1]
    ledger = ClientLedger(dataset="d")
    trained(Prepared(prepare), data, F.cross_entropy, noised(), ledger)
    assert ledger.events


class DecayingGRU(nn.Module):
    """GRU-D: what was last seen of a series decays to a learnt mean while it is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.usual = nn.Linear(3, 3), nn.Linear(3, 3)
        self.cell, self.last = replace_unsupported(nn.GRU(6, 8, batch_first=True)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        known = ~x.isnan()
        value, since = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        steps = []
        for step in range(x.shape[1]):
            decay = torch.exp(-torch.relu(self.decay(since)))
            mean = self.usual(torch.ones_like(since))
            here = torch.where(known[:, step], x[:, step].nan_to_num(), value)
            steps.append(torch.where(known[:, step], here, decay * here + (1 - decay) * mean))
            value, since = here, torch.where(known[:, step], 0.0, since + 1)
        seen = torch.cat([torch.stack(steps, 1), known.float()], 2)
        return self.last(self.cell(seen)[0][:, -1])  # type: ignore[no-any-return]


class MaskedAttention(nn.Module):
    """A transformer that masks its padding."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.table = nn.Embedding(50, 8, padding_idx=padding)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.layers = replace_unsupported(nn.TransformerEncoder(layer, 1))
        self.last = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        padded = x == self.padding
        h = self.layers(self.table(x), src_key_padding_mask=padded)
        h = h.masked_fill(padded[..., None], 0).sum(1)
        return self.last(h / (~padded).sum(1, keepdim=True).clamp(min=1))  # type: ignore[no-any-return]


def test_models_that_make_up_for_gaps_and_padding_within_a_record_are_taken() -> None:
    targets = flat_data()[1]
    series = torch.randn(12, 7, 3)
    series[::2, 3] = float("nan")
    ledger = ClientLedger(dataset="d")
    trained(DecayingGRU(), (series, targets), F.cross_entropy, noised(), ledger)
    for padding in (0, 1, 30, 49):
        texts = torch.randint(0, 50, (12, 9))
        trained(MaskedAttention(padding), (texts, targets), F.cross_entropy, noised(), ledger)
    assert ledger.events
