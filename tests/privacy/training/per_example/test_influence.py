"""No record moves a step by more than its clipping norm, whatever precision the model has."""

import math

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
    train,
)

PRECISIONS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def move_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: object, clipping_norm: float
) -> Tensor:
    """How far one step over one record moves the parameters, which are zero before."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    train(
        model,
        (inputs, targets),
        loss=loss,  # type: ignore[arg-type]
        optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
        protection=ClipOnly(clipping_norm=clipping_norm),
        batches=FullBatch(),
    )
    return torch.cat([p.detach().double().flatten() for p in model.parameters()])


class Looked(nn.Module):
    """A table whose rows are multiplied by what comes with the indices."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.table(torch.arange(x.shape[1]).expand(len(x), -1) % 3)
        return (rows * x[..., None]).sum((1, 2))[:, None]  # type: ignore[no-any-return]


class Scaled(nn.Module):
    """Parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale).sum(1, keepdim=True)  # type: ignore[no-any-return]


MODELS = {
    "two factors": lambda: nn.Linear(6, 1),
    "Gram matrices": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 3)), nn.Linear(3, 40), nn.Flatten(), nn.Linear(80, 1)
    ),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 1, 6), nn.Flatten()),
    "table rows": Looked,
    "torch.func": Scaled,
}


def times(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss whose gradient is as large as its target."""
    return outputs[:, 0] * targets


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=15, deadline=None)
@given(
    dtype=st.sampled_from(PRECISIONS),
    size=st.floats(-320, 320),
    target=st.floats(-320, 320),
    norm=st.floats(-12, 3),
)
def test_tiny_and_huge_gradients_move_the_model_by_at_most_the_norm(
    kind: str, dtype: torch.dtype, size: float, target: float, norm: float
) -> None:
    """Also where squares vanish or overflow, and where one factor is tiny and the other huge."""
    largest = math.log10(torch.finfo(dtype).max) - 1
    smallest = math.log10(torch.finfo(dtype).smallest_normal) - 5
    exponents = [max(smallest, min(largest, each)) for each in (size, target)]
    clipping_norm = 10.0**norm
    inputs = torch.full((1, 6), 10.0 ** exponents[0], dtype=dtype)
    inputs[0, 1:3] *= -0.5
    targets = torch.full((1,), 10.0 ** exponents[1], dtype=dtype)
    moved = move_of(MODELS[kind]().to(dtype), inputs, targets, times, clipping_norm)
    assert torch.isfinite(moved).all()
    # The step is exact to the model's own rounding of each coordinate.
    unit = torch.finfo(dtype).eps
    steps = math.sqrt(len(moved)) * torch.finfo(dtype).smallest_normal * unit
    assert float(moved.norm()) <= clipping_norm * (1 + unit) + steps


def test_a_tiny_and_a_huge_factor_are_clipped() -> None:
    """Squares that vanish in single precision: the norm is 0.03, not zero."""
    inputs, targets = torch.full((1, 10_000), 2e-23), torch.full((1, 1), 8e18)
    for clipping_norm in (1e-2, 1e-4):
        moved = move_of(
            nn.Linear(10_000, 1, bias=False), inputs, targets, F.mse_loss, clipping_norm
        )
        assert float(moved.norm()) == pytest.approx(clipping_norm, rel=1e-5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", MODELS)
def test_a_gradient_that_is_not_finite_moves_nothing(
    kind: str, poison: float, dtype: torch.dtype
) -> None:
    inputs = torch.ones(1, 6, dtype=dtype)
    targets = torch.full((1,), poison, dtype=dtype)
    moved = move_of(MODELS[kind]().to(dtype), inputs, targets, times, 1.0)
    assert not moved.any()


def released(n: int, dtype: torch.dtype, seed: int) -> Tensor:
    """What a model shows of n equal records after one noisy step, each adding the norm 1."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    train(
        model,
        (torch.ones(n, 1, dtype=dtype), torch.full((n,), 3.0, dtype=dtype)),
        loss=times,
        optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
        protection=ClipAndNoise(
            clipping_norm=1.0, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=1)
        ),
        batches=FullBatch(),
        ledger=ClientLedger(dataset="d"),
        physical_batch_size=700,
        randomness=SeededRandomness(seed),
    )
    return -model.weight.detach().flatten()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_sum_is_rounded_once_after_the_noise(dtype: torch.dtype) -> None:
    """A sum in bfloat16 would go in steps of 8 here, so that one record moved it by 8 or by 0."""
    for n in range(1025, 1031):
        for seed in (n, n + 1000):
            exact = released(n, torch.float64, seed)
            assert abs(float(exact) - n) < 6
            assert torch.equal(released(n, dtype, seed), exact.to(dtype))


def test_sums_do_not_take_the_precision_of_the_users_matrix_products() -> None:
    """Under autocast, layers work in bfloat16; clipped sums do not."""
    inputs, targets = torch.rand(200, 8), torch.full((200,), 3.0)

    def step(mixed: bool) -> Tensor:
        model = nn.Linear(8, 1)
        nn.init.zeros_(model.weight)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            train(
                model,
                (inputs, targets),
                loss=times,
                optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
                protection=ClipOnly(clipping_norm=0.1),
                batches=FullBatch(),
            )
        return model.weight.detach()

    torch.testing.assert_close(step(True), step(False), rtol=1e-6, atol=0)


def noisy_step(n: int, dtype: torch.dtype, clipping_norm: float, scale: float, seed: int) -> Tensor:
    """One step over n equal records, each as large as the norm, in units of the norm."""
    model = nn.Linear(64, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    inputs = torch.zeros(n, 64, dtype=dtype)
    inputs[:, 0] = 1.0
    train(
        model,
        (inputs, torch.full((n,), scale, dtype=dtype)),
        loss=times,
        optimizer=GradientDescent(model.parameters(), learning_rate=1.0),
        protection=ClipAndNoise(
            clipping_norm=clipping_norm,
            noise_multiplier=1.0,
            delta=1e-5,
            count=NominalCount(records=1),
        ),
        batches=FullBatch(),
        ledger=ClientLedger(dataset="d"),
        randomness=SeededRandomness(seed),
    )
    return -model.weight.detach().double().flatten() / clipping_norm


@pytest.mark.parametrize(
    ("dtype", "clipping_norm"),
    [(dtype, norm) for dtype in PRECISIONS[1:] for norm in (1e-12, 1.0, 1e12)]
    + [(torch.float16, norm) for norm in (1e-2, 1.0, 300.0)],
)
def test_the_norm_that_is_asked_for_leaves_sums_and_noise_their_size(
    dtype: torch.dtype, clipping_norm: float
) -> None:
    """Where sums were taken times S, records beyond some number drowned the noise in rounding."""
    large = 3e4 if dtype == torch.float16 else 3e30
    before, after = (noisy_step(n, dtype, clipping_norm, large, seed=5) for n in (70, 71))
    rounding = 71 * torch.finfo(dtype).eps + 1e-4
    assert float(before[0]) == pytest.approx(70, abs=5)
    assert float((after - before).norm()) <= 1 + rounding
    noise = before[1:]
    assert 0.7 < float(noise.std()) < 1.3
    assert len(noise.unique()) > 40, "no grid that is coarse beside the noise"


def test_what_a_precision_cannot_hold_is_its_largest_number() -> None:
    step = noisy_step(70, torch.float16, 1e12, 3e4, seed=5) * 1e12
    assert step.abs().max() == torch.finfo(torch.float16).max


@pytest.mark.parametrize(
    "norm", [1e-46, 5e-324, 9e-13, 1.1e12, 3e38, 1e308, math.inf, math.nan, 0.0, -1.0, True]
)
def test_a_norm_beyond_the_range_is_refused_by_name(norm: float) -> None:
    with pytest.raises((TypeError, ValueError), match=r"clipping_norm is .* in \[1e-12, 1e\+12\]"):
        ClipOnly(clipping_norm=norm)
    with pytest.raises((TypeError, ValueError), match=r"clipping_norm is .* in \[1e-12, 1e\+12\]"):
        ClipAndNoise(
            clipping_norm=norm, noise_multiplier=1.0, delta=1e-5, count=NominalCount(records=1)
        )


def test_a_nominal_count_beyond_the_range_is_refused_by_name() -> None:
    NominalCount(records=10**12)
    with pytest.raises(ValueError, match="records is an integer of 1329 bits"):
        NominalCount(records=10**400)
