"""The cost of a round, and whether a run's rounds fit the budget, before anyone is asked."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from privacy.accounting import Event, large_delta
from strategies.errors import BudgetError, SpentBudgetError
from strategies.privacy_budget import PrivacyBudget, repeated
from strategies.run import Run
from strategies.train_round import Rounds, Setup

_OWN_LEDGER = "for other clients, give a ledger of their own"
_WARNED, _REFUSED = 2, 10  # times the noise that the whole budget would have bought


@dataclass(frozen=True)
class EvaluationCost:
    """The cost of a run's evaluations.

    Attributes
    ----------
    events : tuple of Event
        Paid for each.
    name : str
        The strategy's argument that asks for them.
    noise_multiplier : float
        Their noise.
    every : int
        There is one after every so many rounds.
    """

    events: tuple[Event, ...] = ()
    name: str = "evaluation"
    noise_multiplier: float = 0.0
    every: int = 1


class RoundCost:
    """The events of rounds, by their noise multiplier z, for a model of so many parameters."""

    def __init__(
        self,
        setup: Setup,
        rounds: Rounds,
        run: Run,
        parameters: int,
        evaluation: EvaluationCost,
    ) -> None:
        self.setup, self.rounds, self.evaluation = setup, rounds, evaluation
        self._clipping, self._parameters = run.state.clipping, parameters
        self._presence = [rounds.presence] if rounds.presence.delta else []

    def release(self, z: float) -> Event:
        """The event of a round's model."""
        return self.rounds.account(z, self._parameters)

    def training(self, z: float) -> list[Event]:
        """Paid for a round's training, whether it opens or not."""
        return [self.rounds.due(event) for event in (self.release(z), *self._presence)]

    def round(self, z: float, number: int) -> list[Event]:
        """All that is paid for the round of this number."""
        evaluated = number % self.evaluation.every == 0
        return [*self.training(z), *(self.evaluation.events if evaluated else ())]

    def evaluations(self, rounds: int) -> Counter[Event]:
        """Paid for the evaluations of so many rounds."""
        return repeated(self.evaluation.events, rounds // self.evaluation.every)

    def beside_models(self, rounds: int) -> Counter[Event]:
        """All that is paid for so many rounds but their models."""
        return self.evaluations(rounds) + self._in_turn(self._presence, rounds)

    def all(self, z: float, rounds: int) -> Counter[Event]:
        """All that is paid for so many rounds."""
        return self._in_turn([self.release(z)], rounds) + self.beside_models(rounds)

    def participations(self, rounds: int) -> int:
        """The most that one client pays for, of so many rounds."""
        return -(-rounds // self.rounds.turns)

    def _in_turn(self, events: Sequence[Event], rounds: int) -> Counter[Event]:
        """Events of so many rounds from this one on, as they are paid; counted."""
        turns = self.rounds.turns
        counts: Counter[Event] = Counter()
        for ahead in range(min(turns, rounds)):
            for event in events:
                counts[self.rounds.due(event, ahead)] += -(-(rounds - ahead) // turns)
        return counts

    def noise_length(self, z: float) -> float:
        """How long the noise on its average is, in clipping norms: z·√d/(q·W)."""
        update, _ = self.setup.noise_shares(self._clipping, z)
        return update * math.sqrt(self._parameters) / self.setup.denominator


def settled_noise(
    budget: PrivacyBudget, cost: RoundCost, z: float | None, rounds: int, *, played: int
) -> tuple[float, list[str]]:
    """The noise multiplier of a run, and warnings.

    Parameters
    ----------
    budget : PrivacyBudget
    cost : RoundCost
    z : float or None
        As given; None to have it calibrated.
    rounds : int
        Of the whole run.
    played : int
        How many of them a resumed run has played: it has a model to keep, and is not refused.

    Raises
    ------
    BudgetError
        If not one round fits the budget, or no noise is enough for all; ``SpentBudgetError`` where
        earlier runs are the reason.
    """
    if not played:
        due = rounds if z is None else 1  # with noise of its own a run may end early
        cost.rounds.check_presence(due, budget)
    warnings: list[str] = []
    if z is None:
        z, warnings = _calibrated(budget, cost, rounds)
    warnings += _check_rounds(budget, cost, z, rounds - played, has_model=played > 0)
    setup = cost.setup
    if too_large := large_delta(budget.budget.delta, setup.population, unit=setup.unit):
        warnings.append(f"{too_large}.")
    return z, warnings + _drowning(cost, z, rounds)


def _calibrated(budget: PrivacyBudget, cost: RoundCost, rounds: int) -> tuple[float, list[str]]:
    """The least z with which so many rounds fit; refused if it is ten times a first run's."""
    besides = cost.beside_models(rounds)
    z = _calibrate(budget, cost, rounds)
    if z is None:
        taken, remedies = _beside_training(budget, cost, rounds)
        if math.isfinite(budget.epsilon_with(besides)):
            remedies.append("raise budget.epsilon")
        raise _refusal(budget)(
            f"no noise is enough for {_rounds(rounds)} within {budget}{_of_which(taken)}. "
            f"The run was not begun: {'; or '.join(remedies)}"
        )
    if not budget.paid.records:
        return z, []

    def bought_alone(times: float) -> bool:
        return budget.affordable_alone(cost.all(z / times, rounds))

    left = (
        f"{_paid(budget)} of {budget}; the rest allows {_rounds(rounds)} only at "
        f"noise_multiplier = {z:.3g}, on each average {cost.noise_length(z):.3g} times the "
        "clipping norm"
    )
    if bought_alone(_REFUSED):
        raise SpentBudgetError(
            f"{left}, more than {_REFUSED} times the noise of a first run. Raise budget.epsilon; "
            f"or, {_OWN_LEDGER}; or set noise_multiplier yourself, and the run ends when the "
            "budget does"
        )
    if bought_alone(_WARNED):
        return z, [f"{left}, more than {_WARNED} times the noise of a first run."]
    return z, []


def _calibrate(budget: PrivacyBudget, cost: RoundCost, rounds: int) -> float | None:
    return budget.calibrate(
        cost.setup.cohort_sampling,
        rounds=cost.participations(rounds),
        release=cost.release,
        besides=cost.beside_models(rounds),
    )


def _check_rounds(
    budget: PrivacyBudget, cost: RoundCost, z: float, rounds: int, *, has_model: bool
) -> list[str]:
    """Refuse a run that can play no round; a warning where it cannot play all of them."""
    if not budget.limited or rounds < 1:
        return []
    fitting = budget.rounds_affordable(partial(cost.all, z), rounds)
    if fitting == rounds:
        return []
    given = f"noise_multiplier is {z:.6g}, with which"
    if fitting or has_model:
        return [
            f"{given} only {fitting} of {rounds} rounds fit what is left of {budget}: the run "
            "ends after them."
        ]
    needed = budget.epsilon_with(cost.all(z, 1))
    taken, others = _beside_training(budget, cost, 1)
    remedies = _noise_needed(budget, cost, rounds) or others
    if math.isfinite(needed):
        remedies.append(f"raise budget.epsilon to {_rounded_up(needed)} or more")
    if budget.paid.records and _OWN_LEDGER not in remedies:
        remedies.append(_OWN_LEDGER)
    raise _refusal(budget)(
        f"{given} not one round fits {budget}{_of_which(taken)}: the first would bring ε to "
        f"{needed:.6g}. The run was not begun: "
        f"{'; or '.join(remedies) or 'neither more noise nor a larger ε helps at this δ'}"
    )


def _drowning(cost: RoundCost, z: float, rounds: int) -> list[str]:
    """A warning where noise carries the model further than all units together can.

    Over T rounds independent noise adds up to √T times that of one, the updates to T times S. Of
    correlated noise less is left.
    """
    over_all = cost.noise_length(z) / math.sqrt(rounds)
    if over_all > 1:  # noise_left is at most 1
        over_all *= cost.rounds.noise_left(rounds)
    if over_all <= 1:
        return []
    unit = cost.setup.unit
    return [
        f"The noise drowns what the {unit}s teach: even over the whole run it carries the model "
        f"about {over_all:.2g} times as far as they can. More {unit}s or a higher sampling rate, "
        "a smaller model, a larger ε or more rounds would help."
    ]


def _refusal(budget: PrivacyBudget) -> type[BudgetError]:
    return SpentBudgetError if budget.paid.records else BudgetError


def _beside_training(
    budget: PrivacyBudget, cost: RoundCost, rounds: int
) -> tuple[list[str], list[str]]:
    """Costs beside the models of so many rounds, and remedies."""
    taken, remedies = [], []
    if evaluated := cost.evaluations(rounds):
        name, noise = cost.evaluation.name, cost.evaluation.noise_multiplier
        taken.append(
            f"{name} (noise_multiplier {noise:g}, in {_rounds(rounds)}) takes "
            f"ε = {budget.cost(evaluated):.6g}"
        )
        remedies.append(f"give {name} a larger noise_multiplier")
    if budget.reserved:
        reserved = budget.cost(budget.reserved)
        taken.append(f"what is reserved for after training takes ε = {reserved:.6g}")
        remedies.append("reserve less")
    if budget.paid.records:
        taken.append(_paid(budget))
        remedies.append(_OWN_LEDGER)
    return taken, remedies


def _noise_needed(budget: PrivacyBudget, cost: RoundCost, rounds: int) -> list[str]:
    """The z with which all rounds would fit what is left, and that with which one would."""
    remedies = []
    for number, words in ({rounds: f"all {rounds} rounds"} | {1: "one round"}).items():
        z = _calibrate(budget, cost, number)
        if z is not None:
            remedies.append(f"give a noise_multiplier of {_rounded_up(z)} or more for {words}")
    return remedies


def _paid(budget: PrivacyBudget) -> str:
    return f"earlier runs on the ledger {budget.path} have paid ε = {budget.epsilon():.6g}"


def _of_which(taken: list[str]) -> str:
    return f", of which {'; '.join(taken)}" if taken else ""


def _rounds(number: int) -> str:
    return f"{number} round" + "s" * (number != 1)


def _rounded_up(value: float) -> str:
    """A bound that still holds as it is printed."""
    return f"{math.ceil(value * 1e4) / 1e4:.4f}"
