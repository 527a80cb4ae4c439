"""The membership test for record-level training, and what one update gives away."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn.functional import cross_entropy

from privacy.accounting import Budget, Full, calibrate_noise_multiplier
from privacy.audit import (
    AuditResult,
    audit_training,
    invert_batch,
    invert_first_linear_layer,
    match_gradient,
    one_hot_records,
)
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    GradientDescent,
    NominalCount,
    train,
)

DELTA = 1e-5


def linear(*, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10, bias=bias))


def membership(
    *,
    claimed: float,
    noise: float | None,
    model: nn.Module | None = None,
    inputs: torch.Tensor | None = None,
    background: tuple[torch.Tensor, torch.Tensor] | None = None,
    learning_rate: float = 0.1,
) -> AuditResult:
    """Train a linear model of ten classes on 200 one-hot canaries by one full-batch step."""
    model = linear() if model is None else model
    inputs = one_hot_records(200, (28, 28)) if inputs is None else inputs
    targets = torch.randint(0, 10, (200,))

    def once(noise: float | None, *given: Any) -> None:
        trained, *data = given
        protection: ClipOnly | ClipAndNoise = ClipOnly(clipping_norm=1.0)
        ledger = None
        if noise is not None:
            ledger = ClientLedger(dataset="canaries")
            protection = ClipAndNoise(
                clipping_norm=1.0,
                noise_multiplier=noise,
                delta=DELTA,
                count=NominalCount(records=100),
            )
        train(
            trained,
            data,
            loss=cross_entropy,
            optimizer=GradientDescent(trained.parameters(), learning_rate=learning_rate),
            protection=protection,
            batches=FullBatch(steps=1),
            ledger=ledger,
        )

    return audit_training(
        partial(once, noise),
        model,
        (inputs, targets),
        without_noise=partial(once, None),
        loss=lambda outputs, targets: cross_entropy(outputs, targets, reduction="none"),
        claimed_epsilon=claimed,
        delta=DELTA,
        background=background,
    )


def fitting_noise(epsilon: float) -> float:
    return calibrate_noise_multiplier(sampling=Full(), rounds=1, budget=Budget(epsilon, DELTA))


@pytest.mark.parametrize("claimed", [1.0, 8.0])
def test_honest_record_level_training_is_not_contradicted(claimed: float) -> None:
    """Eight audits at 95 % each: a false alarm in 10⁶ of this test."""
    noise = fitting_noise(claimed)
    results = [membership(claimed=claimed, noise=noise) for _ in range(8)]
    assert sum(not r.passed for r in results) <= stats.binom.isf(1e-6, 8, 0.05)
    if claimed == 8.0:
        assert np.median([r.epsilon_lower for r in results]) > 1.0  # it is not blind


def test_training_without_noise_is_caught() -> None:
    result = membership(claimed=1.0, noise=None)
    assert not result.passed
    assert result.epsilon_lower > 2.5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("learning_rate", [0.1, 100.0])
def test_hardly_any_noise_is_caught_though_canaries_share_a_bias(
    bias: bool, learning_rate: float
) -> None:
    noise = fitting_noise(3.0) / 20
    result = membership(
        claimed=3.0, noise=noise, model=linear(bias=bias), learning_rate=learning_rate
    )
    assert not result.passed
    assert not result.blind


@pytest.mark.parametrize("last", [nn.Linear(64, 10), nn.Linear(64, 10, bias=False)])
def test_it_is_caught_behind_a_hidden_layer(last: nn.Module) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), last)
    assert not membership(claimed=3.0, noise=0.01, model=model).passed


def test_it_is_caught_beside_records_that_are_always_there() -> None:
    images = torch.rand(400, 28, 28) * (torch.rand(400, 28, 28) < 0.2)
    background = images, torch.randint(0, 10, (400,))
    assert not membership(claimed=3.0, noise=0.01, background=background).passed


def test_an_attack_that_cannot_see_even_training_without_noise_is_blind(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All canaries of a class are one record: how many there are is all that a model shows."""
    alike = torch.ones(200, 28, 28)
    result = membership(claimed=3.0, noise=1e-4, inputs=alike)
    assert result.passed
    assert result.blind
    assert "of training without noise" in caplog.text
    caplog.clear()
    honest = membership(claimed=3.0, noise=fitting_noise(3.0))
    assert not honest.blind
    assert "blind" not in caplog.text


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 2, bias=False))
    before = model[0].weight.clone()

    def zeroed(model: Any, *data: torch.Tensor) -> None:
        model[0].weight.data.zero_()

    def audited() -> None:
        audit_training(
            zeroed,
            model,
            (one_hot_records(4, (4,)), torch.tensor([0, 1, 0, 1])),
            without_noise=zeroed,
            loss=lambda outputs, targets: cross_entropy(outputs, targets, reduction="none"),
            claimed_epsilon=1.0,
            delta=DELTA,
        )

    audited()
    assert torch.equal(model[0].weight, before)
    assert model[0].weight.grad is None
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        audited()
    with pytest.raises(ValueError, match="count is 5"):
        one_hot_records(5, (2, 2))


# One update ------------------------------------------------------------------------------------


def test_a_linear_layer_gives_its_input_away_exactly() -> None:
    draw = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.Tanh(), nn.Linear(64, 10))
    image = torch.rand(1, 1, 28, 28, generator=draw)
    gradients = torch.autograd.grad(
        cross_entropy(model(image), torch.tensor([3])), list(model.parameters())
    )
    rebuilt = invert_first_linear_layer(gradients[0], gradients[1])
    torch.testing.assert_close(rebuilt, image.flatten(), rtol=1e-3, atol=1e-3)
    clipped = invert_first_linear_layer(0.001 * gradients[0], 0.001 * gradients[1])
    torch.testing.assert_close(clipped, rebuilt, rtol=1e-3, atol=1e-3)  # clipping hides nothing
    noise = [0.5 * torch.randn(g.shape, generator=draw) for g in gradients[:2]]
    noised = invert_first_linear_layer(gradients[0] + noise[0], gradients[1] + noise[1])
    correlation = float(torch.corrcoef(torch.stack([noised, image.flatten()]))[0, 1])
    assert abs(correlation) < 0.3
    with pytest.raises(ValueError, match="shape"):
        invert_first_linear_layer(gradients[0], gradients[0])
    assert not invert_first_linear_layer(torch.ones(2, 3), torch.zeros(2)).any()


def test_a_sum_of_clients_gives_each_ones_input_away_and_noise_does_not() -> None:
    """Six clients with an image each; each number's noise is half as large as the number."""
    draw = torch.Generator().manual_seed(6)
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(100, 96), nn.ReLU(), nn.Linear(96, 10))
    images, labels = torch.randn(6, 100, generator=draw), torch.arange(6)
    gradients = torch.autograd.grad(
        cross_entropy(model(images), labels, reduction="sum"), list(model.parameters())
    )[:2]
    weights, bias = gradients

    def likeness(weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        rebuilt = invert_batch(weights, bias, examples=6)
        both = torch.nan_to_num(torch.corrcoef(torch.cat([rebuilt, images])))
        return both[:6, 6:].abs().amax(dim=0)

    assert (likeness(weights, bias) > 0.999).all()
    one = invert_batch(torch.outer(bias, images[0]), bias, examples=1)
    torch.testing.assert_close(one, images[:1], rtol=1e-3, atol=1e-3)
    size = float(weights.norm()) / weights.numel() ** 0.5
    noised = [g + 0.5 * size * torch.randn(g.shape, generator=draw) for g in gradients]
    assert (likeness(noised[0], noised[1]) < 0.5).all()
    with pytest.raises(ValueError, match="shape"):
        invert_batch(bias, bias, examples=2)


def test_a_gradient_is_matched_by_its_input() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(), nn.Flatten(), nn.Linear(256, 4)
    )
    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:6, 3:5] = 1.0
    gradients = torch.autograd.grad(
        cross_entropy(model(image), torch.tensor([2])), list(model.parameters())
    )
    update = [-0.01 * g for g in gradients]
    rebuilt = match_gradient(
        model, update, label=2, shape=(1, 8, 8), steps=120, restarts=2, smoothness=1e-3
    )
    correlation = float(torch.corrcoef(torch.stack([rebuilt.flatten(), image.flatten()]))[0, 1])
    assert correlation > 0.9
    with pytest.raises(ValueError, match="shapes"):
        match_gradient(model, update[:2], label=2, shape=(1, 8, 8))
