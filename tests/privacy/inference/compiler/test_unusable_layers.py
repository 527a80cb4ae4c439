"""Layers that answer nothing, or no numbers, are refused for that and for no other reason."""

import warnings

import pytest
import torch
from torch import nn

from privacy.inference import Polynomial, Square, compile_model
from privacy.inference.errors import CannotPlanError


def compiled(*layers: nn.Module, high: float = 1.0) -> None:
    torch.manual_seed(0)
    compile_model(nn.Sequential(*layers).eval(), input_shape=(4,), input_range=(-1.0, high))


def linear(inputs: int, outputs: int) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, that there is nothing to initialise
        return nn.Linear(inputs, outputs)


@pytest.mark.parametrize(
    ("layers", "name"),
    [
        ([linear(4, 0)], r"0 \(Linear\)"),
        ([nn.Linear(4, 3), Square(), linear(3, 0)], r"2 \(Linear\)"),
        ([linear(4, 0), Square(), linear(0, 3)], r"0 \(Linear\)"),
        ([nn.Identity(), nn.Sequential(linear(4, 0)), linear(0, 3)], r"1.0 \(Linear\)"),
    ],
)
def test_a_layer_without_outputs_is_named(layers: list[nn.Module], name: str) -> None:
    with pytest.raises(ValueError, match=rf"layer {name} has no outputs"):
        compiled(*layers)


@pytest.mark.parametrize(
    ("variance", "eps"), [(-1.0, 1e-5), (-1e-3, 1e-5), (0.0, 0.0), (1.0, -1.0), (1.0, -2.0)]
)
@pytest.mark.parametrize("images", [False, True])
def test_a_batchnorm_without_a_variance_is_named(variance: float, eps: float, images: bool) -> None:
    norm: nn.BatchNorm1d | nn.BatchNorm2d = (
        nn.BatchNorm2d(1, eps=eps) if images else nn.BatchNorm1d(4, eps=eps)
    )
    assert norm.running_var is not None
    norm.running_var[0] = variance
    torch.manual_seed(0)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.raises(ValueError, match=r"layer 0 \(BatchNorm.d\): running_var goes down to"):
        compile_model(model, input_shape=(1, 2, 2) if images else (4,), input_range=(-1.0, 1.0))


def test_a_variance_of_zero_is_one_where_eps_is_none() -> None:
    norm = nn.BatchNorm1d(4)
    assert norm.running_var is not None
    norm.running_var[:] = 0.0
    compiled(norm, nn.Linear(4, 3))


def test_overflow_has_an_error_of_its_own() -> None:
    large = nn.Linear(4, 3).double()
    with torch.no_grad():
        large.weight *= 1e200
        large.weight[0, 0] *= -1
    for layers in ([large, Square()], [large, Polynomial([0.0, 1.0, -1.0, 0.0, 1.0])]):
        with pytest.raises(CannotPlanError, match="larger than any number of double precision"):
            compiled(*layers, nn.Linear(3, 2))


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (-torch.inf, "infinity")])
def test_nan_and_infinite_weights_have_errors_of_their_own(value: float, word: str) -> None:
    broken = nn.Linear(4, 3)
    with torch.no_grad():
        broken.weight[1, 2] = value
    with pytest.raises(ValueError, match=rf"layer 0 \(Linear\): weight holds {word}; load"):
        compiled(broken)
