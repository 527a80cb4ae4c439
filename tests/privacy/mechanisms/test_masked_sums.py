"""Masked sums: the client's half and the server's make the plain lattice sum, exactly."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from privacy.accounting import GaussianRelease, Poisson
from privacy.mechanisms import (
    ClippingGeometry,
    LatticeGaussian,
    MaskedGaussian,
    SeededRandomness,
    SystemRandomness,
    lattice_radius,
)
from privacy.mechanisms import blockwise_sums as sums
from privacy.mechanisms.errors import UpdateError
from privacy.secure_aggregation import RoundTerms

FALSE_ALARM = 1e-6
RANDOMNESS = SystemRandomness()
RADII = st.integers(0, 20).map(lambda e: 1 << e)


def encode(mechanism: Any, arrays: Any, reference: Any, geometry: Any, weight: float = 1.0) -> Any:
    return mechanism.encode(
        arrays, reference, geometry, weight=weight, noise_multiplier=0.0, randomness=RANDOMNESS
    )


def decode(mechanism: Any, opened: Any, reference: Any, geometry: Any, z: float = 0.0) -> Any:
    return mechanism.decode(
        opened, reference, geometry, survivors=3, noise_multiplier=z, randomness=RANDOMNESS
    )


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[Any], list[list[Any]], ClippingGeometry, list[float]]:
    """A model of one or two groups, some updates of it, their weights."""
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64]))
    bits = 8 * np.dtype(dtype).itemsize
    shapes = draw(st.lists(hnp.array_shapes(max_dims=2, max_side=9), min_size=1, max_size=3))
    element = st.floats(-100, 100, width=bits)  # type: ignore[arg-type]
    reference = [draw(hnp.arrays(dtype, shape, elements=element)) for shape in shapes]
    replies = [
        [draw(hnp.arrays(dtype, shape, elements=element)) for shape in shapes]
        for _ in range(draw(st.integers(1, 4)))
    ]
    groups = draw(st.sampled_from([(0,) * len(shapes), tuple(range(len(shapes)))]))
    norms = tuple(draw(st.floats(1e-3, 1e3)) for _ in range(max(groups) + 1))
    weights = [draw(st.floats(1e-3, 1.0)) for _ in replies]
    return reference, replies, ClippingGeometry(norms, groups), weights


@settings(max_examples=200, deadline=None)
@given(cohorts(), RADII)
def test_both_halves_make_the_plain_sum(cohort: Any, radius: int) -> None:
    """Bit for bit, at every radius; added up in the ring that the bound asks for."""
    reference, replies, geometry, weights = cohort
    plain = LatticeGaussian(radius).open(
        reference, geometry, noise_multiplier=0.0, randomness=RANDOMNESS
    )
    masked = MaskedGaussian(radius)
    bound = masked.bound(parameters=sum(a.size for a in reference), noise_multiplier=0.0)
    ring = 1 << (2 * len(replies) * bound).bit_length()
    total = np.zeros(sum(a.size for a in reference), dtype=np.int64)
    for arrays, weight in zip(replies, weights, strict=True):
        plain.add(arrays, weight=weight)
        cells = encode(masked, arrays, reference, geometry, weight)
        assert cells.dtype == np.int64
        assert np.abs(cells).max(initial=0) <= bound
        total = (total + cells) % ring
    opened = (total + ring // 2) % ring - ring // 2
    for ours, theirs in zip(
        decode(masked, opened, reference, geometry), plain.release(), strict=True
    ):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


@settings(max_examples=200, deadline=None)
@given(cohorts(), RADII)
def test_no_client_moves_the_sum_by_more_than_the_radius(cohort: Any, radius: int) -> None:
    """In exact integers, whatever the weight."""
    reference, replies, geometry, weights = cohort
    for arrays, weight in zip(replies, weights, strict=True):
        cells = encode(MaskedGaussian(radius), arrays, reference, geometry, weight)
        square = sum(int(x) ** 2 for x in cells)
        assert square <= radius**2
        assert square <= (weight * radius) ** 2 * (1 + 2.0**-40)


def test_what_leaves_the_client_is_measured_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the sum says of its parts: integers that are too long are not sent."""
    honest = sums.LatticeSum.export_integers
    update, geometry = np.full(100, 1.0), ClippingGeometry((1.0,), (0,))
    for longer in (
        lambda cells: cells * 2,
        lambda cells: np.where(np.arange(100) == 5, -(1 << 40), cells),
    ):
        monkeypatch.setattr(
            sums.LatticeSum, "export_integers", lambda self, longer=longer: longer(honest(self))
        )
        with pytest.raises(UpdateError, match="outside the clipping norm"):
            encode(MaskedGaussian(1 << 12), [update], [np.zeros(100)], geometry)


def test_what_cannot_be_bounded_is_refused_at_the_client() -> None:
    geometry, reference = ClippingGeometry((1.0,), (0,)), [np.zeros(3, np.float32)]
    masked = MaskedGaussian(1 << 12)
    for arrays, weight in (
        ([np.array([0.0, np.nan, 0.0], np.float32)], 1.0),
        ([np.array([0.0, np.inf, 0.0], np.float32)], 1.0),
        ([np.zeros(4, np.float32)], 1.0),
        ([np.zeros(3, np.float32)], 1.5),
        ([np.zeros(3, np.float32)], 0.0),
        ([np.zeros(3, np.int64)], 1.0),
    ):
        with pytest.raises(UpdateError):
            encode(masked, arrays, reference, geometry, weight)
    with pytest.raises(ValueError, match="opened sum must be 3 int64"):
        decode(masked, np.zeros(4, np.int64), reference, geometry)
    with pytest.raises(ValueError, match="radius is 0"):
        MaskedGaussian(0)
    with pytest.raises(ValueError, match="radius is 2097152"):
        LatticeGaussian(1 << 21)


def test_the_noise_is_z_times_the_norm() -> None:
    """Chi-square on the variance, and Kolmogorov-Smirnov; a false alarm in 10^6 seeds."""
    size, norm, z = 200_000, 0.25, 3.0
    reference, geometry = [np.zeros(size, np.float32)], ClippingGeometry((norm,), (0,))
    (noisy,) = MaskedGaussian(1 << 16).decode(
        np.zeros(size, np.int64),
        reference,
        geometry,
        survivors=50,
        noise_multiplier=z,
        randomness=SeededRandomness(31),
    )
    low, high = stats.chi2.ppf([FALSE_ALARM / 2, 1 - FALSE_ALARM / 2], size)
    square = float(np.square(noisy, dtype=np.float64).sum()) / (z * norm) ** 2
    assert low <= square <= high
    assert stats.kstest(noisy / (z * norm), "norm").pvalue > FALSE_ALARM


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**9))
def test_the_radius_keeps_what_rounding_takes_below_one_in_128(parameters: int) -> None:
    radius = lattice_radius(parameters)
    assert radius & (radius - 1) == 0
    if radius < 1 << 20:
        assert radius**2 >= 64**2 * parameters
    assert radius == 1 or (radius // 2) ** 2 < 64**2 * parameters


def test_what_rounding_takes_is_half_a_cell_a_coordinate() -> None:
    size = 100_000
    radius = lattice_radius(size)
    update = np.random.default_rng(32).standard_normal(size)
    cells = encode(
        MaskedGaussian(radius), [update], [np.zeros(size)], ClippingGeometry((1.0,), (0,))
    )
    exact = update / np.linalg.norm(update) * radius
    assert np.linalg.norm(cells - exact) <= 1.1 * math.sqrt(size / 3)
    assert abs(np.mean(np.abs(exact) - np.abs(cells)) - 0.5) < 0.02


def test_published_sizes_and_bits() -> None:
    assert lattice_radius(1_000_000) == 1 << 16
    assert lattice_radius(3_920) == 1 << 12
    with pytest.raises(ValueError, match="parameters is 0"):
        lattice_radius(0)
    # 24 bits a parameter for 100 clients and a million parameters: 3 bytes of float32's 4.
    bound = MaskedGaussian(1 << 16).bound(parameters=1_000_000, noise_multiplier=1.0)
    assert (2 * 100 * bound).bit_length() == 24
    RoundTerms(run=bytes(16), number=1, size=1_000_000, bound=bound, min_clients=50)


def test_the_release_is_a_gaussian_one() -> None:
    event = MaskedGaussian(1 << 16).account(
        parameters=10, noise_multiplier=1.5, sampling=Poisson(0.1)
    )
    assert event == GaussianRelease(1.5, Poisson(0.1))
