"""A training is paid for before a record is looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from privacy.mechanisms import Randomness, SystemRandomness
from privacy.training.charge import Charge
from privacy.training.ledger import ClientLedger
from privacy.training.protection import (
    Batches,
    ClipAndNoise,
    ClipOnly,
    NoisyCount,
    NominalCount,
    Protection,
)

_TAKING = Lock()
_FREE = "free"
_NO_RECORDS = "records is None: give a callable that counts the records"


class Payment:
    """One training that the ledger has been charged for; ``pay`` makes it.

    It is good for one training that returns. Where ``train`` raises it may be given again, with
    other records or none: what had failed is thrown away with its model, so that one update is
    let out for it.

    Attributes
    ----------
    protection : ClipOnly or ClipAndNoise
        As it was paid for.
    batches : FullBatch or PoissonBatches
        As they were paid for.
    count : float
        The number of records that may be known.
    epsilon : float or None
        What the data set has spent then, for the client's own eyes. None without noise.
    """

    def __init__(
        self, protection: Protection, batches: Batches, count: float, epsilon: float | None
    ) -> None:
        self.protection, self.batches = protection, batches
        self.count, self.epsilon = count, epsilon
        self._state = _FREE

    def check(self, protection: Protection, batches: Batches) -> None:
        """Refuse a training that this does not pay for.

        Raises
        ------
        ValueError
            Names what differs, or says that it is used up.
        """
        for name, value in (("protection", protection), ("batches", batches)):
            if value != getattr(self, name):
                raise ValueError(
                    f"{name} is {value!r}, and {getattr(self, name)!r} was paid for: train as paid"
                )
        self._refuse_taken()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Pay with it for what is done within; it is given back where that raises.

        Raises
        ------
        ValueError
            If it is used up, or another training, in another thread, pays with it.
        """
        with _TAKING:
            self._refuse_taken()
            self._state = "being used by another training"
        try:
            yield
        except BaseException:
            self._state = _FREE
            raise
        self._state = "used up"

    def _refuse_taken(self) -> None:
        if self._state != _FREE:
            raise ValueError(f"ledger is a Payment that is {self._state}: pay for every training")


def pay(
    protection: Protection,
    batches: Batches,
    *,
    ledger: ClientLedger | None,
    records: Callable[[], int] | None = None,
    randomness: Randomness | None = None,
) -> Payment:
    """Charge a training before its records are looked at.

    Whether the budget allows it follows from the arguments and the ledger alone. A client that
    pays first and then, whatever goes wrong, lets out an update, answers nothing that depends on
    a record except through the noise.

    Parameters
    ----------
    protection : ClipOnly or ClipAndNoise
        As ``train`` is given it.
    batches : FullBatch or PoissonBatches
        As ``train`` is given them.
    ledger : ClientLedger or None
        None with ``ClipOnly`` alone.
    records : callable, optional
        Gives the number of records; asked last, and not for a ``NominalCount``.
    randomness : Randomness, optional
        Of a ``NoisyCount``; the operating system's unless given.

    Returns
    -------
    Payment
        To be given to ``train`` in the ledger's place.

    Raises
    ------
    LocalBudgetSpent
        If the ledger's budget does not allow it. Nothing is charged.
    LedgerError
        If the ledger cannot be kept.
    ValueError
        If there is no ledger for noise, or no ``records`` to count.
    """
    if ledger is None and isinstance(protection, ClipAndNoise):
        raise ValueError("ledger is None: ClipAndNoise needs one, or what was spent is forgotten")
    nominal = isinstance(protection, ClipAndNoise) and isinstance(protection.count, NominalCount)
    if records is None and not nominal:
        raise ValueError(_NO_RECORDS)
    if ledger is not None:
        ledger.check(*planned_charges(protection, batches, ledger))
        ledger.charge(_steps(protection, batches))
    count = _known_count(protection, ledger, records, randomness)
    epsilon = None
    if ledger is not None and isinstance(protection, ClipAndNoise):
        epsilon = ledger.epsilon(delta=protection.delta)
    return Payment(protection, batches, count, epsilon)


def planned_charges(
    protection: Protection, batches: Batches, ledger: ClientLedger
) -> tuple[Charge, ...]:
    """All that a training costs that begins on ``ledger`` as it stands."""
    steps = _steps(protection, batches)
    if isinstance(protection, ClipOnly) or not isinstance(protection.count, NoisyCount):
        return (steps,)
    if ledger.released_count is not None:
        return (steps,)
    noise = protection.count.noise_multiplier
    return (steps, Charge(noise_multiplier=noise, sampling_rate=1.0, steps=1))


def _steps(protection: Protection, batches: Batches) -> Charge:
    return Charge(
        noise_multiplier=0.0 if isinstance(protection, ClipOnly) else protection.noise_multiplier,
        sampling_rate=batches.sampling_rate,
        steps=batches.steps,
    )


def _known_count(
    protection: Protection,
    ledger: ClientLedger | None,
    records: Callable[[], int] | None,
    randomness: Randomness | None,
) -> float:
    if isinstance(protection, ClipAndNoise) and isinstance(protection.count, NominalCount):
        return float(protection.count.records)
    if records is None:
        raise ValueError(_NO_RECORDS)
    if (
        ledger is None
        or isinstance(protection, ClipOnly)
        or not isinstance(protection.count, NoisyCount)
    ):
        return float(records())
    return float(
        ledger.release_count(
            records(),
            noise_multiplier=protection.count.noise_multiplier,
            randomness=SystemRandomness() if randomness is None else randomness,
        )
    )
