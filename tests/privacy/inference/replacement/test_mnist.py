"""Networks with ReLU, trained on MNIST, from replacement to encrypted answers."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from flower_app.data import encode, load_dataset
from privacy.inference import PublicData, certify, compile_model, replace_activations
from tests.privacy.inference.replacement.replacement_models import trained

_IMAGES = 8000


@cache
def images() -> tuple[PublicData, Tensor, Tensor]:
    """Public data, and the test images and labels."""
    data = load_dataset("mnist")
    train, test = data.train, data.test
    return (
        PublicData(encode(train.images[:_IMAGES], "pixels"), train.labels[:_IMAGES]),
        torch.from_numpy(np.array(encode(test.images[:2000], "pixels"))),
        torch.from_numpy(np.array(test.labels[:2000])).long(),
    )


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 5, stride=3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


@pytest.mark.parametrize(("make", "distance"), [(mlp, 0.01), (cnn, 0.015)])
def test_a_relu_network_answers_under_encryption_about_as_well_as_before(
    make: type[nn.Sequential], distance: float
) -> None:
    """``distance`` is how much lower the accuracy may be on images that nobody trained on."""
    public, test, labels = images()
    torch.manual_seed(0)
    model = trained(make(), public, epochs=2)
    result = replace_activations(model, data=public, epochs=3)
    new = result.model
    assert isinstance(new, nn.Sequential)
    with torch.no_grad():
        before, after = (
            float((each(test).argmax(1) == labels).float().mean()) for each in (model, new)
        )
    assert before > 0.9
    assert after > before - distance
    assert result.report.agreement > 0.97

    assert isinstance(public.inputs, Tensor)
    compiled = compile_model(
        new, input_shape=(1, 28, 28), input_range=(0.0, 1.0), sample=public.inputs[:32]
    )
    certificate = certify(compiled, test[:20], labels[:20])
    assert certificate.beyond_prediction == 0
    assert certificate.agreement == 1.0
