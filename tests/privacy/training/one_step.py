"""One step of training, or why it is refused."""

from collections.abc import Callable

import pytest
import torch
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
