"""Coefficients of the strategy matrix C, and the error they leave on the models.

A model is a sum of all updates so far, so that what counts is not a round's noise but what of it
stays in the models. Rows of noise that cancel each other, x = C⁻¹z, leave less.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import number, whole
from privacy.correlated_noise.participation import MOST_ROUNDS, MinSeparation, sensitivity

Vector = NDArray[np.float64]
Iterates = Literal["mean", "last"]


def workload(rounds: int, *, momentum: float = 0.0) -> Vector:
    """How an update stays in the models: a₀, a₁, …, of which aₜ is in the model t rounds later.

    With heavy-ball momentum β and a constant server learning rate (1 here) aₜ = 1 + β + … + βᵗ.

    Parameters
    ----------
    rounds : int
        T.
    momentum : float
        β of the server's optimizer, in [0, 1).

    Returns
    -------
    array of float, (T,)
    """
    rounds = whole("rounds", rounds, least=1, most=MOST_ROUNDS)
    momentum = number("momentum", momentum, least=0, below=1)
    return np.cumsum(momentum ** np.arange(rounds))


def square_root(series: ArrayLike, terms: int) -> Vector:
    """The first terms of the power series whose square is ``series``, scaled to begin with 1.

    Cut to b terms it is nearly the best of all b-banded matrices.
    """
    terms = whole("terms", terms, least=1, most=MOST_ROUNDS)
    a = np.asarray(series, dtype=np.float64)
    a = a / a[0]
    root = np.zeros(terms)
    root[0] = 1.0
    for n in range(1, terms):
        root[n] = ((a[n] if n < len(a) else 0.0) - root[1:n] @ root[n - 1 : 0 : -1]) / 2
    return root


def relative_error(
    coefficients: ArrayLike,
    *,
    rounds: int,
    participation: MinSeparation,
    momentum: float = 0.0,
    iterates: Iterates = "mean",
) -> float:
    """The noise in the models, beside that of independent noise at the same ε.

    Parameters
    ----------
    coefficients : array of float, (b,)
        c₀, c₁, ….
    rounds, momentum
        As for :func:`workload`.
    participation : MinSeparation
        By which both are sized.
    iterates : "mean" or "last"
        Of all models, the root of the mean square; or of the last alone.

    Returns
    -------
    float
        Below 1: better than independent noise.
    """
    a = workload(rounds, momentum=momentum)
    rounds = len(a)
    c = np.asarray(coefficients, dtype=np.float64)
    weights = _weights(rounds, iterates)
    alone = sensitivity([1.0], rounds=rounds, participation=participation)
    together = sensitivity(c, rounds=rounds, participation=participation)
    left = weights @ np.square(_quotient(a, c))
    return float(np.sqrt(left / (weights @ np.square(a))) * together / alone)


def banded_coefficients(bands: int, *, rounds: int, momentum: float = 0.0) -> Vector:
    """The b coefficients that leave the least noise in the models, over all of them.

    For clients that take part at most every b rounds, where the squared sensitivity is ‖c‖² for
    each participation: the minimum of Σₜ (T − t)·Bₜ²·‖c‖², B = a/c as power series (Choquette-Choo
    et al. 2023, arXiv 2306.08153, for banded matrices).

    Parameters
    ----------
    bands : int
        b, at most ``rounds`` of which are used. 1: independent noise.
    rounds, momentum
        As for :func:`workload`.

    Returns
    -------
    array of float, (b,)
        It begins with 1.
    """
    a = workload(rounds, momentum=momentum)
    rounds = len(a)
    bands = min(whole("bands", bands, least=1, most=MOST_ROUNDS), rounds)
    start = square_root(a, bands)
    if bands == 1:
        return start
    from scipy.optimize import minimize

    weights = _weights(rounds, "mean")
    weights = weights / (weights @ np.square(_quotient(a, start)))

    def loss(tail: Vector) -> tuple[float, Vector]:
        c = np.concatenate([[1.0], tail])
        stays = _quotient(a, c)
        with np.errstate(over="ignore", invalid="ignore"):  # of a trial far out
            norm, left = c @ c, weights @ np.square(stays)
        value = left * norm
        if not value < 1e300:
            return 1e300, np.zeros(bands - 1)
        # ∂Bₜ/∂cₖ = −(B/c)ₜ₋ₖ
        slope, weighted = _quotient(stays, c), weights * stays
        gradient = [-2 * (weighted[k:] @ slope[: rounds - k]) for k in range(1, bands)]
        return float(value), np.asarray(gradient) * norm + 2 * left * tail

    best = minimize(loss, start[1:], jac=True, method="L-BFGS-B", options={"maxiter": 250})
    return np.concatenate([[1.0], best.x]) if best.fun <= loss(start[1:])[0] else start


def _weights(rounds: int, iterates: Iterates) -> Vector:
    """The number of models that hold the noise which has been in them for t rounds."""
    if iterates not in ("mean", "last"):
        raise ValueError(f"iterates is {iterates!r}; give 'mean' or 'last'")
    return np.arange(rounds, 0.0, -1.0) if iterates == "mean" else np.ones(rounds)


def _quotient(series: Vector, divisor: Vector) -> Vector:
    """The power series ``series``/``divisor``, as many terms as ``series`` has."""
    from scipy.signal import lfilter

    with np.errstate(over="ignore", invalid="ignore"):
        quotient: Vector = lfilter([1.0], divisor, series)
    return quotient
