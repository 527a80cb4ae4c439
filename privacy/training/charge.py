"""What a training costs a data set, as the client's ledger counts it."""

import math
from dataclasses import dataclass

from privacy.accounting import Event, Full, GaussianRelease, Poisson, Repeated

_MOST_STEPS = 10**100


@dataclass(frozen=True, kw_only=True)
class Charge:
    """Steps of the Poisson-subsampled Gaussian mechanism.

    Parameters
    ----------
    noise_multiplier : float
        z; 0 stands for a use without noise, which no ε covers.
    sampling_rate : float
        q in (0, 1].
    steps : int
        How many.

    Raises
    ------
    ValueError
        If one is out of range.
    """

    noise_multiplier: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise_multiplier) and self.noise_multiplier >= 0):
            raise ValueError(f"noise_multiplier is {self.noise_multiplier!r}: must be at least 0")
        if not 0 < self.sampling_rate <= 1:
            raise ValueError(f"sampling_rate is {self.sampling_rate!r}: must be in (0, 1]")
        if not (type(self.steps) is int and self.steps >= 1):
            raise ValueError(f"steps is {self.steps!r}: must be a whole number, at least 1")
        if self.steps > _MOST_STEPS:
            raise ValueError(
                f"steps is a number of {self.steps.bit_length()} bits: must be at most 1e100, or "
                "it cannot be accounted"
            )

    @property
    def event(self) -> Event:
        """The same for :mod:`privacy.accounting`."""
        full = self.sampling_rate == 1
        sampling = Full() if full else Poisson(float(self.sampling_rate))
        release = GaussianRelease(float(self.noise_multiplier), sampling)
        return release if self.steps == 1 else Repeated(release, self.steps)


def charge_of(event: Event) -> Charge:
    """The charge that ``event`` is.

    Raises
    ------
    ValueError
        If it is none: no training of this package pays with it.
    """
    release = event.release if isinstance(event, Repeated) else event
    steps = event.times if isinstance(event, Repeated) else 1
    if not (isinstance(release, GaussianRelease) and isinstance(release.sampling, Poisson | Full)):
        raise ValueError(f"{event!r} is not what a client's training costs")
    rate = release.sampling.rate if isinstance(release.sampling, Poisson) else 1.0
    return Charge(noise_multiplier=release.noise_multiplier, sampling_rate=rate, steps=steps)
