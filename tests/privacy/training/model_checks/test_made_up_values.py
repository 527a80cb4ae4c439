"""A loss or a model that does not take every number is tried on those that it takes."""

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Gamma, Geometric, NegativeBinomial, Poisson
from torch.nn import functional as F  # noqa: N812

from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    FullBatch,
    GradientDescent,
    NominalCount,
    train,
)
from privacy.training._train import Loss
from privacy.training.errors import GradientError

POSITIVE = torch.rand(20, 1) + 0.1
COUNTS = torch.arange(20.0)[:, None] % 5

LOSSES: dict[str, tuple[Loss, Tensor]] = {
    "squared logarithms": (
        lambda o, t: (torch.log1p(o) - torch.log1p(t)).square().mean(1),
        POSITIVE,
    ),
    "Poisson deviance": (lambda o, t: 2 * (torch.xlogy(t, t / o) - t + o).mean(1), COUNTS),
    "roots": (lambda o, t: (o.sqrt() - t.sqrt()).square().mean(1), POSITIVE),
    "divergence": (lambda o, t: (t * (t.log() - o.log())).sum(1), POSITIVE),
    "Gamma": (lambda o, t: -Gamma(o, o, validate_args=False).log_prob(t).mean(1), POSITIVE),
    "Gamma, checked": (lambda o, t: -Gamma(o, o).log_prob(t).mean(1), POSITIVE),
    "Poisson, checked": (lambda o, t: -Poisson(o).log_prob(t).mean(1), COUNTS),
    "negative binomial": (lambda o, t: -NegativeBinomial(o, logits=o).log_prob(t).mean(1), COUNTS),
    "Bernoulli": (lambda o, t: -Bernoulli(logits=o).log_prob(t).mean(1), (COUNTS > 2).float()),
    "trials from one": (
        lambda o, t: -Geometric(logits=o).log_prob(t - 1).mean(1),
        COUNTS + 1,
    ),
    "survival": (
        lambda o, t: o[:, 0] * t[:, 0] - t[:, 1] * (o.log()[:, 0] + t[:, 0].log()),
        torch.cat([POSITIVE, (COUNTS > 2).float()], 1),
    ),
}


def step(model: nn.Module, data: tuple[Tensor, Tensor], loss: Loss) -> None:
    train(
        model,
        data,
        loss=loss,
        optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
        protection=ClipAndNoise(
            clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=20)
        ),
        batches=FullBatch(),
        ledger=ClientLedger(dataset="d"),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_positive_or_whole_numbers_is_taken(name: str) -> None:
    loss, targets = LOSSES[name]
    model = nn.Sequential(nn.Linear(4, 1), nn.Softplus())
    step(model, (torch.rand(20, 4), targets), loss)


class Logarithms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.log1p(x))  # type: ignore[no-any-return]


def test_a_model_of_positive_numbers_is_taken_with_a_loss_of_ones_own() -> None:
    data = torch.rand(20, 4), torch.arange(20) % 3
    step(Logarithms(), data, lambda o, t: F.cross_entropy(o, t, reduction="none") ** 2)


def test_a_loss_that_is_finite_nowhere_says_so() -> None:
    data = torch.rand(20, 4), torch.rand(20, 1)
    with pytest.raises(GradientError, match="not finite"):
        step(nn.Linear(4, 1), data, lambda o, t: ((o - t) / 0.0 * 0.0).mean(1))
