"""The noise that a target ε asks for."""

from collections.abc import Sequence

from privacy.accounting import Budget, Full, Poisson, calibrate_noise_multiplier
from privacy.training.charge import Charge
from privacy.training.protection import Batches, FullBatch, positive


def calibrate_noise(
    *,
    target_epsilon: float,
    target_delta: float,
    batches: Batches,
    participations: int,
    spent: Sequence[Charge] = (),
) -> float:
    """The smallest noise multiplier, to 1 part in 10⁵, that keeps within a target.

    Ask once for a whole plan, not once a round: what a round has spent would be planned for
    again in every later one, with more and more noise.

    Parameters
    ----------
    target_epsilon, target_delta : float
        What the data set may have spent in the end.
    batches : FullBatch or PoissonBatches
        What one participation does.
    participations : int
        How often the client will take part. Taking part more often spends more.
    spent : sequence of Charge
        What was spent before the plan begins, ``ledger.charges``; also a ``NoisyCount``'s charge,
        if one is used.

    Returns
    -------
    float
        The noise multiplier z. Its ε, by the ledger's own accounting
        (:mod:`privacy.accounting`), is at most the target.

    Raises
    ------
    ValueError
        If no noise would do.
    """
    positive("target_epsilon", target_epsilon, "it must be finite and above 0")
    if not 0 < target_delta < 1:
        raise ValueError(f"target_delta is {target_delta!r}: choose one in (0, 1)")
    if not (type(participations) is int and participations >= 1):
        raise ValueError(f"participations is {participations!r}: a whole number, at least 1")
    full = isinstance(batches, FullBatch)
    try:
        return calibrate_noise_multiplier(
            sampling=Full() if full else Poisson(batches.sampling_rate),
            rounds=batches.steps * participations,
            budget=Budget(target_epsilon, target_delta),
            spent=[charge.event for charge in spent],
        )
    except ValueError as error:
        raise ValueError(
            f"target_epsilon is {target_epsilon!r}: no noise keeps within it ({error}); take a "
            "larger one, or fewer participations"
        ) from error
