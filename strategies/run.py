"""A run: its rounds one after the other, until the last, or until the budget or clients end it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import INFO, WARNING

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from privacy import arguments
from privacy.accounting import Sampling
from privacy.mechanisms import Randomness
from strategies.checkpoint import RunState
from strategies.errors import NoUsableReplyError, PopulationExceededError
from strategies.lost_clients import NO_REPLY, AskedInVain, FaultLog, operator_log
from strategies.population import ClientRegistry, draw_cohort
from strategies.progress import RoundObserver
from strategies.replies import stream_replies
from strategies.result import PrivateResult

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]

_GIVE_ARRAYS = (
    "an ArrayRecord: ArrayRecord(model.state_dict()) of a PyTorch model, ArrayRecord([...]) of "
    "numpy arrays"
)


@dataclass(frozen=True)
class StartArguments:
    """The arguments of ``start``, which are those of Flower's ``Strategy.start``, checked."""

    grid: Grid
    initial_arrays: ArrayRecord
    num_rounds: int
    timeout: float
    train_config: ConfigRecord | None
    evaluate_config: ConfigRecord | None
    evaluate_fn: EvaluateFn | None

    def __post_init__(self) -> None:
        arguments.has("grid", self.grid, ("get_nodes", "push_messages"), "the ServerApp's Grid")
        arguments.of_kind("initial_arrays", self.initial_arrays, ArrayRecord, _GIVE_ARRAYS)
        arguments.convert(self, "num_rounds", arguments.whole, least=1)
        arguments.convert(self, "timeout", arguments.seconds)
        for name in ("train_config", "evaluate_config"):
            arguments.of_kind(
                name, getattr(self, name), (ConfigRecord, type(None)), "a ConfigRecord"
            )
        if self.evaluate_fn is not None:
            takes = "a function of the round's number and its ArrayRecord"
            arguments.called_with("evaluate_fn", self.evaluate_fn, 2, takes)


class Run:
    """One run of a strategy: its state, who is connected, and why it ends.

    Parameters
    ----------
    state : RunState
    registry : ClientRegistry
    randomness : Randomness
        Draws the cohorts.
    min_available_nodes : int
        How many nodes must be connected before a round begins.
    evaluates : bool
        Whether clients are asked to evaluate.
    evaluate_every : int
        The model is evaluated, and a line logged, after every so many rounds.
    resumed_model : bool
        Whether it is resumed from a round that was paid and opened.
    delta : float
        δ at which ε is logged.
    observer : RoundObserver, optional
        Is told of each round that was paid.
    """

    def __init__(
        self,
        state: RunState,
        registry: ClientRegistry,
        *,
        randomness: Randomness,
        min_available_nodes: int,
        evaluates: bool,
        evaluate_every: int,
        resumed_model: bool,
        delta: float,
        observer: RoundObserver | None = None,
    ) -> None:
        self.state = state
        self.evaluates, self._evaluate_every = evaluates, evaluate_every
        self.faults = FaultLog()
        self.train_in_vain = AskedInVain(registry.size, any_used=resumed_model)
        self.evaluate_in_vain = AskedInVain(registry.size, any_used=resumed_model)
        self._registry, self._min_available_nodes = registry, min_available_nodes
        self._randomness, self._delta = randomness, delta
        self._observer = observer
        self.last = 0  # the number of the last round; 0 where the rounds are played by others

    @property
    def noise_multiplier(self) -> float:
        """Z of a round; a ``ValueError`` before ``start`` has calibrated it."""
        if self.state.noise_multiplier is None:
            raise ValueError("noise_multiplier is calibrated in start(); it is not known yet")
        return self.state.noise_multiplier

    def has_ended(self) -> bool:
        """Whether it has stopped before its last round."""
        return self.state.stopped is not None

    def stop(self, why: str) -> None:
        """End it; the result holds the reason."""
        self.state.stopped = why
        log(WARNING, "Stopping: %s.", why)

    def stop_in_vain(self, number: int, why: str) -> None:
        """End it with a round that is paid, and from which nothing was learned."""
        self.stop(self._why_in_vain(number, why))

    def stop_unpaid(self, number: int) -> None:
        """End it before a round in which no reply was usable is paid.

        A ``NoUsableReplyError`` where no reply was ever usable in this run.
        """
        why = f"{self._why_in_vain(number, NO_REPLY)}; it was not paid for"
        if not self.train_in_vain.any_used:
            paid = ""
            if by_round := self.state.epsilon_by_round:
                paid = f", but the rounds before it were: ε is {by_round[max(by_round)]:.6g}"
            raise NoUsableReplyError(
                f"{why}{paid}. Nothing was learned yet: {self.faults.remedy()}, and begin again "
                "with the budget that is left"
            )
        self.stop(why)

    def stop_evaluating(self, number: int) -> None:
        """Ask nobody to evaluate any more."""
        self.evaluates = False
        self.faults.once(
            f"round {number}, evaluate: no reply was usable "
            f"({self.faults.reasons()}). Nobody is asked to evaluate for the rest of the run, and "
            "nothing is paid for it."
        )

    def note_unopened(self, number: int, words: str) -> None:
        """Count a round that opened nothing, and say ``words`` once."""
        self.state.aborted.append(number)
        self.faults.once(words)

    def _why_in_vain(self, number: int, why: str) -> str:
        return f"round {number}: {why} ({self.faults.reasons()})"

    def locate(self, grid: Grid) -> tuple[dict[int, int], int]:
        """As :meth:`ClientRegistry.locate`. A client too many stops the run once it has begun."""
        try:
            return self._registry.locate(grid.get_nodes())
        except PopulationExceededError as error:
            if not self.state.epsilon_by_round:
                raise
            self.stop(str(error))
            return {}, 0

    def draw(
        self,
        name: str,
        sampling: Sampling,
        grid: Grid,
        *,
        may_take_part: Callable[[str], bool] | None = None,
    ) -> tuple[list[int], int]:
        """Draw over the whole population, then look who is connected; never draw again.

        Returns those drawn who are connected, and how many were drawn. Where it is given,
        ``may_take_part`` says of each identity that was drawn whether its turn has come.
        """
        size = self._registry.size
        drawn = draw_cohort(sampling, size, randomness=self._randomness).tolist()
        node_of, ignored = self.locate(grid)
        self.faults.connected(node_of)
        if may_take_part is not None:
            identities = [(place, self._registry.identity(place)) for place in drawn]
            drawn = [place for place, name in identities if name and may_take_part(name)]
        nodes = [node_of[place] for place in drawn if place in node_of]
        operator_log.info(
            "%s: drew %d of %d, %d connected, asking %d; %d unknown nodes ignored",
            name,
            len(drawn),
            size,
            len(node_of),
            len(nodes),
            ignored,
        )
        return nodes, len(drawn)

    def play(
        self,
        strategy: Strategy,
        given: StartArguments,
        arrays: ArrayRecord,
        first: int,
        keep: Callable[[int, ArrayRecord], None],
    ) -> PrivateResult:
        """Play the rounds from ``first`` on through Flower's hooks, until the run has ended.

        ``arrays`` is the model before round ``first``; ``keep`` writes each round's checkpoint.
        """
        grid, timeout, last = given.grid, given.timeout, given.num_rounds
        self.last = last
        train_config = given.train_config or ConfigRecord()
        evaluate_config = given.evaluate_config or ConfigRecord()
        result = PrivateResult(arrays=self.state.latest_average(arrays))
        if first == 1:
            keep(0, arrays)
            _evaluate_here(given.evaluate_fn, 0, arrays, result)
        for number in range(first, last + 1):
            if not self.wait_for_nodes(grid):
                break
            if number == first:
                self._warn_of_absent_clients(grid)
            began = time.perf_counter()
            messages = strategy.configure_train(number, arrays, train_config, grid)
            if self.has_ended():
                break
            replies = stream_replies(grid, messages, timeout=timeout)
            stepped, metrics = strategy.aggregate_train(number, replies)
            if self.has_ended():
                self._observe(number, arrays, began, train=metrics)
                break
            if stepped is None:  # only a round that was not configured has no model
                raise RuntimeError(f"round {number} was not configured")
            arrays = stepped
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
            result.arrays = self.state.averaged(arrays)
            keep(number, arrays)
            if number % self._evaluate_every:
                self._observe(number, arrays, began, train=metrics)
                continue

            messages = strategy.configure_evaluate(number, result.arrays, evaluate_config, grid)
            replies = stream_replies(grid, messages, timeout=timeout)
            evaluated = strategy.aggregate_evaluate(number, replies)
            if evaluated is not None:
                result.evaluate_metrics_clientapp[number] = evaluated
            on_server = _evaluate_here(given.evaluate_fn, number, result.arrays, result)
            if given.evaluate_fn is None or on_server is not None:
                records = [r for r in (metrics, evaluated, on_server) if r is not None]
                epsilon = self.state.epsilon_by_round.get(number)
                shown = "".join(f", {dict(record)}" for record in records)
                spent = "not paid"
                if epsilon is not None:
                    spent = f"ε = {epsilon:.4g} at δ = {self._delta:g}"
                log(INFO, "round %d/%d: %s%s", number, last, spent, shown)
            self._observe(
                number, arrays, began, train=metrics, evaluate=evaluated, server=on_server
            )
        return result

    def _observe(
        self, number: int, arrays: ArrayRecord, began: float, **records: MetricRecord | None
    ) -> None:
        """Tell the observer of a round, if it was paid."""
        state = self.state
        if self._observer is not None and number in state.epsilon_by_round:
            self._observer(
                number,
                self.last,
                arrays,
                epsilon=state.epsilon_by_round[number],
                noise_multiplier=self.noise_multiplier,
                clipping_norm=state.clipping.norm,
                opened=number not in state.aborted,
                seconds=time.perf_counter() - began,
                **records,
            )

    def wait_for_nodes(self, grid: Grid) -> bool:
        """Wait for ``min_available_nodes``; False if the run has ended."""
        waiting = False
        while (connected := len(self.locate(grid)[0])) < self._min_available_nodes:
            if self.has_ended():
                break
            if not waiting:
                log(
                    INFO,
                    "Waiting until %d nodes of the population are connected (min_available_nodes). "
                    "That a round waits shows how many are connected, which ε does not count.",
                    self._min_available_nodes,
                )
                waiting = True
            operator_log.info("%d nodes of the population are connected", connected)
            time.sleep(1)
        return not self.has_ended()

    def _warn_of_absent_clients(self, grid: Grid) -> None:
        """Warn, without a number, where most of the population is not connected."""
        connected, size = len(self.locate(grid)[0]), self._registry.size
        operator_log.info("%d of %d clients are connected", connected, size)
        if 2 * connected < size and not self.has_ended():
            log(
                WARNING,
                "Less than half of the population of %d is connected. A round costs as much "
                "privacy as if all were, and those who are absent teach nothing: the noise is "
                "sized for %d. Give the number of all clients there are, and have rounds wait "
                "for them (min_available_nodes). This is said once, and ε does not count it.",
                size,
                size,
            )


def _evaluate_here(
    evaluate_fn: EvaluateFn | None, number: int, arrays: ArrayRecord, result: PrivateResult
) -> MetricRecord | None:
    metrics = None if evaluate_fn is None else evaluate_fn(number, arrays)
    if metrics is not None:
        result.evaluate_metrics_serverapp[number] = metrics
    return metrics
