"""The silos' benchmark: what it computes in one place is what silos compute each on their own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.harness import Spread
from benchmarks.silos import measure
from benchmarks.silos.arms import DELTA, RECORDS, noise_of, silo_step, skewed_parts
from benchmarks.silos.measure import CELLS, OWN, SHARED, Cell
from benchmarks.silos.steps import StepCost
from flower_app.models.build import build_model
from privacy.accounting import GaussianRelease, Poisson, Repeated, epsilon
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import Persons, SiloStep, silo_sum


def test_one_sum_over_everybody_is_the_sum_of_the_silos() -> None:
    """With everybody drawn and next to no noise: as near as the rounding of each silo's sum."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3)
    inputs, labels = torch.randn(40, 6), torch.randint(3, (40,))
    step = SiloStep(
        mechanism=SiloGaussian(min_silos=2),
        clipping_norm=0.5,
        noise_multiplier=1e-5,
        sampling_rate=1.0 - 1e-12,
        persons=RECORDS,
    )
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


def test_a_run_that_was_stopped_goes_on_with_what_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept is neither trained nor timed again, and what is not there yet is."""
    monkeypatch.setattr(measure, "KEPT", tmp_path / "runs.json")
    monkeypatch.setattr(measure, "CELLS", CELLS[:1])
    monkeypatch.setattr(measure, "SKEWED", ())
    monkeypatch.setattr(measure, "TIMED", (("hog-linear", 3),))
    trained: list[measure.Run] = []
    monkeypatch.setattr(measure, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))

    def score(one: measure.Run) -> tuple[float, None]:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(one)
        return 90.0 + one.seed, None

    monkeypatch.setattr(measure, "_score", score)
    with pytest.raises(KeyboardInterrupt):
        measure.run(quick=False, log=lambda line: None)
    first = trained.copy()
    trained.clear()
    cost = StepCost(Spread.of([1.0]), Spread.of([2.0]), 5.0)
    monkeypatch.setattr(measure.steps, "measure", lambda *_, **__: cost)
    monkeypatch.setattr(measure, "_data", lambda model: None)
    monkeypatch.setattr(measure, "_score", lambda one: trained.append(one) or (90.0 + one.seed, 1))
    lines: list[str] = []
    rows = measure.run(quick=False, log=lines.append)
    assert lines[0].startswith("3 figures are in ")
    assert len(trained) == 4 * measure.SEEDS - 3
    assert not set(first) & set(trained)
    assert [row.ours.median for row in rows] == [91.0, 91.0, 91.0, 1.0, 5.0]
    assert not (tmp_path / "runs.json").exists()
