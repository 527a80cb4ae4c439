"""DPFedAvg: weighted federated averaging with client-level differential privacy."""

import copy
import os
from collections.abc import Iterable, Sequence
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid, PrivacySpent
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from privacy import arguments
from privacy.accounting import Adjacency, Budget, Event, Sampling
from privacy.mechanisms import LatticeGaussian, Randomness, SumMechanism, SystemRandomness
from strategies import _arguments
from strategies.checkpoint import Checkpointing, RunState, lasting_path, settings_text
from strategies.clipping import Clipping
from strategies.description import log_settings, privacy_report
from strategies.metrics import Metrics
from strategies.model_schema import ModelSchema
from strategies.population import ClientRegistry, Population, expected_fraction
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import RecordKeys
from strategies.result import PrivacyReport, PrivateResult
from strategies.round_cost import RoundCost, settled_noise
from strategies.run import EvaluateFn, Run, StartArguments
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.secure_aggregation.train_round import MaskedRounds
from strategies.server_optimizers import ServerOptimizer, ServerSGD
from strategies.train_round import ClearRounds, EvaluateRound, Round, Rounds, RoundSetup
from strategies.weighting import UniformWeights, Weighting


class DPFedAvg(Strategy):
    """Federated averaging whose released models are differentially private for every client.

    A drop-in for Flower's ``FedAvg``. Each round draws a cohort from the population, bounds every
    update to the clipping norm S, sums with weights of at most one, adds Gaussian noise of
    standard deviation z·S to the sum, divides by a fixed, public number, and steps a server
    optimizer. (McMahan et al. 2018, arXiv 1710.06963, Algorithm 1, with their estimator f̃_f.)

    **Guarantee.** Everything released (the models of all rounds, the result, noised metrics) is
    (ε, δ)-differentially private under ``adjacency``, with the ε that the ledger's events
    compose to, for all runs that share the ledger together. No client moves a round's sum by
    more than S, whatever it sends.

    **Assumptions.** The server is trusted to run this code and to keep raw updates to itself
    (with ``secure_aggregation`` it has their sum only). Clients cannot tell who was drawn. The
    population, the weights' cap and total and all settings are public or chosen without looking
    at clients' data.

    **Not covered.** Privacy *from* the server; the choice of hyper-parameters, if it looked at
    clients' data; timing; metrics declared public; entries about lost or absent clients on the
    server's console and in the operator's log; that the run ended because no reply was usable;
    that all replies of a round lack a noised metric; that and when a round waits for
    ``min_available_nodes``.

    Parameters
    ----------
    population : Population or int
        A frozen list of the clients' identities, all others being ignored; or the number N of all
        clients. A run does not begin, or stops, where more than N connect.
    sampling : Poisson, FixedSize or Full
        Draws each round's cohort. Poisson and full participation protect against adding or
        removing one client, a fixed size against replacing one.
    clipping : float, FlatClipping, PerLayerClipping or AdaptiveClipping
        The clipping norm S, or the rule for it.
    budget : Budget
        ε and δ of the population over all runs; ``math.inf`` as ε sets no limit. A round that
        would pass it is not begun, and the run ends. ``start`` refuses a run whose first round
        would pass it, or whose noise would be ten times a first run's for what earlier runs spent.
    ledger : path-like
        The file that all runs of this population share, made if it is missing. Each round's event
        is durable in it before the round's noisy result is used. Absolute, or beginning with
        ``~``: a relative path would lie where Flower's SuperLink was started.
    noise_multiplier : float, optional
        z of a round: the noise on the sum has standard deviation z·S. Zero: no noise and ε = ∞.
        Default: ``start`` calibrates it so that all rounds fit the budget.
    reserve : sequence of Event
        To be paid from the budget after training, such as ``EncryptedRound.event``.
    weighting : Weighting
        Default: ``UniformWeights()``.
    mechanism : SumMechanism
        Default: ``LatticeGaussian()``, safe in finite precision.
    optimizer : ServerOptimizer
        Steps the model by the noisy average. Default: ``ServerSGD()``, plain averaging.
    metrics : Metrics
        The clients' metrics that are released, and how many clients evaluate. Default: none.
    checkpointing : Checkpointing
        The file that each round's released state is written to, or a run is resumed from.
    min_available_nodes : int
        So many nodes of the population must be connected before a round begins, for a round of few
        costs as much privacy as any other. ε does not cover that a round waits; with 0 none does.
    secure_aggregation : SecureAggregation, optional
        The server sees sums of enough clients only, and clients need ``SecureAggregationMod``.
        Default: it sees each update.
    record_keys : RecordKeys
        Keys in the records. Default: Flower's.
    randomness : Randomness
        Default: the operating system's. A seeded one is for tests and voids all privacy.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind, out of range, or contradicts another.

    Examples
    --------
    >>> strategy = DPFedAvg(
    ...     population=1000,
    ...     sampling=Poisson(0.1),
    ...     clipping=0.1,
    ...     budget=Budget(epsilon=3.0, delta=1e-5),
    ...     ledger="~/privacy-ledger.jsonl",
    ... )  # doctest: +SKIP
    >>> result = strategy.start(grid, initial_arrays, num_rounds=100)  # doctest: +SKIP
    """

    @arguments.refuse_old_names(_arguments.OLD_NAMES)
    def __init__(
        self,
        *,
        population: Population | int,
        sampling: Sampling,
        clipping: Clipping | float,
        budget: Budget,
        ledger: str | os.PathLike[str],
        noise_multiplier: float | None = None,
        reserve: Sequence[Event] = (),
        weighting: Weighting | None = None,
        mechanism: SumMechanism | None = None,
        optimizer: ServerOptimizer | None = None,
        metrics: Metrics | None = None,
        checkpointing: Checkpointing | None = None,
        min_available_nodes: int = 2,
        secure_aggregation: SecureAggregation | None = None,
        record_keys: RecordKeys | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        _arguments.check_kinds(
            sampling=sampling,
            clipping=clipping,
            budget=budget,
            reserve=reserve,
            weighting=weighting,
            mechanism=mechanism,
            optimizer=optimizer,
            metrics=metrics,
            checkpointing=checkpointing,
            secure_aggregation=secure_aggregation,
            record_keys=record_keys,
            randomness=randomness,
        )
        path = lasting_path("ledger", ledger)
        self._registry = ClientRegistry(population)
        size = self._registry.size
        self.sampling: Sampling = sampling
        self.adjacency, self.accountant = _arguments.guarantee(sampling)
        self.weighting: Weighting = UniformWeights() if weighting is None else weighting
        self.mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self.metrics = Metrics() if metrics is None else metrics
        self.checkpointing = Checkpointing() if checkpointing is None else checkpointing
        self.record_keys = RecordKeys() if record_keys is None else record_keys
        self.secure_aggregation = secure_aggregation
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        # Python's own numbers, which any process writes alike into a checkpoint.
        self.budget = Budget(float(budget.epsilon), float(budget.delta))
        self._given_noise = _arguments.noise_multiplier(noise_multiplier, self.budget)
        if self._given_noise is not None:
            self.mechanism.account(noise_multiplier=self._given_noise, sampling=sampling)
        # Copies: the caller's may change before the next run.
        self._initial_clipping = copy.deepcopy(_arguments.clipping_rule(clipping))
        self._initial_optimizer = copy.deepcopy(ServerSGD() if optimizer is None else optimizer)
        self._setup = RoundSetup(
            population=size,
            sampling=sampling,
            mechanism=self.mechanism,
            weighting=self.weighting,
            metrics=self.metrics,
            record_keys=self.record_keys,
            randomness=self._randomness,
            sampling_rate=expected_fraction(sampling, size),
        )
        if self.adjacency is Adjacency.REPLACE_ONE:
            _arguments.check_accounted_by_replacement(self._initial_clipping, self.metrics)
        if secure_aggregation is not None:
            _arguments.check_needs_no_single_reply(
                secure_aggregation, self._initial_clipping, self._setup
            )
        self.min_available_nodes = _arguments.available_nodes(min_available_nodes, size)
        self._resumed = self.checkpointing.load(self._settings())
        self._privacy_budget = PrivacyBudget(
            path,
            population=self._registry.name,
            adjacency=self.adjacency,
            accountant=self.accountant,
            budget=self.budget,
            private=self._randomness.private,
            at_least=None if self._resumed is None else self._resumed.position,
            reserved=reserve,
        )
        self._round: Round | None = None
        self._evaluate_round: EvaluateRound | None = None
        self._started = False
        self._begin()

    def _begin(self) -> None:
        """A new run, on the same ledger."""
        state = RunState.fresh(self._initial_clipping, self._initial_optimizer, self._given_noise)
        self._run = Run(
            state,
            self._registry,
            randomness=self._randomness,
            min_available_nodes=self.min_available_nodes,
            evaluates=self.metrics.sampling is not None,
            resumed_model=self._resumed is not None and self._resumed.has_learned,
            delta=self.budget.delta,
        )
        secure = self.secure_aggregation
        self._rounds: Rounds = (
            ClearRounds(self._setup) if secure is None else MaskedRounds(self._setup, secure)
        )

    def _settings(self) -> str:
        """The settings that a resumed run must share."""
        return settings_text(
            {
                "population": self._registry.name,
                "sampling": self.sampling,
                "clipping": self._initial_clipping,
                "weighting": self.weighting,
                "mechanism": self.mechanism,
                "optimizer": self._initial_optimizer,
                "noise_multiplier": self._given_noise,
                "budget": self.budget,
                "metrics.train": self.metrics.train,
                "metrics.evaluate": self.metrics.evaluate,
                "metrics.fraction_evaluate": self.metrics.fraction_evaluate,
                "secure_aggregation": self.secure_aggregation,
            }
        )

    @property
    def clipping(self) -> Clipping:
        """The clipping, with this round's norm."""
        return self._run.state.clipping

    @property
    def optimizer(self) -> ServerOptimizer:
        """The server's optimizer, with its moments."""
        return self._run.state.optimizer

    @property
    def epsilon_by_round(self) -> dict[int, float]:
        """ε after each round of this run."""
        return self._run.state.epsilon_by_round

    @property
    def noise_multiplier(self) -> float:
        """Z of a round; a ``ValueError`` before ``start`` has calibrated it."""
        return self._run.noise_multiplier

    # A round: draw, send, bound and sum, pay, add noise, step -----------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and make its messages; none once the budget is spent."""
        self._round = None
        schema, run = ModelSchema(arrays), self._run
        cost = self._cost(schema.size).round(self.noise_multiplier)
        if not run.has_ended() and not self._privacy_budget.affordable(cost):
            run.stop(f"round {server_round} would pass {self._privacy_budget}")
        if run.has_ended():
            return []
        nodes, drawn = run.draw(f"round {server_round}, train", self.sampling, grid)
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
        due = self._cost(schema.size).training(self.noise_multiplier)
        self._privacy_budget.pay(due, run=run.state.name, number=server_round)
        outcome = current.release()
        self.epsilon_by_round[server_round] = self.epsilon()
        if not outcome.opened:
            run.note_unopened(server_round)
        if outcome.in_vain:
            run.stop_in_vain(server_round)
        if outcome.update is None:
            return schema.record(schema.arrays), outcome.metrics
        for array in outcome.update:
            array /= self._setup.denominator
        run.state.follow(outcome.unclipped_fraction)
        stepped = self.optimizer.step(schema.arrays, outcome.update)
        return schema.record(stepped), outcome.metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw who evaluates; nobody by default, nor once the budget is spent."""
        self._evaluate_round = None
        sampling, run = self.metrics.sampling, self._run
        if sampling is None or not run.evaluates or run.has_ended():
            return []
        nodes, _ = run.draw(f"round {server_round}, evaluate", sampling, grid)
        self._evaluate_round = EvaluateRound(server_round, self._setup, run)
        return self._evaluate_round.begin(nodes, self._content(server_round, arrays, config))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Release the evaluators' metrics, noised and paid, or as they are if declared public."""
        current, self._evaluate_round = self._evaluate_round, None
        if current is None or self._run.has_ended():
            return None
        if not current.gather(replies):
            self._run.stop_evaluating(server_round)
            return None
        if due := self._setup.evaluation_events:
            self._privacy_budget.pay(due, run=self._run.state.name, number=server_round)
            self.epsilon_by_round[server_round] = self.epsilon()
        return current.release()

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = server_round
        return RecordDict({self.record_keys.arrays: arrays, self.record_keys.config: config})

    # What a round costs -----------------------------------------------------------------------

    def _cost(self, parameters: int) -> RoundCost:
        return RoundCost(self._setup, self._rounds, self._run, parameters)

    def check_budget(self, num_rounds: int, parameters: int) -> list[str]:
        """Refuse a run that ``start`` would refuse for its budget, and spend nothing.

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
        return self._settled_noise(rounds, size)[1]

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

    def report(self) -> PrivacyReport:
        """The guarantee as it stands, with all that the ledger holds, encrypted rounds included."""
        secure = self.secure_aggregation
        return privacy_report(
            self._setup, self._rounds, secure, self._privacy_budget, self._run.state
        )

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
        NoUsableReplyError
            If no reply was ever usable. Under secure aggregation, where that shows after clients
            were asked to train and the round is paid, ``privacy.stopped`` is the reason instead.
        """
        given = StartArguments(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )
        if self._started:
            self._resumed = self.checkpointing.load_again(self._settings())
            self._begin()
        if self._resumed is None:
            self.checkpointing.refuse_unfinished(self._settings(), given.num_rounds)
        self._started = True
        position = None if self._resumed is None else self._resumed.position
        with self._privacy_budget.reopened(position):
            self._run.locate(grid)  # refuses a population that has no place for all
            arrays, first = self._prepare(given)
            result = self._run.play(self, given, arrays, first, self._keep)
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
        log(
            INFO,
            "\t     Noise: about %.3g·S on each round's average (z·√d/(q·W)); all clients together "
            "can move it by at most S, the clipping norm.",
            self._cost(size).noise_length(z),
        )
        for warning in warnings:
            log(WARNING, "%s", warning)
        return arrays, first

    def _keep(self, number: int, arrays: ArrayRecord) -> None:
        if (path := self.checkpointing.path) is not None:
            position = self._privacy_budget.ledger.position
            self._run.state.save(
                Path(path), number, arrays, position=position, settings=self._settings()
            )

    def summary(self) -> None:
        """Log the settings. All of them are public."""
        secure = self.secure_aggregation
        log_settings(self._setup, secure, self._privacy_budget, self._run.state)
