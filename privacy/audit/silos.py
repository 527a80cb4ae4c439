"""An attack on silos' sums: canary persons, the noise where no record reaches, and the draws."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from privacy.accounting import Repeated, epsilon
from privacy.arguments import number, of_kind, whole
from privacy.audit.experiment import AuditResult, judge
from privacy.audit.statistics import little_noise_p_value, poisson_cohort_p_value
from privacy.audit.trade_off import PrivacyCurve
from privacy.audit.training import one_hot_records
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.training import Persons, SiloStep, silo_sum

Integers = NDArray[np.int64]
Silo = Callable[[int, nn.Module, Persons, SiloStep], Integers]
"""What silo k sends in a step, before it is masked: ``silo(k, model, persons, step)``."""

_QUIET = 1000  # numbers of the sum that no record moves
_DRAWS = 50  # steps whose draws are looked at
_FAINT = 0.02  # the noise in these


def _as_documented(number: int, model: nn.Module, persons: Persons, step: SiloStep) -> Integers:
    sums: Integers = silo_sum(model, persons, loss=mse_loss, step=step, ledger=None)
    return sums


def audit_silo_steps(
    step: SiloStep,
    *,
    steps: int = 10,
    canaries: int = 100,
    rows: int = 4,
    delta: float = 1e-5,
    confidence: float = 0.95,
    guesses: int | None = None,
    silo: Silo = _as_documented,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Audit what silos do in a step, as the server with its colluders sees it.

    The fewest honest silos play ``steps`` steps of one model. The first of them holds the canaries:
    persons of several rows, each of which moves one number of the sum by as much as it can. The
    attacker adds up the opened sums and guesses who was there. Two more tests look at what a ledger
    takes for granted: that the numbers which no record moves have the claimed noise, and, in steps
    with hardly any, that the persons are drawn by Poisson sampling.

    Parameters
    ----------
    step : SiloStep
        Its event is the claim, ``steps`` times.
    steps : int
    canaries : int
        m; they are in the data by fair coins.
    rows : int
        Of each canary.
    delta, confidence, guesses
        As in :func:`privacy.audit.audit`.
    silo : callable
        ``silo(k, model, persons, step)``: what the k-th of the honest silos sends, an int64 vector
        of as many numbers as the model has parameters. The model is linear, its loss the squared
        error. By default that is ``silo_sum``.
    randomness : Randomness, optional
        Of the coins.

    Returns
    -------
    AuditResult
        Of ε at person level. Its findings begin with "canary persons", "noise" or "cohorts".

    Raises
    ------
    TypeError, ValueError
        If an argument is of another kind or out of range, or a silo sends another vector.

    Notes
    -----
    **Guarantee.** If what the silos do is as private as ``step.event`` says, the audit contradicts
    it with probability at most ``1 - confidence``, which is divided evenly among the tests.

    **Assumptions.** Those of :func:`privacy.audit.p_value`; a lattice of more than a few hundred
    cells, on which discrete noise is as good as normal.

    **Not covered.** Secure aggregation, and a strategy around it. One attack that sees nothing
    proves nothing.
    """
    of_kind("step", step, SiloStep, "a SiloStep")
    steps = whole("steps", steps, least=1)
    canaries = whole("canaries", canaries, least=1)
    rows = whole("rows", rows, least=1)
    delta = number("delta", delta, above=0, below=1)
    source = SystemRandomness() if randomness is None else randomness
    model = nn.Linear(canaries + _QUIET, 1, bias=False)
    nn.init.zeros_(model.weight)
    height = step.clipping_norm
    inputs = one_hot_records(canaries, (canaries,)).repeat_interleave(rows, 0)
    inputs = torch.cat([inputs, torch.zeros(len(inputs), _QUIET)], 1)
    targets = torch.full((len(inputs), 1), -height)
    owners = np.repeat(np.arange(canaries), rows)

    def persons(included: NDArray[np.bool_]) -> Persons:
        chosen = np.flatnonzero(included[owners])
        picked: tuple[Tensor, Tensor] = (inputs[chosen], targets[chosen])
        return Persons(picked, owners[chosen])

    def sent(number: int, data: Persons, what: SiloStep) -> Integers:
        integers = silo(number, model, data, what)
        if integers.dtype != np.int64 or integers.shape != (canaries + _QUIET,):
            raise ValueError(
                f"silo {number} sent {integers.dtype} of shape {integers.shape}; it must be "
                f"{canaries + _QUIET} int64"
            )
        return integers

    included = source.bernoulli(0.5, canaries)
    data, nobody = persons(included), persons(np.zeros(canaries, dtype=np.bool_))
    opened = np.zeros((steps, canaries + _QUIET), dtype=np.int64)
    for total in opened:
        for number_of_silo in range(step.mechanism.honest):
            total += sent(number_of_silo, nobody if number_of_silo else data, step)
    cohorts = None
    if step.sampling_rate < 1:
        faint = replace(step, noise_multiplier=min(step.noise_multiplier, _FAINT))
        everybody = persons(np.ones(canaries, dtype=np.bool_))
        sizes = [
            int((sent(0, everybody, faint)[:canaries] > step.mechanism.radius / 2).sum())
            for _ in range(_DRAWS)
        ]
        cohorts = poisson_cohort_p_value(sizes, population=canaries, rate=step.sampling_rate)
    claim = Repeated(step.event(canaries + _QUIET), steps)
    variance = step.mechanism.honest * step.mechanism.share_variance(step.noise_multiplier)
    return judge(
        {"canary persons": opened[:, :canaries].sum(axis=0).astype(np.float64)},
        included,
        claimed_epsilon=epsilon([claim], delta=delta),
        curve=PrivacyCurve.of_events([claim], delta=delta),
        delta=delta,
        confidence=confidence,
        guesses=guesses,
        cohort_p_value=cohorts,
        noise_p_value=little_noise_p_value(opened[:, canaries:], sigma=math.sqrt(variance)),
    )
