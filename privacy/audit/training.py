"""A membership test: was a model trained on this record or not."""

import copy
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.arguments import number, sizes, whole
from privacy.audit.experiment import AuditResult, Scores, audit
from privacy.mechanisms import Randomness

Loss = Callable[[Tensor, Tensor], Tensor]


def one_hot_records(count: int, shape: tuple[int, ...], *, height: float = 1.0) -> Tensor:
    """Canary records that do not hide one another: each lights up one input of its own.

    Parameters
    ----------
    count : int
        m, at most the number of inputs.
    shape : tuple of int
        Of one record.
    height : float
        Of the lit input.

    Returns
    -------
    Tensor
        (m, ...), float32.

    Raises
    ------
    ValueError
        If there are more canaries than inputs.
    """
    shape = sizes("shape", shape, "the shape of one record, as (1, 28, 28)")
    size = math.prod(shape)
    count = whole("count", count, least=1, most=size)
    height = number("height", height)
    records = torch.zeros(count, size, device="cpu")
    records.fill_diagonal_(height)
    return records.reshape(count, *shape)


def audit_training(
    train: Callable[[nn.Module, Tensor, Tensor], object],
    model: nn.Module,
    canaries: tuple[Tensor, Tensor],
    *,
    loss: Loss,
    claimed_epsilon: float | Callable[[], float],
    delta: float,
    background: tuple[Tensor, Tensor] | None = None,
    confidence: float = 0.95,
    guesses: int | None = None,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Audit record-level training by how far it lowered each canary's loss.

    The attacker sees the model before and after (Yeom et al. 2018, arXiv 1709.01604, calibrated
    by the model before, as Carlini et al. 2022, arXiv 2112.03570, section 3, advise).

    Parameters
    ----------
    train : callable
        ``train(model, inputs, targets)`` trains the model in place on these records, as a client
        would, with the noise whose ε is claimed.
    model : nn.Module
        As it is before training; left as it is.
    canaries : tuple of Tensor
        Inputs and targets, each (m, ...). :func:`one_hot_records` makes strong ones.
    loss : callable
        ``loss(outputs, targets)`` of shape (m,).
    claimed_epsilon, delta, confidence, guesses, randomness
        As in :func:`privacy.audit.audit`, whose guarantee the result has.
    background : tuple of Tensor, optional
        Records that are always there.

    Returns
    -------
    AuditResult
        Of ε at record level, under adding or removing one record.
    """
    inputs, targets = canaries
    before = _losses(model, inputs, targets, loss)

    def run(included: NDArray[np.bool_]) -> Mapping[str, Scores]:
        chosen = torch.from_numpy(included)
        parts = [(inputs[chosen], targets[chosen])]
        if background is not None:
            parts.insert(0, background)
        trained = copy.deepcopy(model)
        train(trained, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
        return {"fall of the loss": before - _losses(trained, inputs, targets, loss)}

    return audit(
        run,
        canaries=len(inputs),
        claimed_epsilon=claimed_epsilon,
        delta=delta,
        confidence=confidence,
        guesses=guesses,
        randomness=randomness,
    )


def _losses(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> Scores:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return np.asarray(loss(model(inputs), targets).double().numpy(), dtype=np.float64)
    finally:
        model.train(was_training)
