"""A whole run: the rounds one after the other, accounted, kept, and ended by the budget."""

import time
from abc import abstractmethod
from collections.abc import Callable
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from privacy import arguments
from privacy.accounting import Budget
from strategies.checkpoint import Checkpoint, Checkpointing, RunState
from strategies.lost_clients import operator_log
from strategies.population import ClientRegistry
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import stream_replies
from strategies.result import PrivacyReport, PrivateResult

_GIVE_ARRAYS = (
    "an ArrayRecord: ArrayRecord(model.state_dict()) of a PyTorch model, ArrayRecord([...]) of "
    "numpy arrays"
)

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class AccountedRun(Strategy):
    """A strategy whose ``start`` calibrates, accounts, keeps checkpoints and stops in time.

    What a round does is the subclass's: Flower's hooks, ``_calibrate``, ``_check_first_round``,
    ``_settings``, ``_fresh_state``, ``_connected`` and ``report``.
    """

    _state: RunState
    _register: ClientRegistry
    _spending: PrivacyBudget
    _resumed: Checkpoint | None
    _started = False
    budget: Budget
    checkpointing: Checkpointing
    min_available_nodes: int

    @abstractmethod
    def _calibrate(self, initial: ArrayRecord, rounds: int) -> None:
        """Find the noise with which so many rounds fit the budget, or refuse the run."""

    @abstractmethod
    def _check_first_round(self, arrays: ArrayRecord, rounds: int) -> None:
        """Refuse a run that can play no round, and warn where it cannot play all of them."""

    @abstractmethod
    def _settings(self) -> str:
        """The settings that a resumed run must share."""

    @abstractmethod
    def _fresh_state(self) -> RunState:
        """The state of a new run."""

    @abstractmethod
    def _connected(self, grid: Grid) -> int:
        """How many nodes of the population are connected; stops the run if too many are."""

    def _ended(self) -> bool:
        return self._state.stopped is not None

    @abstractmethod
    def _say_noise(self, arrays: ArrayRecord, rounds: int) -> None:
        """Log how large noise is beside the updates, and warn where it drowns them."""

    @abstractmethod
    def _begin_watch(self) -> None:
        """Forget what was seen of another run's clients."""

    @abstractmethod
    def report(self) -> PrivacyReport:
        """The guarantee of this run as it stands."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> PrivateResult:
        """Run all rounds, as Flower's ``Strategy.start`` does, and account for them.

        Beyond the stock loop it calibrates the noise, handles replies as they arrive, keeps a
        checkpoint, resumes from one, and ends early when the budget is spent or no reply can be
        used any more. It logs one line a
        round, unless ``evaluate_fn`` returns None and so tells its user itself.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As in Flower.

        Returns
        -------
        PrivateResult
            Flower's result, with ``privacy`` beside it. Holds the last model also when the run
            ended early; ``privacy.stopped`` then says why.

        Raises
        ------
        TypeError
            If an argument is of the wrong kind; nothing was spent.
        ValueError
            If the checkpoint to resume from is of another run.
        BudgetError
            If the budget has no room for the first round with the noise multiplier given, or for
            ``num_rounds`` rounds with any noise; nothing was spent. A ``SpentBudgetError`` where
            that is what earlier runs have left of it, or where it buys little but noise.
        NoUsableReplyError
            If clients were asked and no reply could ever be used. Under secure aggregation, where
            the round in which that shows is paid, ``privacy.stopped`` says so instead.
        """
        arguments.has("grid", grid, ("get_nodes", "push_messages"), "the Grid of the ServerApp")
        arguments.of_kind("initial_arrays", initial_arrays, (ArrayRecord,), _GIVE_ARRAYS)
        num_rounds = arguments.whole("num_rounds", num_rounds, least=1)
        timeout = arguments.number("timeout", timeout, above=0)
        for name, config in (("train_config", train_config), ("evaluate_config", evaluate_config)):
            arguments.of_kind(name, config, (ConfigRecord, type(None)), "a ConfigRecord")
        if evaluate_fn is not None:
            takes = "a function of the round's number and its ArrayRecord"
            arguments.called_with("evaluate_fn", evaluate_fn, 2, takes)
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        if self._started:  # the next run is a new one, on the same ledger
            self._resumed = None
            self._state = self._fresh_state()
        self._started = True
        self._begin_watch()
        with self._spending.reopened():
            return self._run(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )

    def _run(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int,
        timeout: float,
        train_config: ConfigRecord,
        evaluate_config: ConfigRecord,
        evaluate_fn: EvaluateFn | None,
    ) -> PrivateResult:
        self._connected(grid)  # refuses a population that has no place for all
        arrays, first = self._begin(initial_arrays, num_rounds)
        self._check_first_round(arrays, num_rounds - first + 1)
        log(INFO, "Starting %s, rounds %d to %d:", type(self).__name__, first, num_rounds)
        self.summary()
        self._say_noise(arrays, num_rounds)
        result = PrivateResult(arrays=self._state.latest_average(arrays))
        if first == 1:
            self._keep(0, arrays)
            if evaluate_fn:
                _evaluate_here(evaluate_fn, 0, arrays, result)

        rounds = range(first, num_rounds + 1) if not self._ended() else []
        for number in rounds:
            self._wait_for_nodes(grid)
            if number == first:
                self._warn_of_absent_clients(grid)
            messages = self.configure_train(number, arrays, train_config, grid)
            if self._ended():
                break
            replies = stream_replies(grid, messages, timeout=timeout)
            stepped, metrics = self.aggregate_train(number, replies)
            if self._ended():
                break
            if stepped is None:  # only a round that was not configured has no model
                raise RuntimeError(f"round {number} was not configured")
            arrays = stepped
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
            result.arrays = self._state.averaged(arrays)
            self._keep(number, arrays)

            evaluation = self.configure_evaluate(number, result.arrays, evaluate_config, grid)
            evaluated = self.aggregate_evaluate(
                number, stream_replies(grid, evaluation, timeout=timeout)
            )
            if evaluated is not None:
                result.evaluate_metrics_clientapp[number] = evaluated
            on_server = None
            if evaluate_fn:
                on_server = _evaluate_here(evaluate_fn, number, result.arrays, result)
            if evaluate_fn is None or on_server is not None:
                told = [record for record in (metrics, evaluated, on_server) if record is not None]
                log(
                    INFO,
                    "round %d/%d: ε = %.4g at δ = %g%s",
                    number,
                    num_rounds,
                    self._state.epsilon_by_round[number],
                    self.budget.delta,
                    "".join(f", {dict(record)}" for record in told),
                )

        result.privacy = self.report()
        ended = "Ended early" if self._ended() else "Finished"
        log(INFO, "%s: ε = %.4g at δ = %g", ended, result.privacy.epsilon, self.budget.delta)
        return result

    def _warn_of_absent_clients(self, grid: Grid) -> None:
        """Warn, without their number, where most of the population is not there to be drawn."""
        connected = self._connected(grid)
        operator_log.info("%d of %d clients are connected", connected, self._register.size)
        if 2 * connected < self._register.size and not self._ended():
            log(
                WARNING,
                "Less than half of the population of %d is connected. A round costs as much "
                "privacy as if all were, and those who are absent teach nothing: the noise is "
                "sized for %d. Give the number of all clients there are, and have rounds wait "
                "for them (min_available_nodes). This is said once, and ε does not count it.",
                self._register.size,
                self._register.size,
            )

    def _begin(self, initial: ArrayRecord, num_rounds: int) -> tuple[ArrayRecord, int]:
        """The model and the number of the first round, from the start or from a checkpoint."""
        if self._resumed is None:
            self._calibrate(initial, num_rounds)
            return initial, 1
        return self._state.restore(self._resumed, initial), self._resumed.round + 1

    def _keep(self, number: int, arrays: ArrayRecord) -> None:
        path = self.checkpointing.path
        if path is None:
            return
        kept = self._state.checkpoint(
            number,
            arrays,
            position=self._spending.ledger.position,
            settings=self._settings(),
        )
        try:
            kept.save(Path(path))
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror}: the checkpoint {path} cannot be written; what is "
                f"there is of an earlier round. Round {number} stands in the ledger",
            ) from error

    def _wait_for_nodes(self, grid: Grid) -> None:
        """Wait until enough of the population is there for a round to be worth its price."""
        waiting = False
        while (connected := self._connected(grid)) < self.min_available_nodes and not self._ended():
            if not waiting:
                log(
                    INFO,
                    "Waiting until %d nodes of the population are connected (min_available_nodes). "
                    "That a round waits shows how many are there, which ε does not count.",
                    self.min_available_nodes,
                )
                waiting = True
            operator_log.info("%d nodes of the population are connected", connected)
            time.sleep(1)


def _evaluate_here(
    evaluate_fn: EvaluateFn, number: int, arrays: ArrayRecord, result: PrivateResult
) -> MetricRecord | None:
    metrics = evaluate_fn(number, arrays)
    if metrics is not None:
        result.evaluate_metrics_serverapp[number] = metrics
    return metrics
