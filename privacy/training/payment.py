"""Payment for a training, before a record is looked at."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock

from privacy.accounting import Event, Full, GaussianRelease, Repeated
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.training.ledger import ClientLedger
from privacy.training.protection import Batches, ClipAndNoise, NoisyCount, NominalCount, Protection

_STATE_LOCK = Lock()
_UNUSED = "unused"
NO_LEDGER = "ledger is None: ClipAndNoise needs one, or what was spent is forgotten"


class Payment:
    """One training that the ledger has been charged for; ``pay`` makes it.

    It pays for one training that returns. If ``train`` raises, discard the model and give the same
    payment again, with other records or none: one update goes out for it.

    Attributes
    ----------
    protection, batches
        As they were paid for.
    count : float
        The number of records that leaves the client: exact, nominal or noised.
    epsilon : float or None
        ε that the data set has spent, this training included; never to be sent. None without noise.
    """

    def __init__(
        self, protection: Protection, batches: Batches, count: float, epsilon: float | None
    ) -> None:
        self.protection, self.batches = protection, batches
        self.count, self.epsilon = count, epsilon
        self._state = _UNUSED

    def check(self, protection: Protection, batches: Batches) -> None:
        """Refuse, by name, another training than was paid for, and a used payment."""
        for name, value in (("protection", protection), ("batches", batches)):
            if value != getattr(self, name):
                raise ValueError(
                    f"{name} is {value!r}, and {getattr(self, name)!r} was paid for: train as paid"
                )
        self._check_unused()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Use it for the body; unused again if that raises.

        It is refused if used up, or in use by another thread.
        """
        with _STATE_LOCK:
            self._check_unused()
            self._state = "being used by another training"
        try:
            yield
        except BaseException:
            self._state = _UNUSED
            raise
        self._state = "used up"

    def _check_unused(self) -> None:
        if self._state != _UNUSED:
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

    The decision follows from the arguments and the ledger alone. A client that pays first and then
    sends an update, whatever goes wrong, shows a record only through noise.

    Parameters
    ----------
    protection : ClipOnly or ClipAndNoise
    batches : FullBatch or PoissonBatches
        As ``train`` is given them.
    ledger : ClientLedger or None
        None with ``ClipOnly`` alone.
    records : callable, optional
        Returns the number of records; called after the charge, not for a ``NominalCount``.
    randomness : Randomness, optional
        For a ``NoisyCount``; the operating system's unless given.

    Returns
    -------
    Payment
        For ``train``, in the ledger's place.

    Raises
    ------
    LocalBudgetError
        If the ledger's budget does not allow it. Nothing is charged.
    LedgerError
        If the ledger cannot be kept.
    ValueError
        If there is no ledger for noise, or no ``records`` to count.
    """
    count = protection.count if isinstance(protection, ClipAndNoise) else None
    if isinstance(count, NominalCount):
        records = partial(int, count.records)
    check_payment(protection, batches, ledger=ledger)
    if records is None:
        raise ValueError("records is None: give a callable that counts the records")
    if ledger is not None:
        ledger.charge(_steps(protection, batches))
    known = records()
    if ledger is not None and isinstance(count, NoisyCount):
        known = ledger.release_count(
            known,
            noise_multiplier=count.noise_multiplier,
            randomness=SystemRandomness() if randomness is None else randomness,
        )
    epsilon = None
    if ledger is not None and isinstance(protection, ClipAndNoise):
        epsilon = ledger.epsilon(delta=protection.delta)
    return Payment(protection, batches, float(known), epsilon)


def check_payment(protection: Protection, batches: Batches, *, ledger: ClientLedger | None) -> None:
    """Refuse a training as ``pay`` would, and charge nothing.

    A client asks before others count on it: under secure aggregation, at the invitation.

    Parameters
    ----------
    protection, batches, ledger
        As ``pay`` takes them.

    Raises
    ------
    LocalBudgetError, LedgerError, ValueError
        As ``pay`` raises them.
    """
    if ledger is None:
        if isinstance(protection, ClipAndNoise):
            raise ValueError(NO_LEDGER)
        return
    ledger.check(*planned_events(protection, batches, ledger))


def planned_events(
    protection: Protection, batches: Batches, ledger: ClientLedger
) -> tuple[Event, ...]:
    """Every event of a training on ``ledger`` as it stands: its steps, and a first noisy count."""
    steps = _steps(protection, batches)
    count = protection.count if isinstance(protection, ClipAndNoise) else None
    if not isinstance(count, NoisyCount) or ledger.released_count is not None:
        return (steps,)
    return (steps, GaussianRelease(count.noise_multiplier, Full()))


def _steps(protection: Protection, batches: Batches) -> Event:
    """The training's steps; without noise their ε is infinite."""
    noise = protection.noise_multiplier if isinstance(protection, ClipAndNoise) else 0.0
    release = GaussianRelease(noise, batches.sampling)
    return release if batches.steps == 1 else Repeated(release, batches.steps)
