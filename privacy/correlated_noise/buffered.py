"""Buffered linear Toeplitz matrices: few decaying sums, optimised for clients that come back."""

import numpy as np
from numpy.typing import NDArray

from privacy.arguments import number, whole
from privacy.correlated_noise.coefficients import workload
from privacy.correlated_noise.factors import BITS, BLTFactor
from privacy.correlated_noise.participation import MOST_ROUNDS

Vector = NDArray[np.float64]

_ENOUGH = 1e-3  # relative noise; a buffer that takes off less is left out
_ONE = 1 << BITS
_SLOWEST, _FASTEST = np.log(2.0**-14), np.log(1 - 2.0**-10)  # log(1 − θ)


def blt_factor(buffers: int, *, rounds: int, momentum: float = 0.0, separation: int) -> BLTFactor:
    """The few buffers that leave the least noise in the models, over all of them.

    For clients that take part every ``separation`` rounds: the minimum of Σₜ (T − t)·Bₜ²·S²,
    B = a/c as power series, S the sensitivity of all their participations together (McMahan et al.
    2024, arXiv 2408.08868, for the mean instead of the largest error).

    Parameters
    ----------
    buffers : int
        The most; one more is taken only where it lessens the noise by a thousandth.
    rounds, momentum
        As for :func:`workload`.
    separation : int
        How many rounds lie between two participations of a client.

    Returns
    -------
    BLTFactor
        For ``rounds`` + ``separation`` rows: rounds that are interrupted take rows as well.
    """
    buffers = whole("buffers", buffers, least=1, most=8)
    rounds = whole("rounds", rounds, least=1, most=MOST_ROUNDS)
    separation = whole("separation", separation, least=1)
    momentum = number("momentum", momentum, least=0, below=1)
    rows = min(rounds + separation, MOST_ROUNDS)
    if rounds == 1:
        return BLTFactor((), (), rows, separation)
    problem = _Noise(workload(rounds, momentum=momentum), min(separation, rounds))
    tried = [(np.empty(0), problem(np.empty(0))[0])]
    for _ in range(buffers):
        tried.append(problem.with_one_more(tried[-1][0]))
    least = min(noise for _, noise in tried)
    enough = (parameters for parameters, noise in tried if noise < least + 2 * _ENOUGH)
    decay, weight = _unpacked(next(enough))
    decays = np.clip(np.rint(decay * _ONE), 1, _ONE).astype(int)
    weights = np.floor(weight * _ONE).astype(int)
    kept = weights > 0
    return BLTFactor(tuple(decays[kept].tolist()), tuple(weights[kept].tolist()), rows, separation)


class _Noise:
    """The logarithm of the squared noise in the models, of logarithms of decays and weights."""

    def __init__(self, series: Vector, separation: int) -> None:
        self._series, self._separation = series, separation
        self._weights = np.arange(len(series), 0.0, -1.0)

    def with_one_more(self, parameters: Vector) -> tuple[Vector, float]:
        """The best with one more buffer, from a slow one and from a fast one; and its noise."""
        from scipy.optimize import minimize

        decay, weight = np.split(parameters, 2)
        count = len(decay) + 1
        limits = [(_SLOWEST, _FASTEST)] * count + [(-30.0, 30.0)] * count
        results = []
        for new in (min(0.5, 4 / len(self._series)), 0.5):
            start = np.concatenate([decay, [np.log(new)], weight, [-1.0]])
            results.append(
                minimize(
                    self, start, jac=True, method="L-BFGS-B", bounds=limits, options={"maxiter": 99}
                )
            )
        best = min(results, key=lambda result: float(result.fun))
        return best.x, float(best.fun)

    def __call__(self, parameters: Vector) -> tuple[float, Vector]:
        """It, and its gradient."""
        from scipy.signal import fftconvolve

        decay, weight = _unpacked(parameters)
        rounds, separation = len(self._series), self._separation
        age = np.arange(rounds - 1.0)
        powers = np.power(1 - decay[:, np.newaxis], age)
        c = np.concatenate([[1.0], weight @ powers])
        inverse = _reciprocal(c)
        stays = fftconvolve(self._series, inverse)[:rounds]
        weighted = self._weights * stays
        left = weighted @ stays
        # ∂Bₜ/∂cₖ = −(B/c)ₜ₋ₖ
        slope = fftconvolve(stays, inverse)[:rounds]
        by_c = -2 * fftconvolve(weighted, slope[::-1])[rounds - 1 :] / left
        # A client in rows 0, b, 2b, … moves row i·b + r by c_r + c_{b+r} + … + c_{ib+r}.
        turns = -(-rounds // separation)
        padded = np.zeros(turns * separation)
        padded[:rounds] = c
        moved = np.cumsum(padded.reshape(turns, separation), axis=0)
        moved.reshape(-1)[rounds:] = 0.0
        squared = float(np.square(moved).sum())
        by_c += 2 * np.cumsum(moved[::-1], axis=0)[::-1].reshape(-1)[:rounds] / squared
        by_weight = powers @ by_c[1:]
        older = np.power(1 - decay[:, np.newaxis], np.maximum(age - 1, 0))
        by_decay = -weight * ((older * age) @ by_c[1:])
        gradient = [decay * by_decay, weight * (by_weight - weight @ by_weight)]
        return float(np.log(left * squared)), np.concatenate(gradient)


def _unpacked(parameters: Vector) -> tuple[Vector, Vector]:
    """1 − θ and ω, which is positive and below 1 in all."""
    decay, weight = np.exp(np.split(parameters, 2))
    return decay, weight / (1 + weight.sum())


def _reciprocal(series: Vector) -> Vector:
    """The power series 1/``series``, whose first term is 1, by Newton's iteration."""
    from scipy.signal import fftconvolve

    inverse = np.ones(1)
    while len(inverse) < len(series):
        length = min(2 * len(inverse), len(series))
        error = -fftconvolve(series[:length], inverse)[:length]
        error[0] += 2.0
        inverse = fftconvolve(inverse, error)[:length]
    return inverse
