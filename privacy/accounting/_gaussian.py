"""The Gaussian mechanism without sampling: its exact privacy curve, in closed form."""

import math


def gaussian_delta(noise_multiplier: float, epsilon: float) -> float:
    """The smallest δ at which one Gaussian release is (ε, δ)-private, never under-stated.

    Balle and Wang 2018 (arXiv 1805.06530), theorem 8, for sensitivity 1 and σ = z:
    δ(ε) = Φ(1/2z − εz) − e^ε·Φ(−1/2z − εz).

    Parameters
    ----------
    noise_multiplier, epsilon : float
        z > 0 and ε ≥ 0.

    Returns
    -------
    float
        δ plus an allowance for rounding.
    """
    from scipy.special import log_ndtr

    z = noise_multiplier
    near = math.exp(float(log_ndtr(0.5 / z - epsilon * z)))
    far = math.exp(min(0.0, epsilon + float(log_ndtr(-0.5 / z - epsilon * z))))
    # log_ndtr is good to a few units in the last place of its argument's square.
    slack = 2.0**-48 * (1 + (0.5 / z - epsilon * z) ** 2 + (0.5 / z + epsilon * z) ** 2)
    return min(1.0, max(0.0, near - far) + slack * (near + far))


def gaussian_epsilon(noise_multiplier: float, delta: float) -> float:
    """The smallest ε at which one Gaussian release is (ε, δ)-private, rounded up.

    Parameters
    ----------
    noise_multiplier, delta : float
        z > 0 and δ in (0, 1).

    Returns
    -------
    float
        ε ≥ 0; infinite only where it exceeds every double.
    """
    if gaussian_delta(noise_multiplier, 0.0) <= delta:
        return 0.0
    low, high = 0.0, 1.0
    while gaussian_delta(noise_multiplier, high) > delta:
        low, high = high, 2 * high
        if not math.isfinite(high):
            return math.inf
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if gaussian_delta(noise_multiplier, middle) > delta:
            low = middle
        else:
            high = middle
    return high
