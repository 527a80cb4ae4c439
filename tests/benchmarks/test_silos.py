"""The silos' benchmark: what it computes in one place is what silos compute each on their own."""

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.silos.arms import DELTA, Setting, noise_of, silo_step, skewed_parts
from benchmarks.silos.measure import CELLS, OWN, SHARED, Cell
from flower_app.models.build import build_model
from privacy.accounting import GaussianRelease, Poisson, Repeated, epsilon
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import Persons, silo_sum


def test_one_sum_over_everybody_is_the_sum_of_the_silos() -> None:
    """With everybody drawn and next to no noise: as near as the rounding of each silo's sum."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    inputs, labels = torch.randn(40, 6), torch.randint(3, (40,))
    mechanism = SiloGaussian(min_silos=2)
    setting = Setting(steps=1, rate=1.0 - 1e-12, clipping_norm=0.5, learning_rate=1.0)
    step = silo_step(model, mechanism, setting, epsilon=1e9)
    noise = step.mechanism.share_variance(step.noise_multiplier) ** 0.5

    def total(parts: list[slice]) -> np.ndarray:
        return sum(
            silo_sum(
                model,
                Persons((inputs[part], labels[part])),
                loss=nn.functional.cross_entropy,
                step=step,
                ledger=None,
                randomness=SeededRandomness(0),
            )
            for part in parts
        )

    apart = total([slice(0, 10), slice(10, 15), slice(15, 40)])
    together = total([slice(0, 40)])
    assert np.abs(together).max() > 1000 * (3 + 10 * noise)
    assert np.abs(apart - together).max() < 3 + 10 * noise


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.case)
def test_every_cell_spends_its_budget_and_no_more(cell: Cell) -> None:
    few, shared = FewSilos(cell.silos), SHARED[cell.model][cell.epsilon]
    own = OWN[cell.model, cell.silos, cell.epsilon]
    model = build_model(cell.model)
    mechanism = SiloGaussian(few.min_silos, few.colluders)
    ours = silo_step(model, mechanism, shared, cell.epsilon).event(
        sum(parameter.numel() for parameter in model.parameters())
    )
    alone = GaussianRelease(noise_of(own, cell.epsilon), Poisson(own.rate))
    for event, steps in ((ours, shared.steps), (alone, own.steps)):
        spent = epsilon([Repeated(event, steps)], delta=DELTA)
        assert 0.999 * cell.epsilon < spent <= cell.epsilon


def test_skewed_silos_hold_every_row_once_and_few_labels_each() -> None:
    labels = torch.arange(1000) % 10
    parts = skewed_parts(labels, 20, seed=0)
    assert torch.cat(parts).sort().values.tolist() == list(range(1000))
    assert len(parts) == 20
    assert len({len(part) for part in parts}) > 10
    assert sum(len(labels[part].unique()) for part in parts) <= 20 + 9
