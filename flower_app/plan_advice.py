"""Advice on a plan: which of its options to take, and what a ledger's remaining budget buys."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flower_app.errors import SettingError, counted
from flower_app.planning import Option
from flower_app.silo_planning import SiloOption
from privacy.accounting import (
    Adjacency,
    Budget,
    GaussianRelease,
    LedgerContents,
    calibrate_rounds,
    read_ledger,
)
from privacy.accounting.errors import LedgerError

_NEARLY_LEAST = 1.25  # an option whose noise is within this of the least costs fewer bytes


@dataclass(frozen=True)
class Advice:
    """The option to take, and whether a model can learn with it.

    Attributes
    ----------
    sampling_rate : float
        q or p: the smallest whose noise is nearly the least of those with most signal.
    rounds : int
        T.
    signal_to_noise : float
        How far the model's way over all rounds could exceed the noise's, if all updates agreed:
        √T / (noise·√d), with the noise in clipping norms on each of d parameters.
    """

    sampling_rate: float
    rounds: int
    signal_to_noise: float

    @property
    def learns(self) -> bool:
        """Whether clients could move the model further than the noise does."""
        return self.signal_to_noise > 1


def advice(rows: Sequence[Option | SiloOption], *, parameters: int) -> Advice | None:
    """The option to take; None where no noise fits the budget.

    Only noise is compared: how many rounds a model needs to arrive is for public data to say.
    """
    candidates = [
        (_signal(rounds, row.noise_share, parameters), row.sampling_rate, rounds)
        for row in rows
        if row.noise_share is not None
        for rounds in (row.rounds if isinstance(row, Option) else row.steps,)
    ]
    if not candidates:
        return None
    most = max(candidates)[0]
    signal, rate, rounds = min(
        (c for c in candidates if c[0] * _NEARLY_LEAST >= most), key=lambda c: (c[1], -c[0])
    )
    return Advice(rate, rounds, signal)


def as_document(taken: Advice | None) -> dict[str, Any] | None:
    """Advice for a JSON document."""
    return None if taken is None else asdict(taken) | {"learns": taken.learns}


def _signal(rounds: int, noise_share: float, parameters: int) -> float:
    return math.sqrt(rounds) / (noise_share * math.sqrt(parameters))


def read_spent(path: str, *, population: int | None) -> LedgerContents:
    """A ledger's contents, for a plan over so many clients.

    Raises
    ------
    SettingError
        If it cannot be read, is of another number of clients, or accounts replacing one.
    """
    try:
        contents = read_ledger(Path(path))
    except (OSError, LedgerError) as error:
        raise SettingError(f"--ledger {path} cannot be read: {error}") from error
    if contents.adjacency is not Adjacency.ADD_OR_REMOVE_ONE:
        raise SettingError(
            f"--ledger {path} is of cohorts of fixed size ({contents.adjacency.value}); plan works "
            "out Poisson sampling, under add-or-remove-one"
        )
    if population is not None and contents.clients not in (None, population):
        raise SettingError(
            f"--population {population} is wrong; --ledger {path} is of {contents.clients} clients"
        )
    return contents


def ledger_words(contents: LedgerContents, budget: Budget) -> str:
    """What a ledger has spent, what is left, and what that buys of rounds like its last."""
    spent = contents.epsilon(budget.delta)
    runs = len({record.run for record in contents.records})
    begun = f"The ledger has {counted(len(contents.records), 'release')} of {counted(runs, 'run')}"
    if not contents.records:
        return "The ledger is empty: the whole budget is left."
    if spent >= budget.epsilon:
        return (
            f"{begun}: ε = {spent:.4g} at δ = {budget.delta:g}, all of {budget.epsilon:g}. "
            "Nothing more may be released of these clients under this budget."
        )
    words = (
        f"{begun}: ε = {spent:.4g} at δ = {budget.delta:g}, of {budget.epsilon:g}. What follows is "
        "what fits into the rest (releases compose to less than the sum of their ε)."
    )
    last = contents.records[-1].event
    if not isinstance(last, GaussianRelease):
        return words
    try:
        more = calibrate_rounds(
            noise_multiplier=last.noise_multiplier,
            sampling=last.sampling,
            budget=budget,
            spent=contents.events,
        )
    except ValueError:
        return f"{words} Not one more round with the noise of its last fits."
    return f"{words} Of rounds like its last (z = {last.noise_multiplier:.3g}), {more:,} more fit."
