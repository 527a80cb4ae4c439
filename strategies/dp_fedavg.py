"""DPFedAvg: weighted federated averaging with client-level differential privacy."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid

from privacy import arguments
from privacy.accounting import Adjacency, Budget, CyclicGroups, Event, Sampling
from privacy.correlated_noise import CorrelatedMechanism
from privacy.mechanisms import LatticeGaussian, Randomness, SumMechanism, SystemRandomness
from strategies import _arguments
from strategies.accounted_strategy import AccountedStrategy
from strategies.checkpoint import Checkpointing, NoiseRows, settings_text
from strategies.clipping import Clipping
from strategies.correlated_rounds import CorrelatedRounds, check_correlated
from strategies.description import log_settings, privacy_report, secure_report
from strategies.metrics import Metrics
from strategies.population import ClientRegistry, Population, expected_fraction
from strategies.progress import OnRound
from strategies.replies import RecordKeys
from strategies.result import PrivacyReport
from strategies.round_cost import EvaluationCost
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.secure_aggregation.train_round import MaskedRounds
from strategies.server_optimizers import ServerOptimizer, ServerSGD
from strategies.train_round import ClearRounds, EvaluateRound, Rounds, RoundSetup
from strategies.weighting import UniformWeights, Weighting


class DPFedAvg(AccountedStrategy):
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
    (with ``secure_aggregation`` it has their sum only). Clients cannot tell who was drawn (with
    ``CyclicGroups`` of rate 1 they may). The population, the weights' cap and total and all
    settings are public or chosen without looking at clients' data.

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
    sampling : Poisson, FixedSize, Full or CyclicGroups
        Draws each round's cohort. A fixed size protects against replacing one client, the others
        against adding or removing one. ``CyclicGroups`` goes with ``BandedMF`` and ``BLT``.
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
        Default: ``LatticeGaussian()``, safe in finite precision. ``BandedMF(bands)``, ``BLT()``:
        noise that later rounds take back in part, which needs no secret cohort.
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
    on_round : OnRound, optional
        Called with a ``RoundProgress`` after each round that was paid; ``strategies.tracking`` has
        some. Default: nothing.
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

    _unopened_words = (
        "A round opened nothing: too few of its clients saw it through, or too few answered to "
        "meet max_corrupt_fraction and max_dropout_fraction; the operator's log says which. "
        "It is paid, and teaches the model nothing; result.privacy lists all such rounds."
    )

    @arguments.refuse_old_names(_arguments.OLD_NAMES)
    def __init__(
        self,
        *,
        population: Population | int,
        sampling: Sampling | CyclicGroups,
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
        on_round: OnRound | None = None,
        record_keys: RecordKeys | None = None,
        randomness: Randomness | None = None,
    ) -> None:
        _arguments.check_on_round(on_round)
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
        registry = ClientRegistry(population)
        size = registry.size
        self.sampling: Sampling | CyclicGroups = sampling
        self.weighting: Weighting = UniformWeights() if weighting is None else weighting
        self.mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self.metrics = Metrics() if metrics is None else metrics
        self.secure_aggregation = secure_aggregation
        z = _arguments.noise_multiplier(noise_multiplier, budget)
        rule = _arguments.clipping_rule(clipping)
        server_optimizer = ServerSGD() if optimizer is None else optimizer
        if isinstance(self.mechanism, CorrelatedMechanism):
            check_correlated(
                self.mechanism,
                sampling,
                clipping=rule,
                optimizer=server_optimizer,
                secure_aggregation=secure_aggregation,
            )
        elif isinstance(sampling, CyclicGroups):
            raise ValueError(
                f"sampling is {sampling}; groups that take turns go with correlated noise: give "
                f"mechanism=BandedMF({sampling.groups}) or BLT(), BandedMF(1) for independent noise"
            )
        self._round_setup = RoundSetup(
            population=size,
            sampling=sampling,
            mechanism=self.mechanism,
            weighting=self.weighting,
            metrics=self.metrics,
            record_keys=RecordKeys() if record_keys is None else record_keys,
            randomness=SystemRandomness() if randomness is None else randomness,
            sampling_rate=expected_fraction(sampling, size),
        )
        if z is not None:
            drawn = self._setup.cohort_sampling
            self.mechanism.account(noise_multiplier=z, sampling=drawn)
        guarantee = _arguments.guarantee(sampling)
        if guarantee[0] is Adjacency.REPLACE_ONE:
            _arguments.check_accounted_by_replacement(rule, self.metrics)
        if secure_aggregation is not None:
            _arguments.check_needs_no_single_reply(secure_aggregation, rule, self._setup)
        self._evaluate_round: EvaluateRound | None = None
        self._correlated: CorrelatedRounds | None = None
        super().__init__(
            registry=registry,
            ledger=ledger,
            budget=budget,
            unit_name=registry.name,
            guarantee=guarantee,
            clipping=rule,
            optimizer=server_optimizer,
            noise_multiplier=z,
            checkpointing=checkpointing,
            min_available_nodes=_arguments.available_nodes(min_available_nodes, size),
            evaluates=self.metrics.sampling is not None,
            reserve=reserve,
            on_round=on_round,
        )

    @property
    def _setup(self) -> RoundSetup:
        return self._round_setup

    def _make_rounds(self) -> Rounds:
        secure = self.secure_aggregation
        rounds = ClearRounds(self._setup) if secure is None else MaskedRounds(self._setup, secure)
        self._correlated = None
        if isinstance(self.mechanism, CorrelatedMechanism) and isinstance(
            self.sampling, CyclicGroups
        ):
            momentum = float(getattr(self._initial_optimizer, "momentum", 0.0))
            self._correlated = CorrelatedRounds(
                self._setup, self.mechanism, self.sampling, rounds, momentum=momentum
            )
            source = self.checkpointing.source
            if self._resumed is not None and source is not None:
                self._correlated.take_up(self._resumed, source, self._privacy_budget.paid.records)
            return self._correlated
        return rounds

    def _settled(self, planned: int, parameters: int) -> None:
        if self._correlated is not None:
            self._correlated.begin(
                None if self.checkpointing.path is None else Path(self.checkpointing.path),
                rounds=planned,
                parameters=parameters,
                clipping=self._run.state.clipping,
                z=self.noise_multiplier,
                listed=self._registry.listed,
            )

    def _noise_rows(self) -> NoiseRows | None:
        return None if self._correlated is None else self._correlated.settle()

    def _finished(self) -> None:
        if self._correlated is not None:
            self._correlated.forget()

    def _ended_early(self) -> None:
        if self._correlated is not None:
            self._correlated.remind()

    def _draw(self, server_round: int, grid: Grid) -> tuple[list[int], int]:
        name, drawn = f"round {server_round}, train", self._setup.cohort_sampling
        if self._correlated is None:
            return self._run.draw(name, drawn, grid)
        turn = self._correlated.begin_row()
        return self._run.draw(name, drawn, grid, may_take_part=turn)

    def _evaluation_cost(self) -> EvaluationCost:
        events = tuple(self._setup.evaluation_events)
        noise = self.metrics.evaluation_noise if events else 0.0
        return EvaluationCost(events, "metrics.evaluate", noise)

    def _noise_words(self, length: float) -> str:
        size = f"{length:.3g}·S on each round's average (z·√d/(q·W))"
        noise = f"about {size}"
        if isinstance(self.mechanism, CorrelatedMechanism) and self.mechanism.correlates:
            noise = (
                f"less in the models than of {size}; a single round has more, which later ones "
                "take back in part"
            )
        return f"Noise: {noise}; all clients together can move it by at most S, the clipping norm."

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
    def denominator(self) -> float:
        """The public number q·W by which a round's sum is divided."""
        return self._setup.denominator

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw who evaluates; nobody by default, nor once the budget is spent."""
        self._evaluate_round = None
        sampling, run = self.metrics.sampling, self._run
        if sampling is None or not self._is_evaluated(server_round):
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

    def report(self) -> PrivacyReport:
        """The guarantee as it stands, with all that the ledger holds, encrypted rounds included."""
        secure, rounds = self.secure_aggregation, self._rounds
        budget, state = self._privacy_budget, self._run.state
        return privacy_report(
            self._setup,
            budget,
            state,
            mechanism=rounds.mechanism,
            secure_aggregation=(
                None if secure is None else secure_report(secure, rounds, budget, state)
            ),
        )

    def summary(self) -> None:
        """Log the settings. All of them are public."""
        secure = self.secure_aggregation
        log_settings(self._setup, secure, self._privacy_budget, self._run.state)
