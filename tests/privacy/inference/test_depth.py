"""As many squares as a ring holds, through encryption."""

import numpy as np
import torch
from torch import nn

from privacy.inference import Evaluator, MeasurementOwner, Square, compile_model

DEPTH = 7


def test_seven_squares_in_a_row_are_answered() -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(4, 4)]
    for _ in range(DEPTH):
        layers += [Square(), nn.Linear(4, 4)]
    model = nn.Sequential(*layers).eval()
    compiled = compile_model(model, input_shape=4, input_range=(-1.0, 1.0))
    plan = compiled.plan
    assert plan.levels > DEPTH
    assert plan.headroom_bits >= 0
    owner = MeasurementOwner(plan)
    evaluator = Evaluator(compiled, owner.public_material())
    double = model.double()
    for x in np.random.default_rng(0).uniform(-1.0, 1.0, (2, 4)):
        with torch.no_grad():
            expected = double(torch.from_numpy(x)[None]).numpy()[0]
        error = np.abs(owner.logits(evaluator.evaluate(owner.encrypt(x)))[0] - expected).max()
        # Twice six deviations for inputs drawn evenly, as in the property over random models.
        assert error < 2 * 2.0**plan.error_bits
        assert np.abs(expected).max() < 2.0**plan.logit_bits
