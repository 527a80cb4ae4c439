"""``train`` as a ClientApp calls it."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from privacy.accounting import Budget
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientError,
    LocalBudgetSpent,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
    TrainingResult,
    train,
)


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
    return train(
        model,
        data,
        loss=cross_entropy,
        optimizer=torch.optim.SGD(model.parameters(), lr=lr),
        **{"protection": ClipOnly(clipping_norm=1.0), "batches": FullBatch(), **how},  # type: ignore[arg-type]
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
    with pytest.raises(LocalBudgetSpent) as refusal:
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
    assert ledger.charges[0].steps == 20


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
