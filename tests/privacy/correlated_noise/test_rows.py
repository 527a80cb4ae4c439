"""Rows of noise: their law, the identity on integers, and drawing them again."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from privacy.correlated_noise import (
    BandedFactor,
    BandedMF,
    CorrelatedNoise,
    NoiseInstance,
    banded_coefficients,
)
from privacy.correlated_noise.errors import NoiseSecretError
from privacy.mechanisms import (
    ClippingGeometry,
    KeyedRandomness,
    SeededRandomness,
    add_rounded_gaussian,
    round_with_gaussian,
)

FALSE_ALARM = 1e-6
FACTOR = BandedFactor.nearest(banded_coefficients(4, rounds=20, momentum=0.9))


def keys(count: int, seed: int = 1) -> list[bytes]:
    randomness = SeededRandomness(seed)
    return [randomness.bytes(32) for _ in range(count)]


@pytest.mark.parametrize("sigma", [0.4, 1.3, 20.0])
@pytest.mark.parametrize("fraction", [0, 1, 20_000, 32_768, 65_535])
def test_a_gaussian_on_a_fraction_has_exactly_its_probabilities(
    sigma: float, fraction: int
) -> None:
    out = np.full(40_000, (-3 << 16) + fraction, dtype=np.int64)
    round_with_gaussian(out, bits=16, sigma=sigma, randomness=SeededRandomness(fraction))
    centre = -3 + fraction / 65_536
    edges = centre + sigma * stats.norm.ppf(np.linspace(0, 1, 13)[1:-1])
    edges = np.unique(np.floor(edges)) + 0.5
    expected = np.diff(np.concatenate([[0], stats.norm.cdf((edges - centre) / sigma), [1]]))
    counts = np.bincount(np.searchsorted(edges, out), minlength=len(edges) + 1)
    assert stats.chisquare(counts, expected * len(out)).pvalue > FALSE_ALARM


def test_on_integers_it_is_the_rounded_gaussian_of_the_same_bits() -> None:
    values = np.arange(-5000, 5000, dtype=np.int64)
    one, other = values.copy(), values.copy()
    round_with_gaussian(one, bits=0, sigma=3.7, randomness=SeededRandomness(1))
    add_rounded_gaussian(other, sigma=3.7, randomness=SeededRandomness(1))
    assert np.array_equal(one, other)
    still = np.array([-3, -2, -1, 0, 1, 2, 3], dtype=np.int64)  # halves go up
    round_with_gaussian(still, bits=1, sigma=0.0, randomness=SeededRandomness(1))
    assert still.tolist() == [-1, -1, 0, 0, 1, 1, 2]


def test_undecided_draws_are_decided_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a σ so large that doubles leave many undecided, the integer is that of exact numbers."""
    from fractions import Fraction

    from privacy.mechanisms import _exact_arithmetic, gaussian

    sigma, seen = 2.0**40, 0
    nearest = _exact_arithmetic.nearest

    def counted(draw, width, offset):  # type: ignore[no-untyped-def]
        nonlocal seen
        seen += 1
        result = nearest(draw, width, offset)
        middle = draw.cell + (draw.place.low + draw.place.high) / 2
        exact = draw.sign * width * middle + offset + Fraction(1, 2)
        assert result == exact.__floor__()
        assert abs(exact - round(exact)) < Fraction(1, 16)
        return result

    monkeypatch.setattr(gaussian, "nearest", counted)
    out = np.full(20_000, 12_345, dtype=np.int64)
    round_with_gaussian(out, bits=16, sigma=sigma, randomness=SeededRandomness(5))
    assert seen > 20
    assert stats.kstest(out / sigma, "norm").pvalue > FALSE_ALARM


def test_the_covariance_is_that_of_the_inverse_factor() -> None:
    """C applied to the rows is white, of the claimed variance; a false alarm once in 10⁶."""
    rows, size, sigma = 12, 20_000, 1000.0
    noise = CorrelatedNoise(FACTOR, sigma=sigma, size=size)
    x = np.array([noise.draw(key) for key in keys(rows)], dtype=np.float64)
    c = FACTOR.coefficients
    white = np.array([sum(c[j] * x[t - j] for j in range(min(4, t + 1))) for t in range(rows)])
    # Rounding adds 1/12 to σ²; each product of two independent rows has variance σ⁴.
    gram = white @ white.T / sigma**2
    tests = rows * (rows + 1) // 2
    off = gram[np.triu_indices(rows, 1)] / np.sqrt(size)
    assert 2 * stats.norm.sf(np.abs(off)).min() * tests > FALSE_ALARM
    for square in np.diag(gram):
        tail = min(stats.chi2.sf(square, size), stats.chi2.cdf(square, size))
        assert 2 * tail * tests > FALSE_ALARM
    # And it is not white as it is: the test would see a factor left out.
    plain = x @ x.T / sigma**2
    assert np.abs(plain[np.triu_indices(rows, 1)] / np.sqrt(size)).max() > 50


def test_what_is_released_is_the_rounding_of_the_continuous_mechanism() -> None:
    """r = G + x is ⌊(CG + z) − Σ c·r⌉ for the same z, whatever the integers G are."""
    size, sigma, rows = 200, 50.0, 9
    noise = CorrelatedNoise(FACTOR, sigma=sigma, size=size)
    sums = np.random.default_rng(2).integers(-(10**6), 10**6, (rows, size))
    released: list[list[int]] = []
    n = FACTOR.numerators
    for t, key in enumerate(keys(rows)):
        x = noise.draw(key)
        # In whole 2⁻¹⁶: Σ_{j≥0} c·G − Σ_{j≥1} c·r, to which the same z is added and rounded.
        exact = np.array(
            [
                sum(n[j] * int(sums[t - j][i]) for j in range(min(4, t + 1)))
                - sum(n[j] * released[t - j][i] for j in range(1, min(4, t + 1)))
                for i in range(size)
            ],
            dtype=np.int64,
        )
        round_with_gaussian(exact, bits=16, sigma=sigma, randomness=KeyedRandomness(key))
        released.append((sums[t] + x).tolist())
        assert exact.tolist() == released[t]


def test_entries_that_do_not_fit_32_bits_are_taken_back_as_well() -> None:
    sigma = 2.0**34
    noise = CorrelatedNoise(BandedFactor((1 << 16, 1 << 16)), sigma=sigma, size=5000)
    first, second = (noise.draw(key) for key in keys(2))
    alone = CorrelatedNoise(BandedFactor((1 << 16,)), sigma=sigma, size=5000)
    assert np.abs(first).max() > 2**32
    assert np.array_equal(second + first, alone.draw(keys(2)[1]))


def test_an_instance_is_drawn_again_from_its_file(tmp_path: Path) -> None:
    path, randomness = tmp_path / "noise", SeededRandomness(3)
    instance = NoiseInstance.new("a", FACTOR, sigma=30.0, size=100, randomness=randomness)
    noise = instance.noise()
    drawn = []
    for row in range(9):
        instance = instance.begin_row(noise, randomness)
        instance.save(path)
        if row == 4:  # nothing of it was released
            noise.skip()
            instance = instance.without(4)
            continue
        key = instance.keys[-1]
        assert key is not None
        drawn.append(noise.draw(key))
    assert path.stat().st_mode & 0o777 == 0o600
    again = NoiseInstance.load(path)
    assert again == instance
    assert np.array_equal(again.noise().draw(bytes(32)), noise.draw(bytes(32)))
    # The model holds seven rows only: the last two are not taken back.
    shorter = again.without(7).noise()
    assert shorter.rows == 9
    fresh = again.without(0).noise().draw(bytes(32))
    assert not np.array_equal(shorter.draw(bytes(32)), fresh)


def test_no_key_is_shown_or_used_twice() -> None:
    randomness = SeededRandomness(3)
    instance = NoiseInstance.new("a", FACTOR, sigma=30.0, size=5, randomness=randomness)
    for _ in range(3):
        instance = instance.begin_row(instance.noise(), randomness)
    assert len(set(instance.keys)) == 3
    for key in (*instance.keys, instance.group_key):
        assert key is not None
        assert key.hex() not in repr(instance)
        assert repr(key) not in repr(instance)


@pytest.mark.parametrize("damage", ["", "{}", "[]", "key", "digest", "version"])
def test_a_file_that_is_damaged_is_refused_without_its_secrets(damage: str, tmp_path: Path) -> None:
    path, randomness = tmp_path / "noise", SeededRandomness(3)
    instance = NoiseInstance.new("a", FACTOR, sigma=30.0, size=5, randomness=randomness)
    noise = instance.noise()
    for _ in range(3):
        instance = instance.begin_row(noise, randomness)
        assert instance.keys[-1] is not None
        noise.draw(instance.keys[-1])
    instance.save(path)
    text, key = path.read_text(), instance.keys[0]
    assert key is not None
    changed = {
        "key": text.replace(key.hex(), key.hex()[:-2]),
        "digest": text.replace(key.hex(), bytes(32).hex()),
        "version": text.replace("noise-2", "noise-9"),
    }
    path.write_text(changed.get(damage, damage))
    with pytest.raises(NoiseSecretError) as refused:
        NoiseInstance.load(path).noise()
    assert key.hex()[:8] not in str(refused.value)
    path.write_text(text.replace("noise-2", "noise-1"))
    with pytest.raises(NoiseSecretError, match="earlier version, which drew noise otherwise"):
        NoiseInstance.load(path)
    with pytest.raises(NoiseSecretError, match="No such file"):
        NoiseInstance.load(tmp_path / "none")


def test_a_round_adds_its_row_to_the_clipped_sum() -> None:
    banded = BandedMF(4, radius=1 << 10)
    sigma = banded.sigma(FACTOR, noise_multiplier=2.0, radius=banded.radius, size=6)
    assert sigma == pytest.approx(2 * 1024 * FACTOR.norm)
    row = CorrelatedNoise(FACTOR, sigma=sigma, size=6).draw(bytes(32))

    class Row:
        def add_to(self, integers: np.ndarray, part: slice) -> None:  # type: ignore[type-arg]
            integers += row[part]

    model = [np.zeros((2, 3), np.float32)]
    total = banded.open_row(model, ClippingGeometry((1.0,), (0,)), noise_multiplier=2, noise=Row())
    total.add([np.full((2, 3), 9.0, np.float32)], weight=1.0)
    (noisy,) = total.release()
    cells = noisy.reshape(-1).astype(np.float64) * 1024 - row
    assert cells == pytest.approx(np.full(6, 1024 / 6**0.5), abs=1.001)  # toward zero
    assert np.square(cells).sum() <= 1024**2
