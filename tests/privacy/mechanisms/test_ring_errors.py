"""Errors and short keys of encryption: their distributions, to stated false-alarm rates."""

import numpy as np
import pytest
from scipy import stats

from privacy.mechanisms import SeededRandomness, SystemRandomness, centred_binomial, ternary

COUNT = 1 << 18
FALSE_ALARM = 1e-9


def p_value(draws: np.ndarray, values: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's test; values that are too rare are counted together."""
    counts = np.array([(draws == value).sum() for value in values], dtype=np.float64)
    assert counts.sum() == len(draws), "a value that the distribution does not have"
    expected = probabilities * len(draws)
    rare = expected < 20
    observed = [*counts[~rare], counts[rare].sum()]
    hoped = [*expected[~rare], expected[rare].sum()]
    if hoped[-1] == 0:
        observed, hoped = observed[:-1], hoped[:-1]
    return float(stats.chisquare(observed, hoped).pvalue)


@pytest.mark.parametrize("randomness", [SystemRandomness(), SeededRandomness(3)])
def test_errors_are_centred_binomial(randomness: SystemRandomness) -> None:
    """42 fair bits: a false alarm in 10^9 runs."""
    draws = centred_binomial(COUNT, randomness)
    values = np.arange(-21, 22)
    assert p_value(draws, values, stats.binom.pmf(values + 21, 42, 0.5)) > FALSE_ALARM


@pytest.mark.parametrize("randomness", [SystemRandomness(), SeededRandomness(4)])
def test_short_keys_are_ternary(randomness: SystemRandomness) -> None:
    draws = ternary(COUNT, randomness)
    assert p_value(draws, np.array([-1, 0, 1]), np.full(3, 1 / 3)) > FALSE_ALARM


def test_neighbouring_draws_are_independent() -> None:
    """Correlations of neighbours, to 6.2 deviations: a false alarm in 10^9 runs."""
    for draws in (centred_binomial(COUNT, SystemRandomness()), ternary(COUNT, SystemRandomness())):
        shares = draws / draws.std()
        for lag in (1, 2, 3):
            correlation = float((shares[lag:] * shares[:-lag]).mean())
            assert abs(correlation) < 6.2 / COUNT**0.5


@pytest.mark.parametrize("draw", [centred_binomial, ternary])
def test_sizes(draw: object) -> None:
    for size in (0, 1, 63, 64, 1000):
        assert draw(size, SeededRandomness(1)).shape == (size,)  # type: ignore[operator]
    with pytest.raises(ValueError, match="size"):
        draw(-1, SeededRandomness(1))  # type: ignore[operator]
