"""Comparison by function secret sharing: right for every number, alike in kernels and in arrays."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.shared_inference import aes, comparison
from privacy.shared_inference.aes import PublicPermutation
from privacy.shared_inference.comparison import evaluate, levels, make_keys, seeds_of

BOTH = pytest.mark.parametrize("hardware", [True, False], ids=["kernels", "arrays"])


def use(hardware: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if hardware and not aes.in_hardware():
        pytest.skip("this processor has no AES instructions")
    monkeypatch.setattr(comparison, "in_hardware", lambda: hardware)


def drawn_seeds(count: int) -> np.ndarray:
    return seeds_of(np.frombuffer(os.urandom(16 * count), dtype=np.uint64).reshape(count, 2))


def keys_of(
    alpha: np.ndarray, width: int, seeds: tuple[np.ndarray, np.ndarray], pi: PublicPermutation
) -> np.ndarray:
    corrections = np.empty((levels(width) + 1, len(alpha), 2), np.uint64)
    make_keys(alpha, width, *seeds, pi, corrections)
    return corrections


def below(alpha: np.ndarray, x: np.ndarray, width: int) -> np.ndarray:
    """[x < alpha] as both holders compute it."""
    pi = PublicPermutation(os.urandom(16))
    seeds = drawn_seeds(len(alpha)), drawn_seeds(len(alpha))
    keys = keys_of(alpha, width, seeds, pi)
    one, other = (evaluate(holder, x, width, seeds[holder], keys, pi) for holder in (0, 1))
    return one ^ other


@BOTH
@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 9, 10])
def test_every_pair_of_small_numbers(
    width: int, hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hardware, monkeypatch)
    drawn = np.random.default_rng(width)
    numbers = np.arange(2**width, dtype=np.uint64)
    alphas = numbers if width <= 8 else drawn.choice(numbers, 40)
    alpha, x = (grid.ravel() for grid in np.meshgrid(alphas, numbers))
    assert np.array_equal(below(alpha, x, width), x < alpha)


@BOTH
@pytest.mark.parametrize("width", [11, 23, 39, 61, 63])
def test_numbers_at_and_around_alpha(
    width: int, hardware: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(hardware, monkeypatch)
    mask = np.uint64(2**width - 1)
    drawn = np.frombuffer(os.urandom(8 * 600), dtype=np.uint64) & mask
    alpha = np.concatenate([drawn, [np.uint64(0), mask]]).astype(np.uint64)
    flipped = alpha ^ (np.uint64(1) << np.arange(len(alpha), dtype=np.uint64) % np.uint64(width))
    for x in (alpha, alpha + np.uint64(1), alpha - np.uint64(1), flipped, drawn[::-1]):
        reached = np.resize(x, len(alpha)) & mask
        assert np.array_equal(below(alpha, reached, width), reached < alpha)


@given(st.integers(1, 63), st.data())
def test_any_width_and_any_numbers(width: int, data: st.DataObject) -> None:
    numbers = st.integers(0, 2**width - 1)
    alpha, x = (np.array([data.draw(numbers)], dtype=np.uint64) for _ in range(2))
    assert below(alpha, x, width) == (x < alpha)


def test_kernels_and_arrays_make_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    alpha = np.frombuffer(os.urandom(8 * 300), dtype=np.uint64) >> np.uint64(64 - 29)
    pi, seeds = PublicPermutation(os.urandom(16)), (drawn_seeds(300), drawn_seeds(300))
    made = []
    for hardware in (True, False):
        use(hardware, monkeypatch)
        made.append(keys_of(alpha, 29, seeds, pi))
    assert made[0].shape == (levels(29) + 1, 300, 2)
    assert np.array_equal(*made)


def test_the_published_vector_of_aes() -> None:
    """FIPS 197, appendices A.1 and B."""
    key = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")
    last = bytes.fromhex("d014f9a8c9ee2589e13f0cc8b6630ca6")
    assert aes.round_keys(key)[-2:].astype("<u8").tobytes() == last
    block = bytes.fromhex("3243f6a8885a308d313198a2e0370734")
    words = np.frombuffer(block, dtype="<u8").reshape(1, 2)
    made = PublicPermutation(key).hashed(words) ^ words
    assert made.astype("<u8").tobytes() == bytes.fromhex("3925841d02dc09fbdc118597196a0b32")


def test_a_holders_bits_are_even() -> None:
    """A holder's own bits tell nothing: as many ones as zeros, for the least x and the largest.

    False alarms: each of four counts of 20,000 fair bits lies six standard deviations off with
    probability 2·10^-9.
    """
    count, width = 20_000, 23
    pi, seeds = PublicPermutation(os.urandom(16)), (drawn_seeds(count), drawn_seeds(count))
    alpha = np.full(count, 2**22 + 5, dtype=np.uint64)
    keys = keys_of(alpha, width, seeds, pi)
    for holder in (0, 1):
        for x in (0, 2**23 - 1):
            given_x = np.full(count, x, dtype=np.uint64)
            ones = int(evaluate(holder, given_x, width, seeds[holder], keys, pi).sum())
            assert abs(ones - count / 2) < 6 * (count / 4) ** 0.5
