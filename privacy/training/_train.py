"""Local training with per-example clipping and optional noise (DP-SGD)."""

import logging
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from privacy.arguments import renamed, whole
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.training._arguments import check_arguments
from privacy.training.ledger import ClientLedger
from privacy.training.model_checks.admission import admit
from privacy.training.model_checks.model_state import Buffers, refuse_changed
from privacy.training.optimizer import GradientDescent, NoisyOptimizer
from privacy.training.payment import Payment, pay, planned_events
from privacy.training.per_example.capture import Capture
from privacy.training.per_example.gradients import Gradients, clipped_sum
from privacy.training.per_example.loss import ExampleLoss, Loss
from privacy.training.per_example.malformed import MalformedRecords
from privacy.training.protection import (
    Batches,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    Protection,
    PublicCount,
)
from privacy.training.records import Records, on_device_of, records_of
from privacy.training.result import TrainingResult, guarantee_of

_log = logging.getLogger(__name__)


_PROTECTION = "protection=ClipAndNoise(clipping_norm=…, noise_multiplier=…, delta=…, count=…)"
_NOISE = (
    "protection=ClipAndNoise(noise_multiplier=z, …), with z from "
    "privacy.accounting.calibrate_noise_multiplier(…)"
)
_BATCHES = "batches=PoissonBatches.epochs(…, sampling_rate=q), or FullBatch(steps=…)"


@renamed(  # names of Opacus's, and of loops over a DataLoader
    module="model",
    data_loader="data=loader.dataset",
    dataset="data",
    criterion="loss",
    scheduler="schedule",
    max_physical_batch_size="physical_batch_size",
    max_grad_norm=_PROTECTION,
    clipping_norm=_PROTECTION,
    noise_multiplier=_PROTECTION,
    delta=_PROTECTION,
    target_epsilon=_NOISE,
    target_delta=_NOISE,
    poisson_sampling=_BATCHES,
    sample_rate=_BATCHES,
    batch_size=_BATCHES,
    epochs=_BATCHES,
    steps=_BATCHES,
    device="nothing: records go to where the model is, model.to(device)",
)
def train(
    model: nn.Module,
    data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]],
    *,
    loss: Loss,
    optimizer: Optimizer | GradientDescent,
    protection: Protection,
    batches: Batches,
    schedule: LRScheduler | None = None,
    ledger: ClientLedger | Payment | None = None,
    physical_batch_size: int = 512,
    randomness: Randomness | None = None,
) -> TrainingResult:
    """Train ``model`` in place on a client's own records.

    Each step sums the examples' gradients, each scaled to an L2 norm of at most
    ``clipping_norm``, adds noise if ``protection`` says so, divides by the *expected* batch size
    and lets ``optimizer`` step. An example whose gradient is not finite adds nothing, nor does one
    on which the data set, the model or the loss fails.

    Parameters
    ----------
    model : nn.Module
        Passes ``check_model``, with the examples on the first axis of every layer's tensors. Its
        mode (``train`` or ``eval``) stays.
    data : sequence of Tensor, or Dataset
        (input, ..., targets), each of shape (n, ...), or a map-style Dataset of such tuples for one
        record. Each physical batch is moved to the device of the model's parameters, if that is
        one. With noise there may be no record at all: the steps are noise then.
    loss : callable
        ``loss(outputs, targets)``. A torch loss (module or function) is called with
        ``reduction="none"``; another callable must return shape (n,), and is called with one
        example at a time.
    optimizer : torch.optim.Optimizer or GradientDescent
        Has all of the model's trainable parameters. Not one that needs a closure.
    protection : ClipOnly or ClipAndNoise
        How each record is protected.
    batches : FullBatch or PoissonBatches
        How many steps, on which records.
    schedule : LRScheduler, optional
        Made for ``optimizer``; stepped after each optimizer step. Not one that needs a metric.
    ledger : ClientLedger or Payment, optional
        Needed by ``ClipAndNoise``: charged before a record is tried. Where somebody else sees
        whether ``train`` raises, give the result of ``pay``; if training raises, train again with
        the same payment and no records.
    physical_batch_size : int
        How many examples are computed at once: it bounds memory and leaves the result as it is.
    randomness : Randomness, optional
        Draws batches and noise; the operating system's unless given. With a seeded one, for
        tests, the result carries no guarantee.

    Returns
    -------
    TrainingResult
        Steps, the weight to send, the method and the guarantee.

    Raises
    ------
    UnsupportedModelError
        If a layer of the model breaks per-example gradients.
    LocalBudgetError
        If the ledger's budget does not allow it. The message may travel.
    LedgerError
        If the ledger cannot be read or written.
    GradientError
        If the model or the loss fails on made-up records of the data's shapes, or per-example
        gradients cannot follow it, or, where noise is added, it mixes examples. This is tried
        after the charge, which pays for the shapes as well.
    TypeError, ValueError
        If an argument or the data is of another kind or does not fit, by name, before anything is
        charged.
    Exception
        Without noise, the first record's own, before a step for which every record so far failed.
        With noise no record's failure ends a training. All other errors leave the model untouched.
    """
    check_arguments(
        model,
        loss,
        optimizer,
        protection,
        batches,
        schedule,
        ledger,
        randomness,
    )
    physical_batch_size = whole("physical_batch_size", physical_batch_size, least=1)
    if isinstance(ledger, Payment):
        ledger.check(protection, batches)
    elif ledger is not None:
        ledger.check(*planned_events(protection, batches, ledger))
    records = on_device_of(model, records_of(data))
    if not len(records) and (
        isinstance(protection, ClipOnly) or isinstance(protection.count, PublicCount)
    ):
        raise ValueError("data holds no record: a client without records has nothing to train on")
    randomness = SystemRandomness() if randomness is None else randomness
    if isinstance(ledger, Payment):
        payment = ledger
    else:  # before a record is tried
        payment = pay(
            protection,
            batches,
            ledger=ledger,
            records=partial(len, records),
            randomness=randomness,
        )
    with payment.in_use():
        method = _train_as_paid(
            model,
            records,
            ExampleLoss(loss),
            optimizer,
            schedule,
            payment,
            physical_batch_size,
            randomness,
        )
    return TrainingResult(
        steps=batches.steps,
        weight=payment.count,
        method=method,
        guarantee=guarantee_of(protection, private=randomness.private),
        epsilon=payment.epsilon,
    )


def _train_as_paid(
    model: nn.Module,
    records: Records,
    loss: ExampleLoss,
    optimizer: Optimizer | GradientDescent,
    schedule: LRScheduler | None,
    payment: Payment,
    physical_batch_size: int,
    randomness: Randomness,
) -> dict[str, str]:
    """Train in place; each layer's method for per-example gradients."""
    protection, batches = payment.protection, payment.batches
    buffers = Buffers(model)
    noised = isinstance(protection, ClipAndNoise)
    count = len(records)
    if not admit(model, loss, records, buffers, noised=noised) and noised:
        count = 0  # no record can be read, so the model was tried for no format
    noisy_optimizer = NoisyOptimizer(
        optimizer,
        randomness=randomness,
        noise_multiplier=getattr(protection, "noise_multiplier", 0.0),
        sensitivity=protection.clipping_norm / (batches.sampling_rate * payment.count),
    )
    method: dict[str, str] = {}
    with Capture(model) as capture, noisy_optimizer.drawing():

        def clipped(rows: Tensor) -> Gradients:
            capture.forget()  # a batch that failed
            *inputs, targets = records.take(rows)
            losses = loss(model(*inputs), targets)
            layers = capture.gradients(losses)
            method.update({name: layer.method for name, layer in layers.items()})
            return clipped_sum(list(layers.values()), clipping_norm=protection.clipping_norm)

        add_well_formed = MalformedRecords(clipped, noisy_optimizer.add_clipped, every_error=noised)
        changed: set[str] = set()
        for _ in range(batches.steps):
            pieces = _physical_batches(count, batches, physical_batch_size, randomness)
            noisy_optimizer.begin()
            for rows in pieces:
                add_well_formed(rows)
                changed.update(buffers.restore())
            if not noised:
                refuse_changed(sorted(changed))
                add_well_formed.raise_if_none_worked()
            noisy_optimizer.step()
            if schedule is not None:
                schedule.step()
        add_well_formed.log()
    if changed:  # an error would tell whoever waits for the update
        _log.error("Buffers changed in training and were put back: %s", ", ".join(sorted(changed)))
    return method


def _physical_batches(
    records: int, batches: Batches, size: int, randomness: Randomness
) -> list[Tensor]:
    """The rows of one logical batch, in pieces of at most ``size``."""
    if isinstance(batches, FullBatch):
        rows = torch.arange(records, device="cpu")
    else:
        rows = torch.from_numpy(
            np.flatnonzero(randomness.bernoulli(batches.sampling_rate, records))
        )
    return [piece for piece in rows.split(size) if len(piece)]
