"""Norms that are flat, per layer or adaptive."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.accounting import GaussianRelease, read_ledger
from strategies import (
    AdaptiveClipping,
    DPFedAvg,
    Full,
    PerLayerClipping,
)
from tests.strategies.federation import (
    answer,
    ask,
    grid_of,
    model,
    nobody_of,
    noiseless,
    released,
    sent,
)


def test_per_layer_norms_hold_apart(tmp_path: Path) -> None:
    strategy = noiseless(tmp_path, clipping=PerLayerClipping({"0": 0.3, "1": 0.4}))
    assert strategy.clipping.norm == pytest.approx(0.5)
    nodes = ask(strategy, grid_of(4), model((3,), (2,)))
    replies = [
        answer(m, [np.full(3, 9, np.float32), np.zeros(2, np.float32)]) for m in nodes.values()
    ]
    a, b = released(strategy, replies)
    assert np.linalg.norm(a) == pytest.approx(0.3, rel=1e-4)
    assert not b.any()


def test_per_layer_names_are_checked() -> None:
    clipping = PerLayerClipping({"conv": 1.0, "conv.2": 2.0, "fc": 3.0})
    assert clipping.geometry(["conv.1", "conv.2.weight", "fc"]).group_of == (0, 1, 2)
    with pytest.raises(ValueError, match="'bn'"):
        clipping.geometry(["bn", "conv", "conv.2", "fc"])
    with pytest.raises(ValueError, match="fc"):
        clipping.geometry(["conv", "conv.2"])


def adaptive_round(folder: Path, far: int, **settings: Any) -> tuple[DPFedAvg, Any]:
    clipping = AdaptiveClipping(initial_norm=1.0, quantile=0.5, **settings)
    strategy = noiseless(folder, population=8, clipping=clipping)
    nodes = ask(strategy, grid_of(8), model())
    values = {n: (5.0 if n <= far else 0.1) for n in nodes}
    return strategy, released(strategy, sent(nodes, values))


@pytest.mark.parametrize("far", [0, 2, 4, 8])
def test_the_adaptive_norm_follows_the_quantile(far: int, tmp_path: Path) -> None:
    strategy, (w,) = adaptive_round(tmp_path, far)
    assert w[0] == pytest.approx((far * 1.0 + (8 - far) * 0.1) / 8, rel=1e-3)  # clipped to 1.0
    unclipped = 1 - far / 8
    assert strategy.clipping.norm == pytest.approx(math.exp(-0.2 * (unclipped - 0.5)), rel=1e-3)


def test_the_norm_that_clips_is_the_norm_its_noise_is_sized_for(tmp_path: Path) -> None:
    """Also while it shrinks and grows: every round's noise is z_Δ times that round's norm."""
    clipping = AdaptiveClipping(initial_norm=1.0, learning_rate=1.5, count_noise=4.0)
    strategy = noiseless(tmp_path, population=8, clipping=clipping, noise_multiplier=2.0)
    z_update = (2.0**-2 - 8.0**-2) ** -0.5
    size = 20_000
    norms = []
    for number in range(1, 6):
        norm = strategy.clipping.norm
        norms.append(norm)
        ask(strategy, nobody_of(8), model((size,)), number)
        (w,) = released(strategy, [], number)
        expected = z_update * norm / 8
        # The variance of 20,000 draws is χ²: ±6 standard errors, 2·10⁻⁹ a round.
        assert abs(w.var() / expected**2 - 1) < 6 * math.sqrt(2 / size)
    assert max(norms) / min(norms) > 1.5
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events == [GaussianRelease(2.0, Full())] * 5


def test_an_absurd_step_of_the_norm_is_held() -> None:
    clipping = AdaptiveClipping(initial_norm=1.0, learning_rate=1e6)
    clipping.follow(-1e9)
    assert clipping.norm == 1e12
    clipping.follow(1e9)
    clipping.follow(1e9)
    assert clipping.norm == 1e-12


def test_too_little_noise_on_the_count_is_refused(tmp_path: Path) -> None:
    clipping = AdaptiveClipping(count_noise=0.5)
    strategy = noiseless(tmp_path, clipping=clipping, noise_multiplier=1.0)
    with pytest.raises(ValueError, match="count_noise"):
        ask(strategy, grid_of(4), model())
