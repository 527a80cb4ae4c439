"""A membership test: was a model trained on this record or not."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.arguments import number, sizes, whole
from privacy.audit.experiment import AuditResult, Scores, audit
from privacy.mechanisms import Randomness

_log = logging.getLogger(__name__)

Loss = Callable[[Tensor, Tensor], Tensor]
Train = Callable[[nn.Module, Tensor, Tensor], object]

# Squares of lengths: a direction of which less is its own is another's, but for rounding.
_SAME_DIRECTION = 1e-9


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
    train: Train,
    model: nn.Module,
    canaries: tuple[Tensor, Tensor],
    *,
    without_noise: Train,
    loss: Loss,
    claimed_epsilon: float | Callable[[], float],
    delta: float,
    background: tuple[Tensor, Tensor] | None = None,
    confidence: float = 0.95,
    guesses: int | None = None,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Audit record-level training by how far it moved the model along each canary's gradient.

    The attacker sees the model before and after, and knows every record that may be there (Nasr et
    al. 2023, arXiv 2302.07956; Steinke et al. 2023, section 6, white box). Canaries share
    parameters, the last bias for one, so that each one's gradient has a part of others': the
    movement is taken as a sum of all their gradients, by least squares, and a canary's score is
    its own share.

    Where nothing is contradicted, ``without_noise`` is attacked as well. If not even that training
    contradicts the claim, the attack is too weak for this model: the result is blind, and the log
    says so.

    **Guarantee.** That of :func:`privacy.audit.audit`.

    **Not covered.** The gradients are those before training: they tell less, the further a
    training of many steps goes. The gradients of all canaries are held at once, float64.

    Parameters
    ----------
    train : callable
        ``train(model, inputs, targets)`` trains the model in place on these records, as a client
        would, with the noise whose ε is claimed.
    model : nn.Module
        As it is before training; left as it is.
    canaries : tuple of Tensor
        Inputs and targets, each (m, ...). :func:`one_hot_records` makes strong ones.
    without_noise : callable
        As ``train``, with the noise left out: what the attack must be able to see.
    loss : callable
        ``loss(outputs, targets)`` of shape (m,).
    claimed_epsilon, delta, confidence, guesses, randomness
        As in :func:`privacy.audit.audit`.
    background : tuple of Tensor, optional
        Records that are always there.

    Returns
    -------
    AuditResult
        Of ε at record level, under adding or removing one record.

    Raises
    ------
    TypeError, ValueError
        As :func:`privacy.audit.audit`, or if no parameter of the model is trainable.
    """
    inputs, targets = canaries
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    if not any(trainable):
        raise ValueError("model has no trainable parameter; there is nothing that training moves")

    def movement(by: Train, *parts: tuple[Tensor, Tensor]) -> Tensor:
        trained = copy.deepcopy(model)
        by(trained, torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]))
        pairs = zip(model.parameters(), trained.parameters(), trainable, strict=True)
        return _flat([(before - after).detach() for before, after, moves in pairs if moves])

    directions = _gradients(model, inputs, targets, loss)
    always = () if background is None else (background,)

    def attack(by: Train, claim: float | Callable[[], float]) -> AuditResult:
        def run(included: NDArray[np.bool_]) -> Mapping[str, Scores]:
            chosen = torch.from_numpy(included)
            moved = movement(by, *always, (inputs[chosen], targets[chosen]))
            return {"own gradient": _shares(directions, moved)}

        return audit(
            run,
            canaries=len(inputs),
            claimed_epsilon=claim,
            delta=delta,
            confidence=confidence,
            guesses=guesses,
            randomness=randomness,
        )

    result = attack(train, claimed_epsilon)
    if result.blind or not result.passed:
        return result
    control = attack(without_noise, result.claimed_epsilon)
    if not control.passed:
        return result
    _log.warning(
        "This audit is blind: of training without noise %d of %d guesses are right, which does not "
        "contradict the claimed ε = %.3f either. Give canaries whose gradients differ more "
        "(one_hot_records of a greater height), more of them, or fewer steps.",
        control.attacks[0].correct,
        control.attacks[0].guesses,
        result.claimed_epsilon,
    )
    return replace(result, blind=True)


def _gradients(model: nn.Module, inputs: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Each record's gradient over all trainable parameters, (m, p), float64, on the CPU."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = parameters[0].device
    rows = []
    was_training = model.training
    model.eval()
    try:
        for row in range(len(inputs)):
            here = slice(row, row + 1)
            losses = loss(model(inputs[here].to(device)), targets[here].to(device))
            gradients = torch.autograd.grad(
                losses.sum(), parameters, allow_unused=True, materialize_grads=True
            )
            rows.append(_flat(gradients))
    finally:
        model.train(was_training)
    return torch.stack(rows)


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.double().cpu().flatten() for tensor in tensors])


def _shares(directions: Tensor, moved: Tensor) -> Scores:
    """How far ``moved`` goes along each row of ``directions`` beside all others, (rows,).

    The least squares of least norm, in units of length: it splits what several rows share.
    """
    lengths = directions.norm(dim=1, keepdim=True)
    units = torch.where(lengths > 0, directions / lengths, 0.0)
    likeness, along = (units @ units.T).numpy(), (units @ moved).numpy()
    shares, *_ = np.linalg.lstsq(likeness, along, rcond=_SAME_DIRECTION)
    return np.asarray(shares, dtype=np.float64)
