"""The run's protection of records: derived by its server before it begins, and by each client."""

from functools import cache

from flower_app.errors import SettingError
from flower_app.settings import Settings
from privacy.accounting import Budget, Full, GaussianRelease, calibrate_noise_multiplier
from privacy.training import ClipAndNoise, ClipOnly, NoisyCount, NominalCount

_COUNT_NOISE = 10.0  # records; the noise on a count that is sent beside record-level noise


def record_protection(settings: Settings) -> ClipOnly | ClipAndNoise:
    """A client's protection of its records; without ``record_epsilon`` no noise.

    Raises
    ------
    SettingError
        If no noise keeps what the run asks, or none that can be accounted.
    """
    if not settings.record_epsilon:
        return ClipOnly(clipping_norm=settings.example_clipping_norm)
    try:
        budget = Budget(settings.record_epsilon, settings.record_delta)
    except ValueError as error:  # it begins with the name
        raise SettingError(f"record-{error}") from error
    counts = settings.weight_cap > 0
    participations, steps = settings.planned_participations, settings.local_steps
    try:
        noise = _noise(budget, steps, participations, counts=counts)
    except ValueError as error:
        count = ", beside one noised count of its records," if counts else ""
        raise SettingError(
            f"record-epsilon = {settings.record_epsilon} is wrong; no noise keeps "
            f"{participations:,} participations with local-steps = {steps}{count} within it at "
            f"record-delta = {settings.record_delta:g}: raise one of them, or lower rounds, "
            "sampling-rate or local-steps"
        ) from error
    return ClipAndNoise(
        clipping_norm=settings.example_clipping_norm,
        noise_multiplier=noise,
        delta=settings.record_delta,
        count=(
            NoisyCount(noise_multiplier=_COUNT_NOISE)
            if counts
            else NominalCount(records=settings.records_per_client)
        ),
    )


@cache
def _noise(budget: Budget, steps: int, participations: int, *, counts: bool) -> float:
    """The noise multiplier for all participations, beside one noised count."""
    return calibrate_noise_multiplier(
        sampling=Full(),
        rounds=steps * participations,
        budget=budget,
        spent=(GaussianRelease(_COUNT_NOISE, Full()),) if counts else (),
    )
