"""``train`` as a ClientApp calls it."""

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from opacus.layers import DPGRU
from scipy.stats import chi2
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from privacy.accounting import Budget, GaussianRelease, Poisson, Repeated
from privacy.mechanisms import SeededRandomness
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
    TrainingResult,
    train,
)
from privacy.training.errors import GradientError, LocalBudgetError
from privacy.training.per_example.loss import ExampleLoss


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(25, 12, generator=generator),
        torch.randint(0, 3, (25,), generator=generator),
    )


def noisy(noise_multiplier: float = 1.0, **changes: object) -> ClipAndNoise:
    return ClipAndNoise(
        **{
            "clipping_norm": 1.0,
            "noise_multiplier": noise_multiplier,
            "delta": 1e-5,
            "count": PublicCount(),
            **changes,
        }  # type: ignore[arg-type]
    )


def run(
    model: nn.Module, data: tuple[Tensor, ...], lr: float = 0.1, **how: object
) -> TrainingResult:
    usual = {"loss": cross_entropy, "protection": ClipOnly(clipping_norm=1.0)}
    return train(
        model,
        data,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        **{**usual, "batches": FullBatch(), **how},  # type: ignore[arg-type]
    )


def test_a_full_batch_step_is_the_mean_of_clipped_gradients(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    before = [p.detach().clone() for p in model.parameters()]
    total = [torch.zeros_like(p) for p in before]
    for x, y in zip(*data, strict=True):
        one = torch.autograd.grad(cross_entropy(model(x[None]), y[None]), [*model.parameters()])
        norm = math.sqrt(sum(float(g.square().sum()) for g in one))
        for sum_, g in zip(total, one, strict=True):
            sum_ += g * min(1.0, 1.0 / norm)

    result = run(model, data)

    for p, b, t in zip(model.parameters(), before, total, strict=True):
        torch.testing.assert_close(p.detach(), b - 0.1 * t / 25, rtol=1e-5, atol=1e-6)
    assert result.steps == 1
    assert result.weight == 25
    assert result.guarantee.level == "none"
    assert result.epsilon is None


def test_noise_needs_a_ledger(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match="ledger is None"):
        run(nn.Linear(12, 3), data, protection=noisy())


def test_a_spent_budget_leaves_the_model_alone_and_names_no_number(
    data: tuple[Tensor, Tensor],
) -> None:
    model = nn.Linear(12, 3)
    ledger = ClientLedger(dataset="d", budget=Budget(epsilon=6.0, delta=1e-5))
    spent = [
        run(model, data, protection=noisy(), ledger=ledger).epsilon,
    ]
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(LocalBudgetError) as refusal:
        run(model, data, protection=noisy(), ledger=ledger, batches=FullBatch(steps=9))
    assert not any(character.isdigit() for character in str(refusal.value))
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert ledger.epsilon(delta=1e-5) == spent[0]


def test_epsilon_grows_from_call_to_call(data: tuple[Tensor, Tensor]) -> None:
    model, ledger = nn.Linear(12, 3), ClientLedger(dataset="d")
    batches = PoissonBatches(sampling_rate=0.2, steps=5)
    spent = [
        run(model, data, protection=noisy(), ledger=ledger, batches=batches).epsilon
        for _ in range(4)
    ]
    assert all(b > a for a, b in pairwise(spent))  # type: ignore[operator]
    assert ledger.events == 4 * (Repeated(GaussianRelease(1.0, Poisson(0.2)), 5),)


def test_weights_say_what_the_count_allows(data: tuple[Tensor, Tensor]) -> None:
    model, ledger = nn.Linear(12, 3), ClientLedger(dataset="d")
    nominal = run(model, data, protection=noisy(count=NominalCount(records=100)), ledger=ledger)
    noised = run(
        model, data, protection=noisy(count=NoisyCount(noise_multiplier=5.0)), ledger=ledger
    )
    assert nominal.weight == 100
    assert noised.weight >= 1
    assert "the number of records" not in nominal.guarantee.not_covered


def test_a_parameter_used_around_its_layer_is_refused(data: tuple[Tensor, Tensor]) -> None:
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.around = nn.Linear(12, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.inside(x), self.around.weight)

    with pytest.raises(GradientError, match=r"around\.weight"):
        run(Around(), data)


class Centred(nn.Module):
    """Subtracts the batch's mean: no layer of a known kind, but examples meet."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x - x.mean(0))  # type: ignore[no-any-return]


class Transposed(nn.Module):
    """Puts the examples on the second axis before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.stack([x, x.flip(1)])
        return self.inside(steps).sum(0)  # type: ignore[no-any-return]


class Remembering(nn.Module):
    """Keeps the last record it saw in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(12, 3)
        self.register_buffer("last", torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(x[-1])
        return self.inside(x)  # type: ignore[no-any-return]


def looking_around(outputs: Tensor, targets: Tensor) -> Tensor:
    losses = cross_entropy(outputs, targets, reduction="none")
    return losses * losses.detach().mean()


@pytest.mark.parametrize("model", [Centred(), Transposed()], ids=lambda m: type(m).__name__)
def test_noise_refuses_a_model_in_which_examples_meet(
    model: nn.Module, data: tuple[Tensor, Tensor]
) -> None:
    ledger = ClientLedger(dataset="d")
    with pytest.raises(GradientError, match="first axis"):
        run(model, (data[0][:2], data[1][:2]), protection=noisy(), ledger=ledger)
    assert ledger.events, "records were tried"


def test_noise_refuses_a_loss_that_looks_around(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    with pytest.raises(GradientError, match="the loss"):
        train(
            model,
            data,
            loss=looking_around,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=noisy(),
            batches=FullBatch(),
            ledger=ClientLedger(dataset="d"),
        )


@pytest.mark.parametrize("protection", [ClipOnly(clipping_norm=1.0), noisy()])
def test_a_buffer_that_gathers_records_is_refused_and_put_back(
    data: tuple[Tensor, Tensor], protection: ClipOnly | ClipAndNoise
) -> None:
    model = Remembering()
    with pytest.raises(GradientError, match="'last'"):
        run(model, data, protection=protection, ledger=ClientLedger(dataset="d"))
    assert not model.last.any()


def after(data: tuple[Tensor, ...], seed: int = 0, **how: object) -> Tensor:
    """The parameters after training from a fixed start with fixed randomness, as one vector."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    run(model, data, randomness=SeededRandomness(seed), **how)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    "batches", [FullBatch(steps=3), PoissonBatches(sampling_rate=0.5, steps=4)]
)
def test_physical_batches_change_nothing(
    data: tuple[Tensor, Tensor], batches: FullBatch | PoissonBatches
) -> None:
    whole = after(data, batches=batches)
    for size in (1, 4, 25):
        torch.testing.assert_close(after(data, batches=batches, physical_batch_size=size), whole)


def test_a_dataset_trains_like_its_tensors(data: tuple[Tensor, Tensor]) -> None:
    batches = PoissonBatches(sampling_rate=0.5, steps=4)
    torch.testing.assert_close(
        after(TensorDataset(*data), batches=batches),  # type: ignore[arg-type]
        after(data, batches=batches),
    )


def test_an_empty_batch_still_gets_its_noise(data: tuple[Tensor, Tensor]) -> None:
    """Or its absence would tell that nobody was drawn."""
    model, ledger = nn.Linear(12, 3), ClientLedger(dataset="d")
    before = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    batches = PoissonBatches(sampling_rate=1e-9, steps=1)
    run(model, data, protection=noisy(), ledger=ledger, batches=batches)
    moved = nn.utils.parameters_to_vector(model.parameters()).detach() - before
    assert bool((moved != 0).all())


def test_the_noise_has_the_standard_deviation_that_was_paid_for(
    data: tuple[Tensor, Tensor],
) -> None:
    """Chi-square over 60 × 39 coordinates of pure noise; false alarm in 1 of 10^6 runs."""
    clipping_norm, noise_multiplier, lr = 0.5, 3.0, 0.1
    protection = noisy(noise_multiplier, clipping_norm=clipping_norm)
    drawn = []
    for _ in range(60):
        model = nn.Linear(12, 3)
        silent = nn.Linear(12, 3)
        silent.load_state_dict(model.state_dict())
        run(silent, data, lr=lr, protection=ClipOnly(clipping_norm=clipping_norm))
        run(model, data, lr=lr, protection=protection, ledger=ClientLedger(dataset="d"))
        drawn.append(
            nn.utils.parameters_to_vector(model.parameters())
            - nn.utils.parameters_to_vector(silent.parameters())
        )
    noise = torch.cat(drawn).detach().double().numpy()
    sigma = lr * noise_multiplier * clipping_norm / 25
    statistic = float(((noise / sigma) ** 2).sum())
    assert chi2.ppf(5e-7, len(noise)) < statistic < chi2.isf(5e-7, len(noise))


def test_poisson_batches_are_averaged_over_the_expected_size(data: tuple[Tensor, Tensor]) -> None:
    """Over the drawn size would tell it, and would not bound an example's influence."""
    seen: list[int] = []
    model = nn.Linear(12, 1, bias=False)
    model.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    same = data[0][:1].repeat(25, 1) * 10
    before = model.weight.detach().clone()
    train(
        model,
        (same, data[1]),
        # Its gradient is the input, of norm above 1 for all records.
        loss=lambda outputs, targets: outputs[:, 0],
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        protection=ClipOnly(clipping_norm=1.0),
        batches=PoissonBatches(sampling_rate=0.4, steps=1),
        randomness=SeededRandomness(3),
    )
    moved = float((model.weight.detach() - before).norm())
    assert moved == pytest.approx(seen[-1] / 10, rel=1e-4)


@pytest.mark.parametrize("protection", [ClipOnly(clipping_norm=1.0), noisy()])
def test_gradient_descent_is_plain_sgd(
    data: tuple[Tensor, Tensor], protection: ClipOnly | ClipAndNoise
) -> None:
    one = nn.Sequential(nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3))
    other = copy.deepcopy(one)
    for model, optimizer in (
        (one, torch.optim.SGD(one.parameters(), lr=0.3)),
        (other, GradientDescent(other.parameters(), learning_rate=0.3)),
    ):
        train(
            model,
            data,
            loss=cross_entropy,
            optimizer=optimizer,
            protection=protection,
            batches=PoissonBatches(sampling_rate=0.5, steps=4),
            ledger=ClientLedger(dataset="d"),
            randomness=SeededRandomness(5),
        )
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("learning_rate", [0.0, -1.0, math.inf, math.nan])
def test_gradient_descent_refuses_a_learning_rate_that_is_none(learning_rate: float) -> None:
    with pytest.raises(ValueError, match="learning_rate is"):
        GradientDescent(nn.Linear(1, 1).parameters(), learning_rate=learning_rate)


@pytest.mark.parametrize("make", [torch.optim.SGD, None])
def test_a_gradient_left_on_a_parameter_is_not_stepped_by(
    data: tuple[Tensor, Tensor], make: type[torch.optim.SGD] | None
) -> None:
    model = nn.Linear(12, 3)
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e6)
    train(
        model,
        data,
        loss=cross_entropy,
        optimizer=(
            GradientDescent(model.parameters(), learning_rate=0.1)
            if make is None
            else make(model.parameters(), lr=0.1)
        ),
        protection=ClipOnly(clipping_norm=1.0),
        batches=FullBatch(),
    )
    assert torch.equal(model.bias, before)
    assert float(model.weight.detach().abs().max()) < 10
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_schedule_steps_with_the_optimizer(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    train(
        model,
        data,
        loss=cross_entropy,
        optimizer=optimizer,
        protection=ClipOnly(clipping_norm=1.0),
        batches=FullBatch(steps=3),
        schedule=schedule,
    )
    assert optimizer.param_groups[0]["lr"] == 0.125


@pytest.mark.parametrize(
    "loss",
    [
        cross_entropy,
        partial(cross_entropy, reduction="sum"),
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(reduction="none"),
        lambda outputs, targets: cross_entropy(outputs, targets, reduction="none"),
    ],
)
def test_losses_are_taken_an_example_at_a_time(loss: object, data: tuple[Tensor, Tensor]) -> None:
    values = ExampleLoss(loss)(torch.randn(25, 3), data[1])  # type: ignore[arg-type]
    assert values.shape == (25,)


def test_class_weights_do_not_tie_examples_together() -> None:
    """torch divides by the batch's sum of weights, which one more example would change."""
    loss = ExampleLoss(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 100.0])))
    outputs, targets = torch.randn(3, 2), torch.tensor([0, 0, 1])
    torch.testing.assert_close(loss(outputs, targets)[:2], loss(outputs[:2], targets[:2]))


def test_a_loss_over_the_batch_is_refused(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    with pytest.raises(ValueError, match="one value an example"):
        train(
            model,
            data,
            loss=lambda outputs, targets: cross_entropy(outputs, targets),
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            protection=ClipOnly(clipping_norm=1.0),
            batches=FullBatch(),
        )


def test_what_the_result_claims(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    real = run(model, data, protection=noisy(), ledger=ClientLedger(dataset="d"))
    seeded = run(
        model,
        data,
        protection=noisy(),
        ledger=ClientLedger(dataset="d"),
        randomness=SeededRandomness(0),
    )
    assert (real.guarantee.level, real.guarantee.delta) == ("record", 1e-5)
    assert "the number of records" in real.guarantee.not_covered
    assert "client-level privacy" in real.guarantee.not_covered
    assert seeded.guarantee.level == "none"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"physical_batch_size": 0}, "physical_batch_size is 0"),
        ({"data": (torch.ones(2, 12), torch.ones(3))}, "one length"),
        ({"data": (torch.ones(0, 12), torch.ones(0))}, "no record"),
        ({"optimizer": torch.optim.SGD(nn.Linear(1, 1).parameters())}, "lacks .* 'weight'"),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, "LBFGS"),
    ],
)
def test_wrong_arguments_are_named(
    how: dict[str, object], message: str, data: tuple[Tensor, Tensor]
) -> None:
    model = nn.Linear(12, 3)
    settings: dict[str, object] = {
        "data": data,
        "loss": cross_entropy,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "protection": ClipOnly(clipping_norm=1.0),
        "batches": FullBatch(),
    }
    with pytest.raises(ValueError, match=message):
        train(model, **(settings | how))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClipOnly(clipping_norm=0.0), "clipping_norm is 0.0"),
        (lambda: noisy(0.0), "noise_multiplier is 0.0"),
        (lambda: noisy(delta=1.0), "delta is 1.0"),
        (lambda: PoissonBatches(sampling_rate=1.0, steps=1), "FullBatch"),
        (lambda: FullBatch(steps=0), "steps is 0"),
        (lambda: NominalCount(records=0), "records is 0"),
        (lambda: NoisyCount(noise_multiplier=math.nan), "noise_multiplier is nan"),
    ],
)
def test_wrong_plans_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_epochs_are_steps_that_do_not_depend_on_the_records() -> None:
    assert PoissonBatches.epochs(3, sampling_rate=0.1).steps == 30


def test_the_model_is_left_as_it_came(data: tuple[Tensor, Tensor]) -> None:
    model = nn.Linear(12, 3)
    attributes = set(vars(model)), set(vars(model.weight))
    run(model, data)
    assert model.weight.grad is None
    assert (set(vars(model)), set(vars(model.weight))) == attributes
    assert not model._forward_hooks


class Overwriting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        outputs: Tensor = self.inside(x)
        x.mul_(2)
        return outputs


def test_an_input_overwritten_after_use_is_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(GradientError, match="overwritten"):
        run(Overwriting(), data)


class Reentrant(nn.Module):
    """A layer that runs once without gradients, and again, of its own, in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        run_again = checkpoint(self.inside, x.requires_grad_(), use_reentrant=True)
        return self.last(torch.tanh(run_again))  # type: ignore[no-any-return]


class Freezing(nn.Module):
    """Trains its first layer or not, as it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.last = nn.Linear(12, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.inside.requires_grad_(not self.inside.weight.requires_grad)
        return self.last(torch.tanh(self.inside(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "reason"),
    [(Reentrant(), r"'inside\.weight'.*use_reentrant"), (Freezing(), "freezes parameters")],
    ids=["reentrant", "freezing"],
)
def test_a_layer_whose_gradient_is_hidden_is_refused(
    model: nn.Module, reason: str, data: tuple[Tensor, Tensor]
) -> None:
    with pytest.raises(GradientError, match=reason):
        run(model, data)


def test_a_trial_leaves_no_gradient_on_what_a_loss_has_of_its_own(
    data: tuple[Tensor, Tensor],
) -> None:
    temperature = torch.ones((), requires_grad=True)

    def tempered(outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs * temperature, targets, reduction="none")

    run(nn.Linear(12, 3), data, loss=tempered)
    assert temperature.grad is None
    temperature.grad = torch.tensor(5.0)
    run(nn.Linear(12, 3, bias=False), data, loss=tempered)
    assert temperature.grad == 5.0


class Deaf(nn.Module):
    """A recurrent layer that is given a packed sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = DPGRU(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        lengths = torch.ones(len(x), dtype=torch.long)
        packed = pack_padded_sequence(x[:, None], lengths, batch_first=True)
        return self.rnn(packed)[0].data  # type: ignore[no-any-return]


def test_a_packed_sequence_is_refused(data: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(GradientError, match="packed"):
        run(Deaf(), data)
