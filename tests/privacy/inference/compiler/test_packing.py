"""Layouts and diagonals against plain matrix products."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from privacy.inference.arithmetic.network import Affine
from privacy.inference.arithmetic.program import Sums
from privacy.inference.ckks import CONJUGATE
from privacy.inference.compiler.hoisting import groupings
from privacy.inference.compiler.packing import (
    block_sums,
    copy_sums,
    diagonals,
    gather,
    periodic_layout,
    power_of_two,
    splits,
    steps_between,
)
from privacy.inference.plan import EMPTY

SLOTS = 256


def affine(outputs: int, inputs: int, generator: np.random.Generator) -> Affine:
    matrix = sparse.csr_array(generator.normal(size=(outputs, inputs)))
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
    seed=st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_diagonals_are_the_matrix(
    inputs: int, outputs: int, log_period: int, split: int, most: int, seed: int
) -> None:
    period = max(power_of_two(inputs), 1 << log_period)
    layer = affine(outputs, inputs, np.random.default_rng(seed))
    layout = periodic_layout(inputs, period, power_of_two(outputs))
    steps = steps_between(power_of_two(inputs), power_of_two(outputs), period)
    ways = list(splits(steps))
    baby, giant = ways[min(split, len(ways) - 1)]
    sums = grouped(copy_sums(max(period, power_of_two(outputs)), power_of_two(outputs)), most)
    packed = diagonals(layer, layout, SLOTS, baby=baby, sums=sums)
    assert packed.baby == baby
    assert packed.giant <= giant
    assert giant <= baby
    assert baby * giant >= steps
    x = np.random.default_rng(seed + 1).normal(size=inputs)
    slots = np.tile(np.where(layout == EMPTY, 0.0, np.append(x, 0.0)[layout]), SLOTS // period)
    total = np.zeros(SLOTS)
    for big in range(packed.giant - 1, -1, -1):
        total = np.roll(total, -packed.baby)
        for small in range(packed.baby):
            if (big, small) in packed.diagonals:
                total = total + np.roll(slots, -small) * packed.diagonals[big, small]
    result = summed(total, packed.sums) + packed.bias
    expected = layer.matrix @ x + layer.bias
    for slot in range(SLOTS):
        entry = packed.layout[slot % len(packed.layout)]
        if entry != EMPTY:
            np.testing.assert_allclose(result[slot], expected[entry], atol=1e-9)


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
    packed = gather(layer, SLOTS, blocks=blocks, paired=paired, following=following, sums=sums)
    x = np.append(np.random.default_rng(seed + 1).normal(size=inputs), 0.0)
    placed = x[np.where(packed.taps == EMPTY, -1, packed.taps)]
    slots = placed[0] + (1j * placed[1] if paired else 0)
    total = summed((slots * packed.weights).sum(axis=0), packed.sums)
    expected = layer.matrix @ x[:-1] + layer.bias
    for slot, value in enumerate(total + packed.bias):
        entry = packed.layout[slot % len(packed.layout)]
        if entry != EMPTY:
            np.testing.assert_allclose(value, expected[entry], atol=1e-9)
