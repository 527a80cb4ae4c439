"""A silo's part in a step of distributed DP-SGD: a noisy sum over persons, as integers to mask."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import NoneType

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from privacy.accounting import Full, Poisson, SiloSum
from privacy.arguments import convert, number, of_kind, renamed, whole
from privacy.mechanisms import PersonSum, Randomness, SiloGaussian, SystemRandomness
from privacy.mechanisms.person_sums import Rows
from privacy.training._arguments import check_program
from privacy.training._padded_rows import PaddedRows
from privacy.training.ledger import ClientLedger
from privacy.training.model_checks.admission import admitted
from privacy.training.model_checks.check import check_model
from privacy.training.model_checks.model_state import Buffers, preserved_randomness
from privacy.training.per_example.loss import ExampleLoss, Loss
from privacy.training.per_example.malformed import MalformedRecords
from privacy.training.persons import Persons
from privacy.training.protection import NORMS
from privacy.training.records import on_device_of

_log = logging.getLogger(__name__)
_ROWS_AT_ONCE = 64


@renamed(max_grad_norm="clipping_norm", sample_rate="sampling_rate")
@dataclass(frozen=True, kw_only=True)
class SiloStep:
    """What every silo does in a step, the same in all of them and fixed before the run.

    Parameters
    ----------
    mechanism : SiloGaussian
        The lattice, and for how many honest silos the noise is sized.
    clipping_norm : float
        S, the largest L2 norm of one person's gradient over all trainable parameters together,
        from 1e-12 to 1e12.
    noise_multiplier : float
        z: the noise of the fewest honest silos together has standard deviation z·S.
    sampling_rate : float
        p in (0, 1], with which a silo draws each of its persons.
    persons : int
        N, a public number of persons over all silos, by which the ring of masked sums is sized
        (``mechanism.bound``). A silo that holds more cuts its sum to what fits, and its log says
        so.
    """

    mechanism: SiloGaussian
    clipping_norm: float
    noise_multiplier: float
    sampling_rate: float
    persons: int

    def __post_init__(self) -> None:
        of_kind("mechanism", self.mechanism, SiloGaussian, "SiloGaussian(min_silos, colluders)")
        convert(self, "clipping_norm", number, **NORMS)
        convert(self, "noise_multiplier", number, above=0)
        convert(self, "sampling_rate", number, above=0, most=1)
        convert(self, "persons", whole, least=1)

    @property
    def sampling(self) -> Poisson | Full:
        """As :mod:`privacy.accounting` takes it."""
        return Full() if self.sampling_rate == 1 else Poisson(self.sampling_rate)

    def event(self, parameters: int) -> SiloSum:
        """The event of one step of a model with so many trained parameters, for the ledger."""
        return self.mechanism.account(
            parameters=parameters, noise_multiplier=self.noise_multiplier, sampling=self.sampling
        )


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters whose gradients a silo sums, by name, in the order of the sum's numbers."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def silo_sum(
    model: nn.Module,
    persons: Persons,
    *,
    loss: Loss,
    step: SiloStep,
    ledger: ClientLedger | None,
    physical_batch_size: int = _ROWS_AT_ONCE,
    randomness: Randomness | None = None,
) -> npt.NDArray[np.int64]:
    """The clipped gradients of the persons that this silo draws, summed, with its share of noise.

    A person's gradient is the mean over the person's rows. A sum would be no less private, but its
    length would grow with the number of rows, and no one clipping norm would suit all.

    Parameters
    ----------
    model : nn.Module
        Passes ``check_model``. It stays as it is.
    persons : Persons
        The silo's records. There may be none: the sum is noise then.
    loss : callable
        As for ``train``; one that is not torch's is called with one example at a time.
    step : SiloStep
        The same in all silos.
    ledger : ClientLedger or None
        Charged with ``step.event`` before a record is tried. None: the run was paid for already,
        with ``ledger.charge(Repeated(step.event(d), steps))``.
    physical_batch_size : int
        How many rows are computed at once, at most: it bounds memory.
    randomness : Randomness, optional
        Draws persons and noise; the operating system's unless given. With a seeded one, for tests,
        nothing is private.

    Returns
    -------
    ndarray of int64, shape (d,)
        In lattice cells, for secure aggregation; ``step.mechanism.decode`` reads the opened sum.
        Its order is that of ``trained_parameters(model)``, each in C order.

    Raises
    ------
    UnsupportedModelError
        If a layer of the model breaks per-example gradients.
    LocalBudgetError
        If the ledger's budget does not allow it. The message may travel.
    LedgerError
        If the ledger cannot be read or written.
    GradientError
        As ``train`` raises it, from trials on made-up records of tensors' shapes, after the
        charge; and if gradients differ from one run to the next. Of a Dataset, whose records have
        shapes of their own, those that model and loss refuse add zero.
    TypeError, ValueError
        If an argument is of another kind, by name, before anything is charged.

    Notes
    -----
    **Guarantee.** That of ``SiloGaussian``: with the records of one person more or less, the
    integers move by less than R + √d, for the same coins and noise. No record's failure shows: a
    row that cannot be read, or whose gradient is not finite, adds zero, and only this silo's log
    has it.

    **Assumptions.** Secure aggregation hides the integers: this silo's own share is not enough
    noise. The ledger sees every use of the data. The model keeps rows apart, and its kernels add up
    in an order that does not depend on values; a trial sees what it can. Layers that draw, such as
    dropout, draw independently for each row, from torch's, NumPy's or Python's global generators:
    these are seeded afresh in every step, and put back.

    **Not covered.** Time: it grows with the number of rows drawn, and of different ones among
    them. A layer with a generator of its
    own and a fixed seed: another row would move the others' draws.
    """
    of_kind("step", step, SiloStep, "a SiloStep")
    of_kind("ledger", ledger, (ClientLedger, NoneType), "a ClientLedger, or None if paid already")
    of_kind("randomness", randomness, (Randomness, NoneType), "SeededRandomness(seed), or None")
    physical_batch_size = whole("physical_batch_size", physical_batch_size, least=1)
    parameters = _checked(model, persons, loss)
    dimension = sum(parameter.numel() for parameter in parameters)
    randomness = SystemRandomness() if randomness is None else randomness
    event = step.event(dimension)
    if ledger is not None:  # before a record is tried
        ledger.charge(event)
    total = step.mechanism.open_sum(
        dimension, clipping_norm=step.clipping_norm, persons=step.persons, sampling=step.sampling
    )
    example_loss = ExampleLoss(loss, one_by_one=True)
    records = on_device_of(model, persons.records)
    seed = int.from_bytes(randomness.bytes(4), "little")
    formats = admitted(model, example_loss, records, Buffers(model))
    if formats:
        coins = randomness.bernoulli(step.sampling_rate, len(persons))
        drawn = [persons.groups[person] for person in np.flatnonzero(coins)]
        with (
            preserved_randomness(model) as generators,
            PaddedRows(
                model, example_loss, parameters, records, formats, size=physical_batch_size
            ) as gradients,
        ):
            generators.seed(seed)
            _add_persons(total, gradients, drawn)
    integers = total.integers()
    step.mechanism.add_share(
        integers, noise_multiplier=step.noise_multiplier, randomness=randomness
    )
    return integers


def check_silo_sum(model: nn.Module, persons: Persons, *, loss: Loss) -> None:
    """Raise what would keep ``silo_sum`` from these persons' records; nothing is summed or charged.

    For the start of a run, where a silo can still decline. The outcome depends on the model, the
    loss, and the shapes and precisions of tensors, no more.

    Parameters
    ----------
    model, persons, loss
        As ``silo_sum`` takes them.

    Raises
    ------
    UnsupportedModelError, GradientError, TypeError, ValueError
        As ``silo_sum`` raises them.
    """
    parameters = _checked(model, persons, loss)
    example_loss, records = ExampleLoss(loss, one_by_one=True), on_device_of(model, persons.records)
    if formats := admitted(model, example_loss, records, Buffers(model)):
        with PaddedRows(model, example_loss, parameters, records, formats, size=_ROWS_AT_ONCE):
            pass


def _checked(model: nn.Module, persons: Persons, loss: Loss) -> list[nn.Parameter]:
    """The parameters to train, once model, persons and loss are such as a sum takes."""
    check_program(model, loss)
    of_kind("persons", persons, Persons, "Persons(data, person_ids)")
    check_model(model)
    parameters = list(trained_parameters(model).values())
    if not any(parameter.numel() for parameter in parameters):
        raise ValueError("model has no trainable parameter: set requires_grad for those to train")
    return parameters


def _add_persons(total: PersonSum, gradients: PaddedRows, drawn: Sequence[Rows]) -> None:
    """Add the mean gradient of each person; a person's rows follow one another."""
    block: npt.NDArray[np.float64] | None = None

    def gradients_of(rows: Tensor) -> tuple[Tensor, npt.NDArray[np.float64]]:
        return rows, gradients(rows)

    def put(computed: tuple[Tensor, npt.NDArray[np.float64]]) -> None:
        rows, vectors = computed
        if block is None:
            total.add(vectors)
            return
        finite = np.isfinite(vectors).all(axis=1)
        block[place[rows.numpy()][finite]] = vectors[finite]

    add_well_formed = MalformedRecords(gradients_of, put, every_error=True)
    rows = np.concatenate([np.empty(0, np.int64), *drawn])
    counts = np.array([len(group) for group in drawn], dtype=np.int64)
    owners = np.repeat(np.arange(len(drawn)), counts)
    place = np.empty(len(gradients.records), np.int64)
    partial, added = np.zeros(gradients.dimension), 0
    for begin in range(0, len(rows), gradients.at_once):
        here = slice(begin, begin + gradients.at_once)
        of_one_row = counts[owners[here]] == 1
        if of_one_row.all():
            block = None
            add_well_formed(torch.from_numpy(np.sort(rows[here])))
            continue
        place[rows[here]] = np.arange(len(rows[here]))
        block = np.zeros((len(rows[here]), gradients.dimension))
        add_well_formed(torch.from_numpy(np.sort(rows[here])))
        total.add(block[of_one_row])
        for row in np.flatnonzero(~of_one_row):
            partial += block[row]
            added += 1
            if added == counts[owners[begin + row]]:
                total.add(partial[None] / added)
                partial, added = np.zeros(gradients.dimension), 0
    add_well_formed.log()
    if gradients.changed:  # an error would tell whoever waits for the sum
        _log.error(
            "Buffers changed in a step and were put back: %s", ", ".join(sorted(gradients.changed))
        )
