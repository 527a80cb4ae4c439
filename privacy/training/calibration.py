"""The noise that a target ε asks for."""

from collections.abc import Sequence

from ._store import Charge
from .ledger import Accountant, epsilon_of
from .plan import Batches, positive

LARGEST = 1e6


def calibrate_noise(
    *,
    target_epsilon: float,
    target_delta: float,
    batches: Batches,
    participations: int,
    spent: Sequence[Charge] = (),
    accountant: Accountant = "prv",
) -> float:
    """The smallest noise multiplier, to 0.1 %, that keeps within a target.

    Parameters
    ----------
    target_epsilon, target_delta : float
        What the data set may have spent in the end.
    batches : FullBatch or PoissonBatches
        What one participation does.
    participations : int
        How often the client will take part. Taking part more often spends more.
    spent : sequence of Charge
        What was spent before, ``ledger.charges``; also a ``NoisyCount``'s charge, if one is used.
    accountant : {"prv", "rdp"}
        The ledger's.

    Returns
    -------
    float
        The noise multiplier z. Its ε, by the same accountant, is at most the target.

    Raises
    ------
    ValueError
        If no noise would do.
    """
    positive("target_epsilon", target_epsilon, "it must be finite and above 0")
    if not 0 < target_delta < 1:
        raise ValueError(f"target_delta is {target_delta!r}: choose one in (0, 1)")
    positive("participations", participations, "plan for at least one")

    def fits(noise_multiplier: float) -> bool:
        planned = Charge(
            noise_multiplier=noise_multiplier,
            sampling_rate=batches.sampling_rate,
            steps=batches.steps * participations,
        )
        charges = (*spent, planned)
        return epsilon_of(charges, delta=target_delta, accountant=accountant) <= target_epsilon

    possible = epsilon_of(spent, delta=target_delta, accountant=accountant) < target_epsilon
    high = 1.0
    while not (possible and fits(high)):
        high *= 2
        if not possible or high > LARGEST:
            raise ValueError(
                f"target_epsilon is {target_epsilon!r}: no noise keeps within it"
                + (" after what was already spent" if spent else "")
                + "; take a larger one, or fewer participations"
            )
    low = high / 2
    while low > 1e-3 and fits(low):
        low, high = low / 2, low
    while high > low * 1.001:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
