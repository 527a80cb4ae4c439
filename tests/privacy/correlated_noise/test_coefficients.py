"""Coefficients: published figures, the optimum, and sensitivities against every pattern."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from privacy.correlated_noise import (
    BandedFactor,
    MinSeparation,
    banded_coefficients,
    relative_error,
    sensitivity,
    square_root,
    workload,
)

TENTH = MinSeparation(10)


@pytest.mark.parametrize(
    ("bands", "momentum", "iterates", "expected"),
    [
        (1, 0.0, "mean", 1.0),
        (2, 0.0, "mean", 0.729),
        (5, 0.0, "mean", 0.509),
        (10, 0.0, "mean", 0.415),
        (2, 0.9, "mean", 0.712),
        (5, 0.9, "mean", 0.460),
        (10, 0.9, "mean", 0.339),
        (2, 0.9, "last", 0.709),
        (5, 0.9, "last", 0.454),
        (10, 0.9, "last", 0.328),
    ],
)
def test_the_errors_that_were_published(
    bands: int, momentum: float, iterates: Literal["mean", "last"], expected: float
) -> None:
    """100 rounds, every tenth: beside independent noise at the same ε (jax_privacy's optimum)."""
    c = banded_coefficients(bands, rounds=100, momentum=momentum)
    error = relative_error(c, rounds=100, participation=TENTH, momentum=momentum, iterates=iterates)
    assert error == pytest.approx(expected, abs=1e-3)


def test_the_optimum_for_momentum_is_the_published_one() -> None:
    c = banded_coefficients(10, rounds=100, momentum=0.9)
    expected = [1, 0.957, 0.917, 0.878, 0.842, 0.808, 0.776, 0.745, 0.716, 0.688]
    assert c == pytest.approx(expected, abs=1e-3)
    blind = square_root(workload(100), 10)
    error = relative_error(blind, rounds=100, participation=TENTH, momentum=0.9)
    assert error == pytest.approx(0.395, abs=1e-3)


@pytest.mark.parametrize(("rounds", "bands"), [(100, 10), (40, 8), (1000, 100)])
def test_no_coefficients_nearby_are_better(rounds: int, bands: int) -> None:
    """And the square root of the workload, in closed form, is within 3 % of the best."""
    draws = np.random.default_rng(1)
    separation = MinSeparation(bands)

    def error(c: NDArray[np.float64]) -> float:
        return relative_error(c, rounds=rounds, participation=separation, momentum=0.9)

    # The last participation is cut off at the end: its column is what the optimiser is not told.
    best = banded_coefficients(bands, rounds=rounds, momentum=0.9)
    for scale in (1e-3, 1e-2):
        for _ in range(20):
            other = best + scale * np.concatenate([[0], draws.standard_normal(bands - 1)])
            assert error(other) >= error(best) * (1 - 1e-4)
    root = square_root(workload(rounds, momentum=0.9), bands)
    assert error(best) <= error(root) <= 1.03 * error(best)


def test_the_square_root_squared_is_the_series() -> None:
    series = workload(30, momentum=0.5)
    root = square_root(series, 30)
    assert np.convolve(root, root)[:30] == pytest.approx(series)


def patterns(rounds: int, participation: MinSeparation) -> Iterator[tuple[int, ...]]:
    most = participation.participations(rounds)
    for count in range(1, most + 1):
        for places in itertools.combinations(range(rounds), count):
            if all(b - a >= participation.rounds for a, b in itertools.pairwise(places)):
                yield places


def brute_force(c: NDArray[np.float64], rounds: int, participation: MinSeparation) -> float:
    """Over all patterns; contributions are vectors, so inner products may have either sign.

    The largest over vectors lies between that over signs and that with all inner products |·|.
    """
    matrix = np.array([[c[i - j] if 0 <= i - j < len(c) else 0.0 for j in range(rounds)]
                       for i in range(rounds)])  # fmt: skip
    gram = np.abs(matrix.T @ matrix)
    return max(
        float(np.sqrt(gram[np.ix_(places, places)].sum()))
        for places in map(list, patterns(rounds, participation))
    )


@pytest.mark.parametrize("separation", [1, 2, 3, 5])
@pytest.mark.parametrize("at_most", [None, 1, 2])
@pytest.mark.parametrize(
    "c",
    [[1.0], [1.0, 0.7], [1.0, 0.9, 0.5, 0.5, 0.1], list(square_root(workload(11), 11))],
    ids=str,
)
def test_sensitivity_is_that_of_the_worst_pattern(
    c: list[float], separation: int, at_most: int | None
) -> None:
    participation = MinSeparation(separation, at_most)
    exact = brute_force(np.array(c), 11, participation)
    assert sensitivity(c, rounds=11, participation=participation) == pytest.approx(exact)


@pytest.mark.parametrize("c", [[1.0, -0.4, 0.8], [1.0, 0.2, 0.6, -0.9], [0.5, 1.0]], ids=str)
@pytest.mark.parametrize("separation", [1, 2, 4])
def test_other_coefficients_are_bounded_from_above(c: list[float], separation: int) -> None:
    participation = MinSeparation(separation)
    bound = sensitivity(c, rounds=10, participation=participation)
    exact = brute_force(np.array(c), 10, participation)
    assert bound >= exact * (1 - 1e-12)
    if len(c) <= separation:
        assert bound == pytest.approx(exact)


def test_a_factor_is_exact_and_its_norm_rounded_up() -> None:
    c = banded_coefficients(10, rounds=100, momentum=0.9)
    factor = BandedFactor.nearest(c)
    assert np.abs(factor.coefficients - c).max() <= 2.0**-17
    squares = sum(n * n for n in factor.numerators)
    assert factor.norm**2 * 2**32 >= squares
    assert factor.norm == pytest.approx(np.sqrt(squares) / 2**16, rel=1e-14)
    participation = MinSeparation(10)
    together = sensitivity(factor.coefficients, rounds=100, participation=participation)
    assert together == pytest.approx(factor.norm * np.sqrt(10))


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999])
@pytest.mark.parametrize("rounds", [1, 2, 11, 1000])
def test_bands_never_do_harm_and_are_optimised_in_silence(rounds: int, momentum: float) -> None:
    for bands in (1, 2, 3, 5, 50):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            c = banded_coefficients(bands, rounds=rounds, momentum=momentum)
        assert BandedFactor.nearest(c).bands == min(bands, rounds)
        for iterates in ("mean", "last"):
            error = relative_error(
                c,
                rounds=rounds,
                participation=MinSeparation(bands),
                momentum=momentum,
                iterates=iterates,
            )
            assert error <= 1 + 1e-9


def test_noise_that_is_lost_is_worth_as_much_as_the_page_says() -> None:
    """With 100 rounds and 10 bands: 1.5 times in the last model after one loss, 2 after three."""
    c = banded_coefficients(10, rounds=100, momentum=0.9)
    whole = sum(value * np.eye(100, k=-j) for j, value in enumerate(c))

    def last(*losses: int) -> float:
        matrix = whole.copy()
        for loss in losses:
            matrix[loss:, :loss] = 0
        return float(np.linalg.norm(np.linalg.solve(matrix.T, workload(100, momentum=0.9)[::-1])))

    assert max(last(loss) for loss in range(1, 100)) / last() == pytest.approx(1.48, abs=0.01)
    assert last(25, 50, 75) / last() == pytest.approx(2.04, abs=0.01)


def test_what_is_no_matrix_is_refused() -> None:
    with pytest.raises(ValueError, match="first column"):
        sensitivity([0.0, 1.0], rounds=3, participation=MinSeparation(1))
    with pytest.raises(ValueError, match="begin with"):
        BandedFactor((1, 2))
    with pytest.raises(ValueError, match="above 2"):
        BandedFactor.nearest([1.0, 3.0])
    with pytest.raises(ValueError, match="rounds is 0"):
        MinSeparation(0)
