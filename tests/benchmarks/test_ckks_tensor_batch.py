"""What CKKSTensor is given to evaluate is the network, so that its time is that of the network."""

import numpy as np
import tenseal as ts
import torch
from torch import nn

from benchmarks.encrypted_inference.batch import evaluated, squared
from privacy.inference import Polynomial


def test_convolutions_and_parabolas_are_pytorchs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 2, stride=2),
        Polynomial([0.1, 0.5, 0.25]),
        nn.Conv2d(2, 3, 1),
        Polynomial([0.0, -0.5, 0.5]),
        nn.Flatten(),
        nn.Linear(12, 2),
    ).double()
    images = np.random.default_rng(0).uniform(0, 1, (3, 1, 4, 4))
    context = ts.context(ts.SCHEME_TYPE.CKKS, 16384, coeff_mod_bit_sizes=[40, *[30] * 5, 40])
    context.global_scale = 2**30
    rows = ts.plain_tensor(images.reshape(3, 1, -1).tolist())
    encrypted = ts.ckks_tensor(context, rows, batch=True)
    logits = evaluated(encrypted, squared(model), images.shape[1:]).decrypt().tolist()
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(np.asarray(logits).reshape(3, 2), expected, atol=0.01)
