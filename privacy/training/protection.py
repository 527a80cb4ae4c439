"""A client's task: how to protect its records, how many steps to take on which of them."""

import math
from dataclasses import dataclass

from privacy.accounting import Full, Poisson
from privacy.accounting.events import LARGEST_COUNT
from privacy.arguments import convert, delta, number, of_kind, renamed, whole

NORMS = {"least": 1e-12, "most": 1e12}  # beyond, single precision rounds gradients away
_MOST_RECORDS = 10**12


@dataclass(frozen=True, kw_only=True)
class PublicCount:
    """The number of local records is public: it scales the gradient and weighs the update.

    **Not covered.** Somebody who can tell n from n + 1 records learns that a record is there. The
    record-level guarantee then holds only beside the count.
    """


@dataclass(frozen=True, kw_only=True)
class NominalCount:
    """Every client names the same number of records, whatever it has: uniform weights.

    Parameters
    ----------
    records : int
        The public number, for instance a typical client's, by which gradients are averaged and
        the update is weighed.
    """

    records: int

    def __post_init__(self) -> None:
        convert(self, "records", whole, least=1, most=_MOST_RECORDS)


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
        give = "a number above 0, in records; to send the exact count use PublicCount"
        convert(self, "noise_multiplier", number, above=0, give=give)


Count = PublicCount | NominalCount | NoisyCount


@renamed(max_grad_norm="clipping_norm")
@dataclass(frozen=True, kw_only=True)
class ClipOnly:
    """Bound each example's gradient and add no noise; the strategy may add it.

    **Guarantee.** No example moves a step's averaged gradient by more than
    ``clipping_norm / batch size``. That is robustness, not privacy: no ε follows from it.

    **Assumptions.** The model keeps examples apart. Without noise that is not tried.

    **Not covered.** The rounding of the average to the model's own precision.

    Parameters
    ----------
    clipping_norm : float
        Largest L2 norm of one example's gradient, over all trainable parameters together,
        from 1e-12 to 1e12.
    """

    clipping_norm: float

    def __post_init__(self) -> None:
        convert(self, "clipping_norm", number, **NORMS)


@renamed(
    max_grad_norm="clipping_norm",
    target_epsilon="noise_multiplier=privacy.accounting.calibrate_noise_multiplier(…)",
    target_delta="delta",
)
@dataclass(frozen=True, kw_only=True)
class ClipAndNoise:
    """DP-SGD (Abadi et al. 2016, Algorithm 1): record-level differential privacy.

    **Guarantee.** (ε, δ) for adding or removing one record, ε from the client's ledger.

    **Assumptions.** Batches are the Poisson (or full) ones of this package; the ledger sees every
    use of the data set; the optimizer, the loss and the schedule look at no record outside the
    gradient; the model keeps examples apart, of which a trial sees what it can; the count that
    leaves the client is the one that ``count`` describes.

    **Not covered.** One person's several records; rounding of the sum of clipped gradients in
    single precision; timing.

    Parameters
    ----------
    clipping_norm : float
        S, as in ``ClipOnly``.
    noise_multiplier : float
        z: the noise on the sum of clipped gradients has standard deviation z·S.
    delta : float
        δ of the (ε, δ) statement, well below one over the number of records.
    count : PublicCount, NominalCount or NoisyCount
        How the client's number of records leaves it.
    """

    clipping_norm: float
    noise_multiplier: float
    delta: float
    count: Count

    def __post_init__(self) -> None:
        convert(self, "clipping_norm", number, **NORMS)
        give = "a finite number above 0; to train without noise use ClipOnly"
        convert(self, "noise_multiplier", number, above=0, give=give)
        convert(self, "delta", delta, units="the number of records")
        kinds = (PublicCount, NominalCount, NoisyCount)
        give = "NominalCount(records=…), NoisyCount(…) or PublicCount()"
        of_kind("count", self.count, kinds, give)


Protection = ClipOnly | ClipAndNoise


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
        convert(self, "steps", whole, least=1, most=LARGEST_COUNT)

    @property
    def sampling_rate(self) -> float:
        """The chance that a step sees a given record: 1."""
        return 1.0

    @property
    def sampling(self) -> Full:
        """As :mod:`privacy.accounting` takes it."""
        return Full()


@renamed(
    sample_rate="sampling_rate",
    batch_size="sampling_rate, the expected batch over the records",
    epochs="PoissonBatches.epochs(…, sampling_rate=q)",
)
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
        give = "a number in (0, 1); to use every record in every step take FullBatch"
        convert(self, "sampling_rate", number, above=0, below=1, give=give)
        convert(self, "steps", whole, least=1, most=LARGEST_COUNT)

    @classmethod
    @renamed(
        sample_rate="sampling_rate",
        batch_size="sampling_rate, the expected batch over the records",
    )
    def epochs(cls, epochs: float, *, sampling_rate: float) -> "PoissonBatches":
        """As many steps as see each record ``epochs`` times in expectation.

        The number of steps depends on the rate alone, never on how many records there are.
        """
        rate = number("sampling_rate", sampling_rate, above=0, below=1)
        steps = math.ceil(number("epochs", epochs, above=0) / rate - 1e-9)
        return cls(sampling_rate=rate, steps=steps)

    @property
    def sampling(self) -> Poisson:
        """As :mod:`privacy.accounting` takes it."""
        return Poisson(self.sampling_rate)


Batches = FullBatch | PoissonBatches
