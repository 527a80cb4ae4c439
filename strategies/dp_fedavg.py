"""DPFedAvg: weighted federated averaging with client-level differential privacy."""

import copy
import json
import math
import os
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, PrivacySpent
from flwr.serverapp.strategy import Strategy
from flwr.supercore import log

from privacy.accounting import (
    Accountant,
    Adjacency,
    Budget,
    Event,
    FixedSize,
    Ledger,
    Sampling,
    calibrate_noise_multiplier,
    epsilon,
    joint_noise_multiplier,
)
from privacy.mechanisms import LatticeGaussian, Randomness, SumMechanism, SystemRandomness
from strategies._operator_log import operator_log
from strategies._replies import Template, TrainReply, read_metrics
from strategies._round import Asked, Multipliers, TrainRound, collect
from strategies.checkpoint import Checkpoint, CheckpointError
from strategies.clipping import AdaptiveClipping, Clipping, FlatClipping
from strategies.cohort import draw_cohort, expected_fraction, metrics_sampling
from strategies.metrics import NoisedMetrics, NoisedMetricsSum, PublicMetrics
from strategies.population import Population, Register
from strategies.result import PrivacyReport, PrivateResult
from strategies.server_optimizers import ServerOptimizer, ServerSGD
from strategies.streaming import stream_replies
from strategies.weighting import UniformWeights, Weighting

Vector = npt.NDArray[Any]
EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


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
    (secure aggregation removes the second half). Clients cannot tell who was drawn. The
    population, the weights' cap and total and all settings are public or chosen without looking
    at clients' data.

    **Not covered.** Privacy *from* the server; the choice of hyper-parameters, if it looked at
    clients' data; timing; metrics declared public.

    Parameters
    ----------
    population : Population or int
        Who may be drawn: a frozen list of identities, or their number N.
    sampling : Poisson, FixedSize or Full
        How each round's cohort is drawn, constant for a run. Poisson and full participation
        protect against adding or removing one client, a fixed size against replacing one.
    clipping : float, FlatClipping, PerLayerClipping or AdaptiveClipping
        The clipping norm S, or how it is found.
    ledger : path-like
        The ledger of this population, shared by all its runs; made if it is not there. Each
        round's event is durable in it before the round's noisy result is used.
    target_delta : float
        δ.
    noise_multiplier : float, optional
        z of a round: the noise on the sum has standard deviation z·S. Zero: no noise and ε = ∞.
        If left out, it is calibrated in ``start`` so that all rounds fit ``target_epsilon``.
    target_epsilon : float, optional
        The budget of the population over all runs. A round that would pass it is not begun: the
        remaining rounds send nothing, and the result says so.
    weighting : Weighting
        ``UniformWeights()`` or ``CappedWeights(...)``.
    mechanism : SumMechanism
        ``LatticeGaussian()`` (safe in finite precision) or ``ContinuousGaussian()``.
    optimizer : ServerOptimizer, optional
        What the server does with the noisy average. Default: ``ServerSGD()``, plain averaging.
    iterate_average : float
        If above zero, evaluate and return an exponential average of the models with this decay.
    train_metrics : PublicMetrics or NoisedMetrics, optional
        What is told of the clients' training metrics. Default: nothing.
    fraction_evaluate : float
        The rate at which clients are asked to evaluate each round. Default: 0.
    evaluate_metrics : PublicMetrics or NoisedMetrics, optional
        What is told of their metrics; needed if ``fraction_evaluate`` is above 0.
    accountant : "pld" or "rdp", optional
        Default: the tightest that can express the sampling.
    checkpoint : path-like, optional
        Where each round's released state is kept. Default: nowhere.
    resume : path-like, optional
        A checkpoint to go on from. The interrupted round is played again, with fresh randomness,
        and paid again.
    min_available_nodes : int
        How many nodes of the population must be connected before a round begins. A round that
        finds hardly anybody there, because the server or its network has just come back, costs
        as much privacy as any other and teaches nothing.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests; it voids all privacy, and
        the result says so.
    weighted_by_key, arrayrecord_key, configrecord_key : str
        Keys in the records, as in Flower's ``FedAvg``.

    Raises
    ------
    ValueError
        If settings are out of range or contradict each other.

    Examples
    --------
    >>> strategy = DPFedAvg(
    ...     population=1000,
    ...     sampling=Poisson(0.1),
    ...     clipping=0.1,
    ...     target_epsilon=3.0,
    ...     target_delta=1e-5,
    ...     ledger="privacy-ledger.jsonl",
    ... )  # doctest: +SKIP
    >>> result = strategy.start(grid, initial_arrays, num_rounds=100)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        population: Population | int,
        sampling: Sampling,
        clipping: Clipping | float,
        ledger: str | os.PathLike[str],
        target_delta: float,
        noise_multiplier: float | None = None,
        target_epsilon: float | None = None,
        weighting: Weighting | None = None,
        mechanism: SumMechanism | None = None,
        optimizer: ServerOptimizer | None = None,
        iterate_average: float = 0.0,
        train_metrics: PublicMetrics | NoisedMetrics | None = None,
        fraction_evaluate: float = 0.0,
        evaluate_metrics: PublicMetrics | NoisedMetrics | None = None,
        accountant: Accountant | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: str | os.PathLike[str] | None = None,
        min_available_nodes: int = 2,
        randomness: Randomness | None = None,
        weighted_by_key: str = "num-examples",
        arrayrecord_key: str = "arrays",
        configrecord_key: str = "config",
    ) -> None:
        self._register = Register(population)
        size = self._register.size
        self.sampling: Sampling = sampling
        self._fraction = expected_fraction(sampling, size)
        # Copies: a run changes them, and the caller's may serve another run.
        self._clipping_at_first: Clipping = (
            FlatClipping(float(clipping))
            if isinstance(clipping, int | float)
            else copy.deepcopy(clipping)
        )
        self.clipping = copy.deepcopy(self._clipping_at_first)
        self.weighting: Weighting = UniformWeights() if weighting is None else weighting
        self._denominator = self._fraction * self.weighting.total(size)
        self.mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self._optimizer_at_first: ServerOptimizer = (
            ServerSGD() if optimizer is None else copy.deepcopy(optimizer)
        )
        self.optimizer = copy.deepcopy(self._optimizer_at_first)
        self.adjacency = (
            Adjacency.REPLACE_ONE
            if isinstance(sampling, FixedSize)
            else Adjacency.ADD_OR_REMOVE_ONE
        )
        self.accountant: Accountant = accountant or (
            "rdp" if isinstance(sampling, FixedSize) else "pld"
        )
        if noise_multiplier is None and target_epsilon is None:
            raise ValueError(
                "neither noise_multiplier nor target_epsilon is set; give the noise, or the ε "
                "from which start() calibrates it"
            )
        if noise_multiplier is not None:
            self.mechanism.account(noise_multiplier=noise_multiplier, sampling=sampling)
        self._noise_multiplier = self._given_noise_multiplier = noise_multiplier
        if not 0 < target_delta < 1:
            raise ValueError(f"target_delta must lie strictly between 0 and 1, got {target_delta}")
        self.target_delta = target_delta
        self._budget = None if target_epsilon is None else Budget(target_epsilon, target_delta)
        if not 0 <= iterate_average < 1:
            raise ValueError(f"iterate_average must lie in [0, 1), got {iterate_average}")
        self.iterate_average = iterate_average
        self.train_metrics = train_metrics
        self.fraction_evaluate = fraction_evaluate
        self.evaluate_metrics = evaluate_metrics
        if fraction_evaluate:
            self._evaluate_sampling = metrics_sampling(fraction_evaluate)
            if evaluate_metrics is None:
                raise ValueError(
                    "fraction_evaluate is above 0 but evaluate_metrics is not set; say "
                    "NoisedMetrics(ranges=...) or PublicMetrics()"
                )
        self._check_adjacency()
        self.checkpoint = None if checkpoint is None else Path(checkpoint).absolute()
        self.min_available_nodes = min(min_available_nodes, size)
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self.weighted_by_key = weighted_by_key
        self.arrayrecord_key = arrayrecord_key
        self.configrecord_key = configrecord_key
        self.run_name = secrets.token_hex(8)
        self.stopped: str | None = None
        self.epsilon_by_round: dict[int, float] = {}
        self._average: list[Vector] = []
        self._train_round: TrainRound | None = None
        self._train_asked = self._evaluate_asked = Asked([])
        self._resumed = None if resume is None else self._load(Path(resume).absolute())
        self._started = False
        self._ledger_path = Path(ledger).absolute()
        self._ledger = self._open_ledger()

    def _open_ledger(self) -> Ledger:
        # A seeded run keeps a ledger of its own: what it released is private from nobody, and
        # no private run may go on from it as if it were.
        name = self._register.name
        return Ledger.open(
            self._ledger_path,
            population=name if self._randomness.private else f"{name} (seeded: not private)",
            adjacency=self.adjacency,
            at_least=None if self._resumed is None else self._resumed.position,
        )

    def _load(self, path: Path) -> Checkpoint:
        kept = Checkpoint.load(path)
        kept.check_settings(self._settings(), path)
        return kept

    def _check_adjacency(self) -> None:
        if self.adjacency is not Adjacency.REPLACE_ONE:
            return
        if isinstance(self.clipping, AdaptiveClipping):
            raise ValueError(
                "adaptive clipping is not accounted for a cohort of fixed size; use Poisson "
                "sampling or a fixed norm"
            )
        if self.fraction_evaluate and isinstance(self.evaluate_metrics, NoisedMetrics):
            raise ValueError(
                "noised evaluation metrics are not accounted beside a cohort of fixed size; use "
                "Poisson sampling, or set fraction_evaluate to 0"
            )

    # What a round costs -----------------------------------------------------------------------

    @property
    def noise_multiplier(self) -> float:
        """Z of a round.

        Raises
        ------
        ValueError
            Before ``start`` has calibrated it.
        """
        if self._noise_multiplier is None:
            raise ValueError("noise_multiplier is calibrated in start(); it is not known yet")
        return self._noise_multiplier

    def _train_event(self) -> Event:
        return self.mechanism.account(
            noise_multiplier=self.noise_multiplier, sampling=self.sampling
        )

    def _evaluate_event(self) -> Event | None:
        if not self.fraction_evaluate or not isinstance(self.evaluate_metrics, NoisedMetrics):
            return None
        return self.mechanism.account(
            noise_multiplier=self.evaluate_metrics.noise_multiplier,
            sampling=self._evaluate_sampling,
        )

    def _multipliers(self) -> Multipliers:
        """Share the round's z among the sum of updates and what else its cohort releases."""
        z = self.noise_multiplier
        others = []
        count = None
        if isinstance(self.clipping, AdaptiveClipping):
            cohort = self._fraction * self._register.size
            sigma = self.clipping.count_sigma(noise_multiplier=z, expected_cohort=cohort)
            count = 2 * sigma  # a bit moves the centred count by 1/2
            others.append(count)
        if isinstance(self.train_metrics, NoisedMetrics):
            others.append(self.train_metrics.noise_multiplier)
        if z == 0 or not others:
            return Multipliers(z, count)
        taken = sum(other**-2 for other in others)
        if taken >= z**-2:
            raise ValueError(
                f"the noised metrics alone spend more than a round with noise_multiplier = {z:g} "
                "may; raise their noise"
            )
        update = (z**-2 - taken) ** -0.5 * (1 + 1e-9)
        if joint_noise_multiplier(update, *others) < z:
            raise ArithmeticError("the shares of the noise multiplier exceed the whole")
        return Multipliers(update, count)

    def _calibrate(self, rounds: int) -> None:
        if self._noise_multiplier is not None:
            return
        if self._budget is None:  # the constructor has seen to it
            raise ValueError("target_epsilon is not set")
        spent = [record.event for record in self._ledger.records]
        evaluation = self._evaluate_event()
        if evaluation is not None:
            spent += [evaluation] * rounds
        try:
            self._noise_multiplier = calibrate_noise_multiplier(
                sampling=self.sampling,
                rounds=rounds,
                budget=self._budget,
                accountant=self.accountant,
                spent=spent,
            )
        except ValueError:
            if not self._ledger.records:
                raise  # the budget was never large enough
            self._stop(f"no noise is enough for {rounds} more rounds within")

    def _stop(self, why: str) -> None:
        limit = self._budget.epsilon if self._budget else math.inf
        self.stopped = f"{why} the budget of ε = {limit:g} at δ = {self.target_delta:g}"
        log(WARNING, "Stopping: %s.", self.stopped)

    def _affordable(self, *events: Event | None) -> bool:
        if self._budget is None:
            return True
        paid = [record.event for record in self._ledger.records]
        due = [event for event in events if event is not None]
        total = epsilon(
            paid + due,
            delta=self.target_delta,
            accountant=self.accountant,
            adjacency=self.adjacency,
        )
        return total <= self._budget.epsilon

    # Flower's hooks ---------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the settings. All of them are public."""
        size = self._register.size
        log(INFO, "\t├──> Privacy of every client (%s):", self.adjacency.value)
        epsilon = "no limit" if self._budget is None else f"at most {self._budget.epsilon:g}"
        log(INFO, "\t│\t├── ε: %s at δ = %g (%s)", epsilon, self.target_delta, self.accountant)
        if self._noise_multiplier is not None:
            log(INFO, "\t│\t├── Noise multiplier: %.4f", self._noise_multiplier)
        log(INFO, "\t│\t├── Clipping: %s", self.clipping)
        log(INFO, "\t│\t├── Mechanism: %s", self.mechanism.name)
        log(INFO, "\t│\t└── Ledger: %s", self._ledger.path)
        log(INFO, "\t├──> Sampling: %s of a population of %d", self.sampling, size)
        log(INFO, "\t├──> Weights: %s", self.weighting)
        log(INFO, "\t└──> Server optimizer: %s", self.optimizer)
        if not self._randomness.private:
            log(WARNING, "The randomness is seeded: this run is NOT private.")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and make its messages; none once the budget is spent."""
        self._train_round = None
        if self.stopped is None and not self._affordable(
            self._train_event(), self._evaluate_event()
        ):
            self._stop(f"round {server_round} would pass")
        if self.stopped is not None:
            return []
        template = Template(arrays)
        self._train_round = TrainRound(
            server_round,
            template,
            self.clipping.geometry(template.names),
            self._multipliers(),
            mechanism=self.mechanism,
            weighting=self.weighting,
            weighted_by_key=self.weighted_by_key,
            randomness=self._randomness,
        )
        messages = self._messages(
            f"round {server_round}, train",
            self.sampling,
            MessageType.TRAIN,
            server_round,
            arrays,
            config,
            grid,
        )
        self._train_asked = Asked(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Bound, sum, pay, add noise, step.

        The event is durable in the ledger before the noisy sum exists. An empty cohort is a
        round like any other.
        """
        this = self._train_round
        if this is None or this.number != server_round:
            return None, None
        self._train_round = None
        noised = self._open_metrics(self.train_metrics)
        public: list[MetricRecord] = []

        def use(read: tuple[TrainReply, float]) -> None:
            content, weight = read
            this.add(content, weight)
            if noised is not None:
                noised.add(content.metrics)
            elif self.train_metrics is not None and content.metrics is not None:
                public.append(content.metrics)

        name = f"round {server_round}, train"
        collect(name, self._train_asked, replies, read=this.read, use=use)
        self._ledger.append(self._train_event(), run=self.run_name, round=server_round)

        update = this.release(self._denominator)
        expected = self._fraction * self._register.size
        fraction = this.unclipped_fraction(expected)
        if isinstance(self.clipping, AdaptiveClipping) and fraction is not None:
            self.clipping.follow(fraction)
        stepped = self.optimizer.step(this.template.arrays, update)
        metrics = None
        if noised is not None:
            metrics = noised.release(expected)
        elif isinstance(self.train_metrics, PublicMetrics):
            metrics = self.train_metrics.release(public, self.weighted_by_key)
        self.epsilon_by_round[server_round] = self.epsilon()
        return this.template.record(stepped), metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw who evaluates; nobody by default, nor once the budget is spent."""
        self._evaluate_asked = Asked([])
        if not self.fraction_evaluate or self.stopped is not None:
            return []
        messages = self._messages(
            f"round {server_round}, evaluate",
            self._evaluate_sampling,
            MessageType.EVALUATE,
            server_round,
            arrays,
            config,
            grid,
        )
        self._evaluate_asked = Asked(messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Release the evaluators' metrics, noised and paid, or as they are if declared public."""
        if not self.fraction_evaluate or self.stopped is not None:
            return None
        noised = self._open_metrics(self.evaluate_metrics)
        public: list[MetricRecord] = []
        use = public.append if noised is None else noised.add
        name = f"round {server_round}, evaluate"
        collect(name, self._evaluate_asked, replies, read=read_metrics, use=use)
        event = self._evaluate_event()
        if noised is not None and event is not None:
            self._ledger.append(event, run=self.run_name, round=server_round)
            self.epsilon_by_round[server_round] = self.epsilon()
            return noised.release(self.fraction_evaluate * self._register.size)
        if isinstance(self.evaluate_metrics, PublicMetrics):
            return self.evaluate_metrics.release(public, self.weighted_by_key)
        return None

    def _open_metrics(self, rule: PublicMetrics | NoisedMetrics | None) -> NoisedMetricsSum | None:
        if not isinstance(rule, NoisedMetrics):
            return None
        return rule.open(self.mechanism, self._randomness)

    def _messages(
        self,
        name: str,
        sampling: Sampling,
        message_type: str,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        grid: Grid,
    ) -> list[Message]:
        """Draw over the whole population, then look who is there; never draw again."""
        drawn = draw_cohort(sampling, self._register.size, randomness=self._randomness)
        node_of, ignored = self._register.locate(grid.get_nodes())
        nodes = [node_of[place] for place in drawn.tolist() if place in node_of]
        operator_log.info(
            "%s: drew %d of %d, %d connected, asking %d; %d unknown nodes ignored",
            name,
            len(drawn),
            self._register.size,
            len(node_of),
            len(nodes),
            ignored,
        )
        config["server-round"] = server_round
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: config})
        return [
            Message(content=content, message_type=message_type, dst_node_id=node) for node in nodes
        ]

    # A whole run ------------------------------------------------------------------------------

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
        checkpoint, resumes from one, and ends early when the budget is spent. It logs one line a
        round, unless ``evaluate_fn`` returns None and so tells its user itself.

        Parameters
        ----------
        grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
            As in Flower.

        Returns
        -------
        PrivateResult
            Flower's result, with ``privacy`` beside it. Holds the last model also when the
            budget ended the run early.

        Raises
        ------
        ValueError
            If no noise fits the budget in ``num_rounds`` rounds, or the checkpoint to resume
            from is of another run.
        """
        if num_rounds < 1:
            raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
        train_config = ConfigRecord() if train_config is None else train_config
        evaluate_config = ConfigRecord() if evaluate_config is None else evaluate_config
        if self._started:
            self._begin_again()
        self._started = True
        if self._ledger.closed:
            self._ledger = self._open_ledger()
        with self._ledger:
            return self._run(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )

    def _begin_again(self) -> None:
        """Forget the last run: the next is a new one, on the same ledger."""
        self._resumed = None
        self.run_name = secrets.token_hex(8)
        self._noise_multiplier = self._given_noise_multiplier
        self.clipping = copy.deepcopy(self._clipping_at_first)
        self.optimizer = copy.deepcopy(self._optimizer_at_first)
        self.stopped = None
        self.epsilon_by_round = {}
        self._average = []

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
        arrays, first = self._begin(initial_arrays, num_rounds)
        log(INFO, "Starting %s, rounds %d to %d:", type(self).__name__, first, num_rounds)
        self.summary()
        result = PrivateResult(arrays=self._latest_average(arrays))
        if first == 1:
            self._keep(0, arrays)
            if evaluate_fn:
                self._evaluate_here(evaluate_fn, 0, arrays, result)

        rounds = range(first, num_rounds + 1) if self.stopped is None else []
        for number in rounds:
            self._wait_for_nodes(grid)
            messages = self.configure_train(number, arrays, train_config, grid)
            if self.stopped is not None:
                break
            replies = stream_replies(grid, messages, timeout=timeout)
            stepped, metrics = self.aggregate_train(number, replies)
            if stepped is None:  # only a round that was not configured has no model
                raise RuntimeError(f"round {number} was not configured")
            arrays = stepped
            if metrics is not None:
                result.train_metrics_clientapp[number] = metrics
            result.arrays = self._averaged(arrays)
            self._keep(number, arrays)

            evaluation = self.configure_evaluate(number, result.arrays, evaluate_config, grid)
            evaluated = self.aggregate_evaluate(
                number, stream_replies(grid, evaluation, timeout=timeout)
            )
            if evaluated is not None:
                result.evaluate_metrics_clientapp[number] = evaluated
            on_server = None
            if evaluate_fn:
                on_server = self._evaluate_here(evaluate_fn, number, result.arrays, result)
            if evaluate_fn is None or on_server is not None:
                told = [record for record in (metrics, evaluated, on_server) if record is not None]
                log(
                    INFO,
                    "round %d/%d: ε = %.4g at δ = %g%s",
                    number,
                    num_rounds,
                    self.epsilon_by_round[number],
                    self.target_delta,
                    "".join(f", {dict(record)}" for record in told),
                )

        result.privacy = self.report()
        log(INFO, "Finished: ε = %.4g at δ = %g", result.privacy.epsilon, self.target_delta)
        return result

    def epsilon(self) -> float:
        """ε of everything this population has paid so far, over all runs."""
        if not self._randomness.private:
            return math.inf
        return self._ledger.epsilon(self.target_delta, accountant=self.accountant)

    def report(self) -> PrivacyReport:
        """The guarantee of this run as it stands."""
        return PrivacyReport(
            epsilon=self.epsilon(),
            delta=self.target_delta,
            noise_multiplier=math.inf if self._noise_multiplier is None else self._noise_multiplier,
            clipping_norm=self.clipping.norm,
            sampling=self.sampling.kind,
            sampling_rate=self._fraction,
            rounds=len(self.epsilon_by_round),
            population=self._register.size,
            adjacency=self.adjacency.value,
            accountant=self.accountant,
            mechanism=self.mechanism.name,
            private=self._randomness.private and self._noise_multiplier != 0,
            stopped=self.stopped,
            epsilon_by_round=dict(self.epsilon_by_round),
        )

    def privacy_spent(self) -> PrivacySpent:
        """What this population has paid, as Flower's own private strategies tell it."""
        return PrivacySpent(
            epsilon=self.epsilon(),
            delta=self.target_delta,
            num_releases=len(self._ledger.records),
            accounting_method=self.accountant,
        )

    def _wait_for_nodes(self, grid: Grid) -> None:
        """Wait until enough of the population is there for a round to be worth its price."""
        waiting = False
        while (connected := self._connected(grid)) < self.min_available_nodes:
            if not waiting:
                log(
                    INFO,
                    "Waiting until %d nodes of the population are connected (min_available_nodes).",
                    self.min_available_nodes,
                )
                waiting = True
            operator_log.info("%d nodes of the population are connected", connected)
            time.sleep(1)

    def _connected(self, grid: Grid) -> int:
        node_of, _ = self._register.locate(grid.get_nodes())
        return len(node_of)

    def _evaluate_here(
        self, evaluate_fn: EvaluateFn, number: int, arrays: ArrayRecord, result: PrivateResult
    ) -> MetricRecord | None:
        metrics = evaluate_fn(number, arrays)
        if metrics is not None:
            result.evaluate_metrics_serverapp[number] = metrics
        return metrics

    # Averages, checkpoints --------------------------------------------------------------------

    def _averaged(self, arrays: ArrayRecord) -> ArrayRecord:
        """The exponential average of the iterates, bias-corrected by starting at the first."""
        if not self.iterate_average:
            return arrays
        template = Template(arrays)
        if not self._average:
            self._average = [np.array(a) for a in template.arrays]
        for average, a in zip(self._average, template.arrays, strict=True):
            average += (1 - self.iterate_average) * (a - average)
        return template.record(self._average)

    def _latest_average(self, arrays: ArrayRecord) -> ArrayRecord:
        return Template(arrays).record(self._average) if self._average else arrays

    def _settings(self) -> str:
        settings = {
            "population": self._register.name,
            "sampling": self.sampling,
            "clipping": self._clipping_at_first,
            "weighting": self.weighting,
            "mechanism": self.mechanism.name,
            "optimizer": self._optimizer_at_first,
            "iterate_average": self.iterate_average,
            "noise_multiplier": self._given_noise_multiplier,
            "target_epsilon": None if self._budget is None else self._budget.epsilon,
            "target_delta": self.target_delta,
            "train_metrics": self.train_metrics,
            "fraction_evaluate": self.fraction_evaluate,
            "evaluate_metrics": self.evaluate_metrics,
        }
        return json.dumps({name: _told(value) for name, value in settings.items()}, sort_keys=True)

    def _keep(self, number: int, arrays: ArrayRecord) -> None:
        if self.checkpoint is None or self._noise_multiplier is None:
            return
        slots = {f"model/{name}": array.numpy() for name, array in arrays.items()}
        slots |= {f"optimizer/{k}": v for k, v in self.optimizer.state_dict().items()}
        slots |= {f"average/{i}": v for i, v in enumerate(self._average)}
        slots["clipping/norm"] = np.array([self.clipping.norm])
        rounds = list(self.epsilon_by_round)
        slots["privacy/rounds"] = np.array(rounds, dtype=np.int64)
        slots["privacy/epsilon"] = np.array([self.epsilon_by_round[r] for r in rounds])
        Checkpoint(
            run=self.run_name,
            round=number,
            noise_multiplier=self.noise_multiplier,
            position=self._ledger.position,
            settings=self._settings(),
            arrays=slots,
        ).save(self.checkpoint)

    def _begin(self, initial: ArrayRecord, num_rounds: int) -> tuple[ArrayRecord, int]:
        """The model and the number of the first round, from the start or from a checkpoint."""
        kept = self._resumed
        if kept is None:
            self._calibrate(num_rounds)
            return initial, 1
        self.run_name, self._noise_multiplier = kept.run, kept.noise_multiplier
        self.optimizer.load_state_dict(kept.slot("optimizer"))
        average = kept.slot("average")
        self._average = [average[str(i)] for i in range(len(average))]
        if isinstance(self.clipping, AdaptiveClipping):
            self.clipping.norm = float(kept.slot("clipping")["norm"][0])
        privacy = kept.slot("privacy")
        self.epsilon_by_round = dict(
            zip(privacy["rounds"].tolist(), privacy["epsilon"].tolist(), strict=True)
        )
        model = kept.slot("model")
        expected = {name: (tuple(a.shape), a.dtype) for name, a in initial.items()}
        found = {name: (a.shape, str(a.dtype)) for name, a in model.items()}
        if found != expected:
            names = sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))
            raise CheckpointError(f"the checkpoint is of another model; its arrays {names} differ")
        return ArrayRecord({name: Array(model[name]) for name in initial}), kept.round + 1


def _told(setting: object) -> object:
    """A setting as a checkpoint compares it: the same in another process."""
    if setting is None or isinstance(setting, int | float | str):
        return setting
    if isinstance(setting, PublicMetrics) or not is_dataclass(setting):
        return type(setting).__qualname__
    return repr(setting)
