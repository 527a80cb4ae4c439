"""Layouts and diagonals against plain matrix products."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from privacy.inference import Square
from privacy.inference.arithmetic.network import Affine
from privacy.inference.arithmetic.program import Sums
from privacy.inference.ckks import CONJUGATE
from privacy.inference.compiler.hoisting import groupings
from privacy.inference.compiler.lowering.lower import lower
from privacy.inference.compiler.packing import (
    block_sums,
    copy_sums,
    diagonals,
    gather,
    periodic_layout,
    power_of_two,
    spread,
    steps_of,
)
from privacy.inference.plan import EMPTY

SLOTS = 256


def affine(
    outputs: int, inputs: int, generator: np.random.Generator, density: float = 1.0
) -> Affine:
    values = generator.normal(size=(outputs, inputs))
    matrix = sparse.csr_array(values * (generator.random(values.shape) < density))
    return Affine(matrix, generator.normal(size=outputs), sparse.csr_array(matrix != 0), "layer")


def summed(values: np.ndarray, sums: Sums) -> np.ndarray:
    for group in sums:
        rotations = [
            values.conj() if step == CONJUGATE else np.roll(values, -step) for step in group
        ]
        values = values + sum(rotations)
    return values


def grouped(sums: Sums, most: int) -> Sums:
    """As many ways as there are to take doublings together."""
    ways = list(groupings(sums))
    return ways[min(most, len(ways)) - 1]


@given(
    inputs=st.integers(1, 64),
    outputs=st.integers(1, 64),
    log_period=st.integers(0, 8),
    split=st.integers(0, 8),
    most=st.integers(1, 3),
    density=st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    arranged=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_diagonals_are_the_matrix(
    inputs: int,
    outputs: int,
    log_period: int,
    split: int,
    most: int,
    density: float,
    arranged: bool,
    seed: int,
) -> None:
    period = max(power_of_two(inputs), 1 << log_period)
    generator = np.random.default_rng(seed)
    layer = affine(outputs, inputs, generator, density)
    layout = periodic_layout(inputs, period, power_of_two(outputs) if arranged else None)
    steps = steps_of(layer.structure, layout)
    windows = list(steps.windows)
    window = windows[min(split, len(windows) - 1)]
    sums = grouped(copy_sums(max(period, power_of_two(outputs)), power_of_two(outputs)), most)
    packed = diagonals(layer, layout, SLOTS, source=3, window=window, sums=sums)
    assert (packed.source, packed.window) == (3, window)
    assert sorted(big * window + small for big, small in packed.weights) == list(
        steps.numbers if layer.structure.nnz else ()
    )
    if density == 1.0 and arranged and period >= power_of_two(outputs):
        # Every entry once: no more rotations than a slot of the outputs has inputs to read.
        assert len(steps.numbers) <= max(1, power_of_two(inputs) * power_of_two(outputs) // period)
    x = np.random.default_rng(seed + 1).normal(size=inputs)
    slots = np.tile(np.where(layout == EMPTY, 0.0, np.append(x, 0.0)[layout]), SLOTS // period)
    total = np.zeros(SLOTS)
    for big in range(steps.giants(window) - 1, -1, -1):
        total = np.roll(total, -window)
        for small in steps.babies(window):
            if (big, small) in packed.weights:
                total = total + np.roll(slots, -small) * packed.weights[big, small]
    result = summed(total, packed.sums)
    expected = layer.matrix @ x
    for slot in range(SLOTS):
        output = slot % power_of_two(outputs)
        if output < outputs:
            np.testing.assert_allclose(result[slot], expected[output], atol=1e-9)


def test_a_convolution_takes_the_rotations_of_its_kernel_for_each_pair_of_channels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), Square(), nn.Conv2d(4, 4, 3, padding=1), Square(),
        nn.Flatten(), nn.Linear(4 * 64, 2),
    )  # fmt: skip
    layer = lower(model, (1, 8, 8)).layers[1].affines[0]
    steps = steps_of(layer.structure, periodic_layout(256, 256, None))
    # Of four channels seven differences, one of them and its turn around the vector alike.
    assert len(steps.numbers) == 9 * 4
    assert len(steps.babies(64)) == 9
    assert steps.giants(64) == 4


@given(
    inputs=st.integers(1, 64),
    outputs=st.integers(1, 64),
    log_blocks=st.integers(0, 3),
    paired=st.booleans(),
    following=st.sampled_from([None, 1, 16, 128]),
    most=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_gathering_is_the_matrix(
    inputs: int,
    outputs: int,
    log_blocks: int,
    paired: bool,
    following: int | None,
    most: int,
    seed: int,
) -> None:
    blocks = min(1 << log_blocks, SLOTS // power_of_two(outputs))
    layer = affine(outputs, inputs, np.random.default_rng(seed))
    sums = grouped(block_sums(SLOTS, blocks, paired=paired), most)
    packed, layout = gather(
        layer, SLOTS, blocks=blocks, paired=paired, following=following, sums=sums
    )
    x = np.append(np.random.default_rng(seed + 1).normal(size=inputs), 0.0)
    placed = x[np.where(packed.taps == EMPTY, -1, packed.taps)]
    slots = placed[0] + (1j * placed[1] if paired else 0)
    total = summed((slots * packed.weights).sum(axis=0), packed.sums)
    expected = layer.matrix @ x[:-1] + layer.bias
    for slot, value in enumerate(total + spread(layer.bias, layout, SLOTS)):
        entry = layout[slot % len(layout)]
        if entry != EMPTY:
            np.testing.assert_allclose(value, expected[entry], atol=1e-9)
