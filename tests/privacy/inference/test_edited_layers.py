"""Layers that were changed after they were made: compiled as PyTorch runs them, or refused."""

import threading
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from privacy.inference import Polynomial, certify, compile_model
from privacy.inference.errors import UnsupportedLayerError

SHAPE = (4, 6, 5)


def compiled_and_pytorch(
    model: nn.Sequential, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Logits of what was compiled and of the model itself."""
    inputs = np.random.default_rng(0).uniform(0, 1, (3, *shape))
    model.eval()
    network = compile_model(model, input_shape=shape, input_range=(0.0, 1.0)).network
    with torch.no_grad():
        expected = model.double()(torch.from_numpy(inputs)).numpy()
    return network(inputs.reshape(3, -1).T).T, expected


def with_settings(**settings: object) -> Callable[[nn.Conv2d], None]:
    def change(layer: nn.Conv2d) -> None:
        for name, value in settings.items():
            setattr(layer, name, value)

    return change


def with_channels(layer: nn.Conv2d) -> None:
    assert layer.bias is not None
    layer.weight, layer.bias = nn.Parameter(layer.weight[:3]), nn.Parameter(layer.bias[:3])


def with_smaller_kernel(layer: nn.Conv2d) -> None:
    layer.weight = nn.Parameter(layer.weight[..., :2, :1].clone())


def with_groups(layer: nn.Conv2d) -> None:
    layer.weight, layer.groups = nn.Parameter(layer.weight[:, :2].clone()), 2


def without_bias(layer: nn.Conv2d) -> None:
    layer.bias = None


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize(
    "change",
    [
        with_settings(padding=(2, 1)),
        with_settings(padding=2),
        with_settings(padding=(2,)),
        with_settings(padding="valid"),
        with_settings(padding="same", dilation=(1, 2)),
        with_settings(stride=2, padding_mode="zeros"),
        with_settings(kernel_size=(5, 5), out_channels=9),
        with_channels,
        with_smaller_kernel,
        with_groups,
        without_bias,
    ],
)
def test_an_edited_convolution_is_what_pytorch_makes_of_it(
    change: Callable[[nn.Conv2d], None], mode: str
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, (3, 2), padding=1, padding_mode=mode)
    change(layer)
    found, expected = compiled_and_pytorch(nn.Sequential(layer, nn.Flatten()), SHAPE)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-9


def test_pruned_channels_go_through_the_layers_after_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 2), nn.Flatten(), nn.Linear(12, 9)
    )
    with_channels(model[0])
    model[1] = nn.BatchNorm2d(3)
    model[2].weight = nn.Parameter(model[2].weight[:, :3].clone())
    model[4].weight = nn.Parameter(model[4].weight[:2].clone())
    model[4].bias = nn.Parameter(model[4].bias[:2].clone())
    found, expected = compiled_and_pytorch(model, SHAPE)
    assert np.abs(found - expected).max() < 1e-9


def test_another_number_of_outputs_than_the_weights_make_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: (x @ self.weight.T)[:, :2])
    with pytest.raises(UnsupportedLayerError, match=r"0 \(Linear\) does something else"):
        compile_model(nn.Sequential(nn.Linear(4, 5)), input_shape=(4,), input_range=(0.0, 1.0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 2), nn.AvgPool2d(2), Polynomial([0.1, 0.2, 0.3])),
        *(nn.Flatten(), nn.Linear(8, 3)),
    )


def keeping_an_activation(model: nn.Sequential) -> None:
    model[2].kept = model(torch.rand(1, 1, 5, 5))


def keeping_a_lock(model: nn.Sequential) -> None:
    model.lock = threading.Lock()


def on_meta(model: nn.Sequential) -> None:
    model[4].to("meta")


def sparse(model: nn.Sequential) -> None:
    with warnings.catch_warnings(action="ignore"):
        model[4].weight = nn.Parameter(model[4].weight.detach().to_sparse_csr())


def with_ten_coefficients(model: nn.Sequential) -> None:
    model[2].coefficients = torch.linspace(0.1, 1.0, 10)


def with_columns_of_coefficients(model: nn.Sequential) -> None:
    model[2].coefficients = torch.ones(3, 1)


def without_coefficients(model: nn.Sequential) -> None:
    del model[2].coefficients


def with_complex_weights(model: nn.Sequential) -> None:
    with warnings.catch_warnings(action="ignore"):
        model[4].to(torch.complex64)


def with_words_for_a_stride(model: nn.Sequential) -> None:
    model[0].stride = "two"


def not_initialised(model: nn.Sequential) -> None:
    with warnings.catch_warnings(action="ignore"):
        model[4] = nn.LazyLinear(3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (keeping_an_activation, r"layer 2 \(Polynomial\) holds kept, .* del module\.kept"),
        (keeping_a_lock, r"model holds lock, which cannot be copied"),
        (on_meta, r"layer 4 \(Linear\): weight is on the meta device"),
        (sparse, r"layer 4 \(Linear\): weight is sparse .*to_dense"),
        (with_ten_coefficients, r"layer 2 \(Polynomial\) has 10 coefficients; give 2 to 8"),
        (with_columns_of_coefficients, r"coefficients has shape \(3, 1\)"),
        (without_coefficients, r"layer 2 \(Polynomial\) does not take inputs"),
        (with_complex_weights, r"layer 4 \(Linear\): weight is complex"),
        (with_words_for_a_stride, r"layer 0 \(Conv2d\) does not take inputs"),
        (not_initialised, r"layer 4 \(LazyLinear\) has no weights yet; run a batch"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_name_of_the_layer(
    change: Callable[[nn.Sequential], None], words: str
) -> None:
    model = net().eval()
    change(model)
    with pytest.raises(ValueError, match=words):
        compile_model(model, input_shape=(1, 5, 5), input_range=(0.0, 1.0))


def test_coefficients_in_a_buffer_that_is_not_saved_are_read() -> None:
    model = net()
    values = model[2].coefficients.clone()
    del model[2].coefficients
    model[2].register_buffer("coefficients", values, persistent=False)
    found, expected = compiled_and_pytorch(model, (1, 5, 5))
    assert np.abs(found - expected).max() < 1e-9


def test_a_default_device_does_not_matter_to_a_model_on_the_cpu() -> None:
    model = net().eval()
    inputs = np.random.default_rng(0).uniform(0, 1, (2, 1, 5, 5))
    with torch.device("meta"):
        assert Polynomial([0.0, 1.0, 2.0]).coefficients.is_meta
        Polynomial.fitted(nn.Tanh(), low=-1.0, high=2.0)
        compiled = compile_model(model, input_shape=(1, 5, 5), input_range=(0.0, 1.0))
        assert certify(compiled, inputs, [0, 1]).beyond_worst_prediction == 0
