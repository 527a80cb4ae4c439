"""What a client is asked to do: how to protect its records, and how many steps to take on them."""

import math
from dataclasses import dataclass
from numbers import Real

from privacy.accounting import Full, Poisson
from privacy.accounting.events import LARGEST_COUNT
from privacy.arguments import shown

SMALLEST_NORM, LARGEST_NORM = 1e-12, 1e12
MOST_RECORDS = 10**12


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number, of Python's or NumPy's."""
    return isinstance(value, Real) and not isinstance(value, bool)


def positive(name: str, value: float, remedy: str) -> None:
    """Refuse ``value`` unless it is a finite number above zero.

    Raises
    ------
    ValueError
        With the parameter's name, its value and the remedy.
    """
    if not (is_number(value) and math.isfinite(value) and value > 0):
        raise ValueError(f"{name} is {value!r}: {remedy}")


def whole(name: str, value: int, remedy: str) -> None:
    """Refuse ``value`` unless it is an ``int`` of at least 1.

    Raises
    ------
    ValueError
        With the parameter's name, its value and the remedy.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}: {remedy}")


def fraction(name: str, value: float, remedy: str) -> None:
    """Refuse ``value`` unless it is a number between 0 and 1, both excluded.

    Raises
    ------
    ValueError
        With the parameter's name, its value and the remedy.
    """
    if not (is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} is {value!r}: {remedy}")


def _check_clipping_norm(value: float) -> None:
    """Refuse a clipping norm near the ends of single precision, where gradients are rounded away.

    Raises
    ------
    ValueError
        With its value.
    """
    if not (is_number(value) and SMALLEST_NORM <= value <= LARGEST_NORM):
        raise ValueError(
            f"clipping_norm is {value!r}: it must be a number from {SMALLEST_NORM:g} to "
            f"{LARGEST_NORM:g}"
        )


@dataclass(frozen=True, kw_only=True)
class PublicCount:
    """The number of local records is public: it scales the gradient and weighs the update.

    Not covered: somebody who can tell n from n + 1 records learns that a record is there. The
    record-level guarantee then holds only for what the count does not say.
    """


@dataclass(frozen=True, kw_only=True)
class NominalCount:
    """Every client names the same number of records, whatever it holds: uniform weights.

    Parameters
    ----------
    records : int
        The public number, for instance a typical client's. It replaces the true count wherever
        a gradient is averaged or an update weighed.
    """

    records: int

    def __post_init__(self) -> None:
        remedy = "name the public number of records, a whole one, from 1 to 10^12"
        whole("records", self.records, remedy)
        if self.records > MOST_RECORDS:
            raise ValueError(f"records is above 10^12: {remedy}")


@dataclass(frozen=True, kw_only=True)
class NoisyCount:
    """The number of records is released once with Gaussian noise, and the ledger pays for it.

    Parameters
    ----------
    noise_multiplier : float
        Standard deviation of the noise, in records (one record moves the count by one).
    """

    noise_multiplier: float

    def __post_init__(self) -> None:
        positive(
            "noise_multiplier",
            self.noise_multiplier,
            "the count needs noise above 0, in records; to send the exact count use PublicCount",
        )


Count = PublicCount | NominalCount | NoisyCount


@dataclass(frozen=True, kw_only=True)
class ClipOnly:
    """Bound each example's gradient and add no noise.

    Guarantee: no example moves a step's averaged gradient by more than
    ``clipping_norm / batch size``. That is robustness, not privacy: no ε follows from it. It is
    what a client does when noise is added elsewhere, by the strategy.

    Assumptions: the model keeps examples apart. Without noise that is not tried.

    Not covered: the rounding of the average to the model's own precision.

    Parameters
    ----------
    clipping_norm : float
        Largest L2 norm of one example's gradient, over all trainable parameters together,
        from 1e-12 to 1e12.
    """

    clipping_norm: float

    def __post_init__(self) -> None:
        _check_clipping_norm(self.clipping_norm)


@dataclass(frozen=True, kw_only=True)
class ClipAndNoise:
    """DP-SGD (Abadi et al. 2016, Algorithm 1): record-level differential privacy.

    Guarantee: (ε, δ) for adding or removing one record, ε from the client's ledger.

    Assumptions: batches are the Poisson (or full) ones of this package; the ledger sees every
    use of the data set; the optimizer, the loss and the schedule look at no record outside the
    gradient; the model keeps examples apart, of which a trial sees what it can; the count that
    leaves the client is the one ``count`` describes.

    Not covered: one person's several records; rounding of the sum of clipped gradients in single
    precision; timing.

    Parameters
    ----------
    clipping_norm : float
        Largest L2 norm S of one example's gradient, over all trainable parameters together,
        from 1e-12 to 1e12.
    noise_multiplier : float
        z: the noise on the sum of clipped gradients has standard deviation z·S.
    delta : float
        δ of the (ε, δ) statement.
    count : PublicCount, NominalCount or NoisyCount
        What the client lets out about how many records it holds.
    """

    clipping_norm: float
    noise_multiplier: float
    delta: float
    count: Count

    def __post_init__(self) -> None:
        _check_clipping_norm(self.clipping_norm)
        positive(
            "noise_multiplier",
            self.noise_multiplier,
            "noise must be finite and above 0; to train without noise use ClipOnly",
        )
        fraction("delta", self.delta, "choose one in (0, 1), below 1/records")
        if not isinstance(self.count, Count):
            raise TypeError(
                f"count is {self.count!r}: give NominalCount(records=…), NoisyCount(…) or "
                "PublicCount()"
            )


Protection = ClipOnly | ClipAndNoise


def _check_steps(steps: int) -> None:
    whole("steps", steps, "take a whole number of steps, at least 1")
    if steps > LARGEST_COUNT:
        raise ValueError(f"steps is {shown(steps)}: more than 1e100 cannot be accounted")


@dataclass(frozen=True, kw_only=True)
class FullBatch:
    """Every step sees all local records.

    Parameters
    ----------
    steps : int
        How many steps to take.
    """

    steps: int = 1

    def __post_init__(self) -> None:
        _check_steps(self.steps)

    @property
    def sampling_rate(self) -> float:
        """The chance that a step sees a given record: 1."""
        return 1.0

    @property
    def sampling(self) -> Full:
        """The same for :mod:`privacy.accounting`."""
        return Full()


@dataclass(frozen=True, kw_only=True)
class PoissonBatches:
    """Every step sees each record independently with the same chance.

    Parameters
    ----------
    sampling_rate : float
        The chance q, in (0, 1). The expected batch is q times the records.
    steps : int
        How many steps to take; ``PoissonBatches.epochs`` counts in epochs instead.
    """

    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        fraction(
            "sampling_rate",
            self.sampling_rate,
            "choose one in (0, 1); to use every record in every step take FullBatch",
        )
        _check_steps(self.steps)

    @classmethod
    def epochs(cls, epochs: float, *, sampling_rate: float) -> "PoissonBatches":
        """As many steps as see each record ``epochs`` times in expectation.

        The number of steps depends on the rate alone, never on how many records there are.
        """
        positive("epochs", epochs, "train for more than 0 epochs")
        fraction("sampling_rate", sampling_rate, "choose one in (0, 1)")
        return cls(sampling_rate=sampling_rate, steps=math.ceil(epochs / sampling_rate - 1e-9))

    @property
    def sampling(self) -> Poisson:
        """The same for :mod:`privacy.accounting`."""
        return Poisson(float(self.sampling_rate))


Batches = FullBatch | PoissonBatches
