"""What strategies that pay for each round share: the round's order, the run, its cost."""

import copy
import os
from collections.abc import Iterable, Sequence
from logging import INFO, WARNING
from pathlib import Path
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, PrivacySpent
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from privacy import arguments
from privacy.accounting import Accountant, Adjacency, Budget, Event, Position
from strategies.checkpoint import Checkpoint, Checkpointing, NoiseRows, RunState, lasting_path
from strategies.clipping import Clipping
from strategies.model_schema import ModelSchema
from strategies.population import ClientRegistry
from strategies.privacy_budget import PrivacyBudget
from strategies.progress import OnRound, RoundObserver
from strategies.replies import RecordKeys
from strategies.result import PrivacyReport, PrivateResult
from strategies.round_cost import EvaluationCost, RoundCost, settled_noise
from strategies.run import EvaluateFn, Run, StartArguments
from strategies.server_optimizers import ServerOptimizer
from strategies.train_round import Round, Rounds, Setup


class AccountedStrategy(Strategy):
    """A strategy each of whose rounds is paid in a ledger before its noisy sum is used.

    A strategy of this kind has a setup (``_setup``), and says who is asked (``_draw``), in what
    rounds (``_make_rounds``), what an evaluation costs (``_evaluation_cost``), and describes
    itself.

    Parameters
    ----------
    registry : ClientRegistry
        The nodes that may be asked.
    ledger, budget, noise_multiplier, checkpointing, record_keys, reserve, on_round
        As given to the strategy, and checked.
    unit_name : str
        The name in the ledger of those whose privacy it accounts.
    guarantee : (Adjacency, Accountant)
    clipping, optimizer
        As a run begins with them.
    min_available_nodes : int
    evaluates : bool
        Whether nodes are asked to evaluate.
    evaluate_every : int
        After every so many rounds the model is evaluated.
    """

    _unopened_words: ClassVar[str]
    """Said once, where a round opened nothing."""

    def __init__(
        self,
        *,
        registry: ClientRegistry,
        ledger: str | os.PathLike[str],
        budget: Budget,
        unit_name: str,
        guarantee: tuple[Adjacency, Accountant],
        clipping: Clipping,
        optimizer: ServerOptimizer,
        noise_multiplier: float | None,
        checkpointing: Checkpointing | None,
        min_available_nodes: int,
        evaluates: bool,
        evaluate_every: int = 1,
        reserve: Sequence[Event] = (),
        on_round: OnRound | None = None,
    ) -> None:
        path = lasting_path("ledger", ledger)
        self._registry = registry
        self.adjacency, self.accountant = guarantee
        self.record_keys: RecordKeys = self._setup.record_keys
        self.checkpointing = Checkpointing() if checkpointing is None else checkpointing
        # Python's own numbers, which any process writes alike into a checkpoint.
        self.budget = Budget(float(budget.epsilon), float(budget.delta))
        self._given_noise = noise_multiplier
        # Copies: the caller's may change before the next run.
        self._initial_clipping = copy.deepcopy(clipping)
        self._initial_optimizer = copy.deepcopy(optimizer)
        self.min_available_nodes = min_available_nodes
        self._evaluates, self._evaluate_every = evaluates, evaluate_every
        self._on_round = on_round
        self._started = False
        self._resumed: Checkpoint | None = None
        self._privacy_budget = PrivacyBudget(
            path,
            population=unit_name,
            adjacency=self.adjacency,
            accountant=self.accountant,
            budget=self.budget,
            private=self._setup.randomness.private,
            at_least=self._read_checkpoint,
            reserved=reserve,
        )
        self._round: Round | None = None
        self._begin()

    def _read_checkpoint(self) -> Position | None:
        """Read the checkpoint to go on from; its position in the ledger.

        Only while the ledger is held: the run that held it before may have gone on until then.
        """
        checkpointing, settings = self.checkpointing, self._settings()
        load = checkpointing.load_again if self._started else checkpointing.load
        self._resumed = load(settings)
        return None if self._resumed is None else self._resumed.position

    def _begin(self) -> None:
        """A new run, on the same ledger."""
        state = RunState.fresh(self._initial_clipping, self._initial_optimizer, self._given_noise)
        observer = None
        if self._on_round is not None:
            observer = RoundObserver(
                self._on_round, budget=self.budget, expected_cohort=self._setup.expected_cohort
            )
        self._run = Run(
            state,
            self._registry,
            randomness=self._setup.randomness,
            min_available_nodes=self.min_available_nodes,
            evaluates=self._evaluates,
            evaluate_every=self._evaluate_every,
            resumed_model=self._resumed is not None and self._resumed.has_learned,
            delta=self.budget.delta,
            observer=observer,
        )
        self._rounds = self._make_rounds()

    # What a strategy of this kind decides ------------------------------------------------------

    def _settings(self) -> str:
        """The settings that a resumed run must share."""
        raise NotImplementedError

    @property
    def _setup(self) -> Setup:
        """What all rounds share."""
        raise NotImplementedError

    def _make_rounds(self) -> Rounds:
        """The rounds of a new run."""
        raise NotImplementedError

    def _draw(self, server_round: int, grid: Grid) -> tuple[list[int], int]:
        """The nodes to ask, and how many were drawn, connected or not."""
        raise NotImplementedError

    def _evaluation_cost(self) -> EvaluationCost:
        """The cost of the run's evaluations."""
        raise NotImplementedError

    def _noise_words(self, length: float) -> str:
        """The line about a round's noise, ``length`` times the clipping norm."""
        raise NotImplementedError

    def report(self) -> PrivacyReport:
        """The guarantee as it stands, with all that the ledger holds."""
        raise NotImplementedError

    # Of a strategy whose noise has a past --------------------------------------------------------

    def _settled(self, planned: int, parameters: int) -> None:
        """The noise multiplier is known, and the state is that of the round before the first.

        ``planned`` rounds are to come, for a model of so many ``parameters``.
        """

    def _noise_rows(self) -> NoiseRows | None:
        """After a round: the correlated noise that its model holds."""
        return None

    def _finished(self) -> None:
        """The run has played its last round, and its checkpoint is written."""

    def _ended_early(self) -> None:
        """The run may be resumed: it has not played the last round that was planned for it."""

    # The run's state ---------------------------------------------------------------------------

    @property
    def optimizer(self) -> ServerOptimizer:
        """The server's optimizer, with its moments."""
        return self._run.state.optimizer

    @property
    def epsilon_by_round(self) -> dict[int, float]:
        """ε after each round that this run paid."""
        return self._run.state.epsilon_by_round

    @property
    def noise_multiplier(self) -> float:
        """Z of a round; a ``ValueError`` before ``start`` has calibrated it."""
        return self._run.noise_multiplier

    # A round: draw, send, bound and sum, pay, add noise, step -----------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw who is asked and make the messages; none once the budget is spent."""
        self._round = None
        schema, run = ModelSchema(arrays), self._run
        cost = self._cost(schema.size).round(self.noise_multiplier, server_round)
        if not run.has_ended() and not self._privacy_budget.affordable(cost):
            run.stop(f"round {server_round} would pass {self._privacy_budget}")
        if run.has_ended():
            return []
        nodes, drawn = self._draw(server_round, grid)
        if run.has_ended():  # the draw found a client too many
            return []
        self._round = self._rounds.open(server_round, schema, run, grid)
        return self._round.begin(nodes, self._content(server_round, arrays, config), drawn=drawn)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Bound, sum, pay, add noise, step.

        The event is durable in the ledger before the noisy sum exists. An empty cohort is a
        round like any other. A round without usable replies ends the run before
        it is paid, with a ``NoUsableReplyError`` if no reply was ever usable; under secure
        aggregation, where that shows only after clients were asked to train, after.
        """
        current, run = self._round, self._run
        if current is None or current.number != server_round:
            return None, None
        self._round, schema = None, current.schema
        if not current.gather(replies):
            run.stop_unpaid(server_round)
            return None, None
        if current.is_paid:
            due = self._cost(schema.size).training(self.noise_multiplier)
            self._privacy_budget.pay(due, run=run.state.name, number=server_round)
            self.epsilon_by_round[server_round] = self.epsilon()
        outcome = current.release()
        if not outcome.opened:
            run.note_unopened(server_round, self._unopened_words)
        if outcome.in_vain:
            run.stop_in_vain(server_round, outcome.in_vain)
        if outcome.update is None:
            return schema.record(schema.arrays), outcome.metrics
        for array in outcome.update:
            array /= self._setup.denominator
        run.state.follow(outcome.unclipped_fraction)
        stepped = self.optimizer.step(schema.arrays, outcome.update)
        return schema.record(stepped), outcome.metrics

    def _is_evaluated(self, server_round: int) -> bool:
        """Whether clients evaluate after this round: it is due, and still fits the budget.

        ``start`` asks where one is due alone; another driver of the hooks may ask at any time.
        """
        run, cost = self._run, self._evaluation_cost()
        if not run.evaluates or run.has_ended() or server_round % cost.every:
            return False
        if cost.events and not self._privacy_budget.affordable(cost.events):
            run.faults.once(
                f"round {server_round}, evaluate: it would pass {self._privacy_budget}. Nobody is "
                "asked, and nothing is paid for it."
            )
            return False
        return True

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = server_round
        return RecordDict({self.record_keys.arrays: arrays, self.record_keys.config: config})

    # What a round costs -----------------------------------------------------------------------

    def _cost(self, parameters: int) -> RoundCost:
        evaluation = self._evaluation_cost() if self._run.evaluates else EvaluationCost()
        return RoundCost(self._setup, self._rounds, self._run, parameters, evaluation)

    def check_budget(self, num_rounds: int, parameters: int) -> list[str]:
        """Refuse a run that ``start`` would refuse for its budget, and spend nothing.

        It is asked of the run that a ``start`` now would begin or go on with, and of all that the
        ledger holds by now; a run that this strategy has played or is playing stays as it is.

        Parameters
        ----------
        num_rounds : int
        parameters : int
            The model's, those that are floating-point.

        Returns
        -------
        list of str
            The warnings that ``start`` would log.
        """
        rounds = arguments.whole("num_rounds", num_rounds, least=1)
        size = arguments.whole("parameters", parameters, least=1)
        anew = copy.copy(self)
        anew._read_checkpoint()
        anew._begin()
        return anew._settled_noise(rounds, size)[1]

    def _settled_noise(self, num_rounds: int, parameters: int) -> tuple[float, list[str]]:
        """The noise multiplier of the run, and warnings."""
        z, played = self._run.state.noise_multiplier, 0
        if self._resumed is not None:
            z, played = self._resumed.noise_multiplier, self._resumed.round
        cost = self._cost(parameters)
        return settled_noise(self._privacy_budget, cost, z, num_rounds, played=played)

    def epsilon(self) -> float:
        """ε of everything this population has paid by now, over all runs."""
        return self._privacy_budget.epsilon()

    def privacy_spent(self) -> PrivacySpent:
        """The population's payments, as Flower's own private strategies report them."""
        return PrivacySpent(
            epsilon=self.epsilon(),
            delta=self.budget.delta,
            num_releases=len(self._privacy_budget.paid.records),
            accounting_method=self.accountant,
        )

    # A run ------------------------------------------------------------------------------------

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

        It also calibrates the noise, handles replies as they arrive, keeps a checkpoint, resumes
        from one, and ends early when the budget is spent or no reply is usable any more. Logs one
        line a round, unless ``evaluate_fn`` returns None.

        Returns
        -------
        PrivateResult
            Flower's result, with ``privacy`` beside it. If the run ended early it holds the last
            model, and ``privacy.stopped`` the reason.

        Raises
        ------
        TypeError
            If an argument is of the wrong kind; nothing was spent.
        CheckpointError
            If the checkpoint to resume from is of another model, or a run that is not resumed
            would overwrite an unfinished one with the same settings; nothing was spent.
        BudgetError
            If the first round with the noise multiplier given, or all rounds with any noise, do
            not fit the budget; nothing was spent. ``SpentBudgetError`` if earlier runs are why.
        LedgerBusyError
            If the ledger is held by another run, be it one of this strategy in another thread;
            that run goes on.
        NoUsableReplyError
            If no reply was ever usable. Under secure aggregation, where that shows after clients
            were asked to train and the round is paid, ``privacy.stopped`` is the reason instead.
        """
        given = StartArguments(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
        with self._privacy_budget.held(self._read_checkpoint) as again:
            if again:  # an earlier start, played or refused, has closed it
                self._begin()
            if self._resumed is None:
                self.checkpointing.refuse_unfinished(self._settings(), given.num_rounds)
            self._started = True
            self._run.locate(grid)  # refuses a population that has no place for all
            arrays, first = self._prepare(given)
            result = self._run.play(self, given, arrays, first, self._keep)
            before = self._resumed
            outlasts = before is not None and before.outlasts(given.num_rounds)
            if self._run.has_ended() or outlasts:
                self._ended_early()
            else:
                self._finished()
            result.privacy = self.report()
        ended = "Ended early" if self._run.has_ended() else "Finished"
        log(INFO, "%s: ε = %.4g at δ = %g", ended, result.privacy.epsilon, self.budget.delta)
        return result

    def _prepare(self, given: StartArguments) -> tuple[ArrayRecord, int]:
        """Settle the noise; the model and the number of the first round."""
        arrays, first, state = given.initial_arrays, 1, self._run.state
        size = ModelSchema(arrays).size
        z, warnings = self._settled_noise(given.num_rounds, size)
        if self._resumed is not None:
            arrays, first = state.restore(self._resumed, arrays), self._resumed.round + 1
        state.noise_multiplier = z
        if first > given.num_rounds:
            log(
                INFO,
                "%s: the run to go on from has played %d of %d rounds. Its model is returned; "
                "nobody is asked, nothing is paid. For another run, give another path.",
                type(self).__name__,
                first - 1,
                given.num_rounds,
            )
        else:
            log(INFO, "Starting %s, rounds %d to %d:", type(self).__name__, first, given.num_rounds)
        self.summary()
        if first <= given.num_rounds:
            self._settled(given.num_rounds - first + 1, size)
        log(
            INFO,
            "\t     %s",
            self._noise_words(self._cost(size).noise_length(z)),
        )
        for warning in warnings:
            log(WARNING, "%s", warning)
        return arrays, first

    def _keep(self, number: int, arrays: ArrayRecord) -> None:
        rows = self._noise_rows()
        if (path := self.checkpointing.path) is not None:
            position = self._privacy_budget.paid.position
            self._run.state.save(
                Path(path),
                number,
                arrays,
                position=position,
                settings=self._settings(),
                planned=self._run.last,
                rows=rows,
            )
