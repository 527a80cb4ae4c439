"""Statistical tests. Each says how often it fails when nothing is wrong.

Together they raise a false alarm less than once in 10⁵ runs of the suite. They draw from the
operating system's randomness, as a run does, so each run is a fresh trial.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import FixedSize, Full, Poisson
from privacy.mechanisms import ContinuousGaussian, LatticeGaussian, SystemRandomness
from strategies import ServerSGD
from strategies.population import draw_cohort
from tests.strategies.federation import answer, ask, grid_of, model, nobody_of, noiseless, released

ALARM = 1e-7  # of a single comparison


def two_sided(statistic: float) -> bool:
    """Whether a standard normal statistic is unsuspicious at the rate ``ALARM``."""
    return abs(statistic) < float(stats.norm.isf(ALARM / 2))


@pytest.fixture(params=[LatticeGaussian(), ContinuousGaussian()], ids=lambda m: m.name)
def noises(request: Any, tmp_path: Path) -> Any:
    """The noise of 40 released models of 5,000 parameters: z = 1.5, S = 0.2, N = 8, rate 2."""
    strategy = noiseless(
        tmp_path,
        population=8,
        clipping=0.2,
        noise_multiplier=1.5,
        mechanism=request.param,
        optimizer=ServerSGD(learning_rate=2.0),
    )
    grid = nobody_of(8)
    models = [np.zeros(5000, np.float32)]
    for number in range(1, 41):
        ask(strategy, grid, model((5000,)), number)
        models.append(released(strategy, [], number)[0])
    return np.array(models[1:], dtype=np.float64)


def test_the_noise_in_released_models_has_the_promised_law(noises: Any) -> None:
    """Variance (χ²), mean and shape of 200,000 draws: 3 comparisons, 3·10⁻⁷ an option."""
    sigma = 2.0 * 1.5 * 0.2 / 8
    n = noises.size
    ratio = float((noises**2).sum()) / sigma**2
    assert two_sided((ratio - n) / math.sqrt(2 * n))
    assert two_sided(float(noises.mean()) / (sigma / math.sqrt(n)))
    assert stats.kstest(noises.ravel() / sigma, "norm").pvalue > ALARM


def test_the_noise_is_independent(noises: Any) -> None:
    """Across rounds, across parameters and of neighbours' magnitudes: 4·10⁻⁷ an option."""
    standard = noises / noises.std()
    rounds, size = standard.shape
    across_rounds = float((standard[1:] * standard[:-1]).sum()) / math.sqrt((rounds - 1) * size)
    across_parameters = float((standard[:, 1:] * standard[:, :-1]).sum()) / math.sqrt(
        rounds * (size - 1)
    )
    far = float((standard[:, : size // 2] * standard[:, size // 2 :]).sum()) / math.sqrt(
        rounds * (size // 2)
    )
    squares = (standard**2 - 1) / math.sqrt(2)
    magnitudes = float((squares[:, 1:] * squares[:, :-1]).sum()) / math.sqrt(rounds * (size - 1))
    assert two_sided(across_rounds)
    assert two_sided(across_parameters)
    assert two_sided(far)
    # Products of squares have heavier tails than the normal law says: twice the bound.
    assert abs(magnitudes) < 2 * float(stats.norm.isf(ALARM / 2))


def test_poisson_includes_each_client_alike_and_independently() -> None:
    """Each of 50 clients over 4,000 rounds, the cohort's size and pairs: 52 comparisons."""
    rate, population, rounds = 0.3, 50, 4000
    drawn = np.zeros((rounds, population), dtype=bool)
    for number in range(rounds):
        drawn[number, draw_cohort(Poisson(rate), population, randomness=SystemRandomness())] = True
    for count in drawn.sum(axis=0):
        assert stats.binomtest(int(count), rounds, rate).pvalue > ALARM / 52
    sizes = drawn.sum(axis=1)
    variance = population * rate * (1 - rate)
    statistic = ((sizes - population * rate) ** 2).sum() / variance
    assert two_sided((statistic - rounds) / math.sqrt(2.1 * rounds))
    pairs = (drawn[:, 1:] & drawn[:, :-1]).sum()
    expected, trials = rate**2, rounds * (population - 1)
    # Neighbouring pairs share a client: the variance is that of a 1-dependent sequence.
    spread = expected * (1 - expected) + 2 * (rate**3 - expected**2)
    assert two_sided((pairs - trials * expected) / math.sqrt(trials * spread))


def test_a_fixed_size_cohort_is_uniform() -> None:
    """The six cohorts of 2 among 4, 3,000 times: χ² with 5 degrees, 10⁻⁷."""
    counts = dict.fromkeys([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], 0)
    for _ in range(3000):
        cohort = draw_cohort(FixedSize(2, 4), 4, randomness=SystemRandomness())
        counts[tuple(cohort.tolist())] += 1  # type: ignore[index]
    assert stats.chisquare(list(counts.values())).pvalue > ALARM
    assert draw_cohort(Full(), 4, randomness=SystemRandomness()).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("sampling", [Poisson(0.3), FixedSize(6, 20)])
def test_the_estimate_is_unbiased_and_shrinks_with_dropout(
    sampling: Any, dropout: float, tmp_path: Path
) -> None:
    """Over sampling it is the population's mean; if each of the drawn vanishes with
    probability p it is (1 − p) of it. A z-test over 1,000 rounds, 10⁻⁷ an option.
    """
    population, rounds = 20, 1000
    values = np.linspace(0.01, 0.2, population)
    strategy = noiseless(tmp_path, population=population, sampling=sampling)
    grid = grid_of(population)
    away = np.random.default_rng()  # the world's randomness, not the mechanism's
    # The ledger is not what is tested, and a thousand fsyncs are slow.
    strategy._privacy_budget._ledger.append = lambda *a, **k: None  # type: ignore[method-assign,assignment,return-value]
    estimates = []
    arrays = model((1,))
    for number in range(1, rounds + 1):
        nodes = ask(strategy, grid, arrays, number)
        replies = [
            answer(m, [np.array([values[n - 1]], np.float32)])
            for n, m in nodes.items()
            if away.random() >= dropout
        ]
        estimates.append(float(released(strategy, replies, number)[0][0]))
    expected = (1 - dropout) * values.mean()
    error = np.std(estimates, ddof=1) / math.sqrt(rounds)
    assert two_sided((np.mean(estimates) - expected) / error)
