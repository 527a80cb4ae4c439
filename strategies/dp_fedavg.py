"""DPFedAvg: weighted federated averaging with client-level differential privacy."""

import copy
import math
import numbers
import os
import time
from collections.abc import Iterable, Sequence
from functools import partial
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy.typing as npt
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid, PrivacySpent
from flwr.supercore import log

from privacy import arguments
from privacy.accounting import (
    Accountant,
    AdditiveDelta,
    Adjacency,
    Budget,
    Event,
    FixedSize,
    Sampling,
)
from privacy.mechanisms import (
    LatticeGaussian,
    MaskedMechanism,
    Randomness,
    SumMechanism,
    SystemRandomness,
)
from strategies import _arguments
from strategies._refusals import (
    check_accounted_by_replacement,
    check_kinds,
    check_needs_no_single_reply,
)
from strategies.checkpoint import Checkpoint, Checkpointing, RunState, settings_text
from strategies.clipping import AdaptiveClipping, Clipping, FlatClipping
from strategies.errors import (
    BudgetError,
    NoUsableReplyError,
    PopulationExceededError,
    SpentBudgetError,
)
from strategies.lost_clients import AskedInVain, FaultLog, operator_log
from strategies.metrics import Metrics, NoisedMetrics, NoisedMetricsSum, PublicMetrics
from strategies.model_schema import ModelSchema, TrainReply
from strategies.population import ClientRegistry, Population, draw_cohort, expected_fraction
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import PendingReplies, RecordKeys, collect, read_metrics
from strategies.result import PrivacyReport, SecureAggregationReport, warn_of_large_delta
from strategies.run import AccountedRun
from strategies.secure_aggregation.dropouts import ObservedDropouts
from strategies.secure_aggregation.messages import UpdateEncoding
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.secure_aggregation.train_round import SecureTrainRound
from strategies.server_optimizers import ServerOptimizer, ServerSGD
from strategies.train_round import Multipliers, TrainRound, share_multiplier
from strategies.weighting import CappedWeights, UniformWeights, Weighting

Vector = npt.NDArray[Any]


_BUDGET, _METRICS = (
    "budget=Budget(epsilon=…, delta=…)",
    "metrics=Metrics(evaluate=…, fraction_evaluate=…)",
)
_CHECKPOINTING = "checkpointing=Checkpointing(path, resume=…)"
_NO_MINIMUM = "min_available_nodes, for which the whole round waits"
# Arguments of another name, here before or in Flower's FedAvg.
_OLD_NAMES = {
    "target_epsilon": _BUDGET,
    "target_delta": _BUDGET,
    "accountant": "nothing: it follows from the sampling",
    "iterate_average": "optimizer=ServerSGD(iterate_average=…)",
    "train_metrics": "metrics=Metrics(train=…)",
    "evaluate_metrics": _METRICS,
    "fraction_evaluate": _METRICS,
    "checkpoint": _CHECKPOINTING,
    "resume": _CHECKPOINTING,
    "arrayrecord_key": "record_keys=RecordKeys(arrays=…)",
    "configrecord_key": "record_keys=RecordKeys(config=…)",
    "weighted_by_key": "record_keys=RecordKeys(weighted_by=…)",
    "fraction_train": "sampling=Poisson(q)",
    "min_train_nodes": _NO_MINIMUM,
    "min_evaluate_nodes": _NO_MINIMUM,
    "train_metrics_aggr_fn": "metrics=Metrics(train=PublicMetrics(…) or NoisedMetrics(…))",
    "evaluate_metrics_aggr_fn": "metrics=Metrics(evaluate=PublicMetrics(…) or NoisedMetrics(…))",
}
_OWN_LEDGER = "for other clients, give a ledger of their own"
_WARNED, _REFUSED = 2, 10  # times the noise that the whole budget would have bought


class DPFedAvg(AccountedRun):
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
    clients' data; timing; metrics declared public; what the server's console and the operator's
    log say of clients that are lost or absent; that the run ended because no reply could be used;
    whether and when a round is held, where it waits for ``min_available_nodes``.

    Parameters
    ----------
    population : Population or int
        Who may be drawn: a frozen list of identities, or the number N of all clients there are.
        With a list, others are ignored. With a number nobody is turned away: a run does not
        begin where more clients are connected, and stops when one too many comes.
    sampling : Poisson, FixedSize or Full
        How each round's cohort is drawn, constant for a run. Poisson and full participation
        protect against adding or removing one client, a fixed size against replacing one.
    clipping : float, FlatClipping, PerLayerClipping or AdaptiveClipping
        The clipping norm S, or how it is found.
    budget : Budget
        ε and δ of the population over all runs. A round that would pass it is not begun: the
        remaining rounds send nothing, and the result says so. A run whose first round would pass
        it is refused by ``start``, as is one for which earlier runs have left so little that
        calibrated noise would have to be ten times that of a first run. With ``math.inf`` as ε,
        and a noise multiplier, there is no limit.
    ledger : path-like
        The ledger of this population, shared by all its runs; made if it is not there. Each
        round's event is durable in it before the round's noisy result is used. An absolute path,
        or one that begins with ``~``: a relative one would lie where Flower's SuperLink was
        started.
    noise_multiplier : float, optional
        z of a round: the noise on the sum has standard deviation z·S. Zero: no noise and ε = ∞.
        If left out, it is calibrated in ``start`` so that all rounds fit the budget.
    reserve : sequence of Event
        What will be paid from that budget after training, as ``EncryptedRound.event`` tells it;
        the rounds leave room for it.
    weighting : Weighting
        ``UniformWeights()`` or ``CappedWeights(...)``.
    mechanism : SumMechanism
        ``LatticeGaussian()`` (safe in finite precision) or ``ContinuousGaussian()``.
    optimizer : ServerOptimizer, optional
        What the server does with the noisy average. Default: ``ServerSGD()``, plain averaging.
    metrics : Metrics, optional
        What is told of clients' metrics, and how many clients evaluate. Default: nothing, nobody.
    checkpointing : Checkpointing, optional
        Where each round's released state is kept, and from where to go on. Default: nowhere.
    min_available_nodes : int
        How many nodes of the population must be connected before a round begins. A round that
        finds hardly anybody there, because the server or its network has just come back, costs
        as much privacy as any other and teaches nothing. That a round is held tells that so many
        are connected, and ε does not cover it; with 0 no round waits.
    secure_aggregation : SecureAggregation, optional
        Open sums only, of enough clients. Every client then needs ``SecureAggregationMod``.
        Default: the server sees each update.
    record_keys : RecordKeys, optional
        Keys in the records, as in Flower's ``FedAvg``.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests; it voids all privacy, and
        the result says so.

    Raises
    ------
    TypeError
        If an argument is of the wrong kind.
    ValueError
        If settings are out of range or contradict each other.

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

    @arguments.refuse_old_names(_OLD_NAMES)
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
        check_kinds(
            sampling=sampling,
            clipping=clipping,
            budget=budget,
            reserve=reserve,
            weighting=weighting,
            mechanism=mechanism,
            optimizer=optimizer,
            metrics=metrics,
            checkpointing=checkpointing,
            record_keys=record_keys,
            secure_aggregation=secure_aggregation,
            randomness=randomness,
        )
        if isinstance(clipping, numbers.Real):
            clipping = float(clipping)
        ledger = _arguments.file_path("ledger", ledger)
        self.metrics = Metrics() if metrics is None else metrics
        self.checkpointing = Checkpointing() if checkpointing is None else checkpointing
        self.record_keys = RecordKeys() if record_keys is None else record_keys
        if noise_multiplier is not None:
            noise_multiplier = arguments.number("noise_multiplier", noise_multiplier)
        self._register = ClientRegistry(population)
        size = self._register.size
        self.sampling: Sampling = sampling
        self._fraction = expected_fraction(sampling, size)
        # Copies: a run changes them, and the caller's may serve another run.
        self._clipping_at_first: Clipping = (
            FlatClipping(clipping) if isinstance(clipping, float) else copy.deepcopy(clipping)
        )
        self.weighting: Weighting = UniformWeights() if weighting is None else weighting
        self._expected_cohort = self._fraction * size
        self._denominator = self._fraction * self.weighting.total(size)
        self.mechanism: SumMechanism = LatticeGaussian() if mechanism is None else mechanism
        self._optimizer_at_first: ServerOptimizer = (
            ServerSGD() if optimizer is None else copy.deepcopy(optimizer)
        )
        self.adjacency = (
            Adjacency.REPLACE_ONE
            if isinstance(sampling, FixedSize)
            else Adjacency.ADD_OR_REMOVE_ONE
        )
        self.secure_aggregation = secure_aggregation
        self.accountant: Accountant = "rdp" if isinstance(sampling, FixedSize) else "pld"
        if noise_multiplier is None and budget.epsilon == math.inf:
            raise ValueError(
                "noise_multiplier is not set and budget.epsilon is inf; give the noise, or the ε "
                "from which start() calibrates it"
            )
        if noise_multiplier is not None:
            self.mechanism.account(noise_multiplier=noise_multiplier, sampling=sampling)
        self._given_noise_multiplier = noise_multiplier
        self._state = self._fresh_state()
        # As Python's own numbers, which any process writes alike into a checkpoint.
        self.budget = Budget(float(budget.epsilon), float(budget.delta))
        if self.adjacency is Adjacency.REPLACE_ONE:
            check_accounted_by_replacement(clipping=self.clipping, metrics=self.metrics)
        if secure_aggregation is not None:
            check_needs_no_single_reply(
                secure_aggregation,
                mechanism=self.mechanism,
                weighting=self.weighting,
                clipping=self.clipping,
                metrics=self.metrics,
                expected_cohort=self._expected_cohort,
            )
        self._secure_number = 0
        self._masked: MaskedMechanism | None = None
        self._presence = (
            AdditiveDelta(0.0)
            if secure_aggregation is None
            else secure_aggregation.presence(size, sampling)
        )
        wanted = arguments.whole("min_available_nodes", min_available_nodes, least=0)
        if wanted > max(size, 2):
            raise ValueError(
                f"min_available_nodes is {wanted}, more than the population of {size}; no round "
                "would ever begin"
            )
        self.min_available_nodes = min(wanted, size)
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self._train_round: TrainRound | SecureTrainRound | None = None
        self._train_asked = self._evaluate_asked = PendingReplies([])
        resume = self.checkpointing.resume
        self._resumed = None if resume is None else self._load(Path(resume))
        self._begin_watch()
        self._spending = PrivacyBudget(
            ledger,
            population=self._register.name,
            adjacency=self.adjacency,
            accountant=self.accountant,
            budget=self.budget,
            private=self._randomness.private,
            at_least=None if self._resumed is None else self._resumed.position,
            reserved=reserve,
        )

    def _load(self, path: Path) -> Checkpoint:
        kept = Checkpoint.load(path)
        kept.check_settings(self._settings(), path)
        return kept

    # The state of the run ---------------------------------------------------------------------

    def _fresh_state(self) -> RunState:
        return RunState.fresh(
            self._clipping_at_first, self._optimizer_at_first, self._given_noise_multiplier
        )

    def _begin_watch(self) -> None:
        secure = self.secure_aggregation
        self._observed_dropouts = ObservedDropouts(
            1.0 if secure is None else secure.dropout_probability
        )
        self._watch, size = FaultLog(), self._register.size
        learned = self._resumed is not None and RunState.has_learned(self._resumed)
        self._train_in_vain = AskedInVain(size, any_used=learned)
        self._evaluate_in_vain = AskedInVain(size, any_used=learned)
        self._evaluate_sampling = self.metrics.sampling

    @property
    def clipping(self) -> Clipping:
        """The clipping, with this round's norm."""
        return self._state.clipping

    @property
    def optimizer(self) -> ServerOptimizer:
        """The server's optimizer, with its moments."""
        return self._state.optimizer

    @property
    def epsilon_by_round(self) -> dict[int, float]:
        """ε after each round of this run."""
        return self._state.epsilon_by_round

    def _settings(self) -> str:
        return settings_text(
            {
                "population": self._register.name,
                "sampling": self.sampling,
                "clipping": self._clipping_at_first,
                "weighting": self.weighting,
                "mechanism": self.mechanism.name,
                "optimizer": self._optimizer_at_first,
                "noise_multiplier": self._given_noise_multiplier,
                "budget": self.budget,
                "metrics.train": self.metrics.train,
                "metrics.evaluate": self.metrics.evaluate,
                "metrics.fraction_evaluate": self.metrics.fraction_evaluate,
                "secure_aggregation": self.secure_aggregation,
            }
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
        if self._state.noise_multiplier is None:
            raise ValueError("noise_multiplier is calibrated in start(); it is not known yet")
        return self._state.noise_multiplier

    def _train_release(self, noise_multiplier: float) -> Event:
        """What one round's model costs with this z."""
        if self._masked is None:
            return self.mechanism.account(noise_multiplier=noise_multiplier, sampling=self.sampling)
        return self._masked.account(
            parameters=self._parameters, noise_multiplier=noise_multiplier, sampling=self.sampling
        )

    def _train_events(self) -> list[Event]:
        """What a round costs, whether it opens or not."""
        release = self._train_release(self.noise_multiplier)
        return [release, self._presence] if self._presence.delta else [release]

    def _measure(self, arrays: ArrayRecord) -> ModelSchema:
        """Look at the model: what a masked sum costs can depend on its size."""
        schema = ModelSchema(arrays)
        if self.secure_aggregation is not None:
            self._parameters = sum(array.size for array in schema.arrays)
            self._masked = self.secure_aggregation.mechanism(self._parameters)
        return schema

    def _evaluate_events(self) -> list[Event]:
        rule, sampling = self.metrics.evaluate, self._evaluate_sampling
        if sampling is None or not isinstance(rule, NoisedMetrics):
            return []
        event = self.mechanism.account(noise_multiplier=rule.noise_multiplier, sampling=sampling)
        return [event]

    def _multipliers(self) -> Multipliers:
        """Share the round's z among the sum of updates and what else its cohort releases."""
        z = self.noise_multiplier
        others = []
        count = None
        if isinstance(self.clipping, AdaptiveClipping):
            sigma = self.clipping.count_sigma(
                noise_multiplier=z, expected_cohort=self._expected_cohort
            )
            count = 2 * sigma  # a bit moves the centred count by 1/2
            others.append(count)
        if isinstance(self.metrics.train, NoisedMetrics):
            others.append(self.metrics.train.noise_multiplier)
        return Multipliers(share_multiplier(z, others), count)

    def _calibrate(self, initial: ArrayRecord, rounds: int) -> None:
        self._measure(initial)
        given = self._state.noise_multiplier is not None
        if self.secure_aggregation is not None and self.budget.epsilon < math.inf:
            self.secure_aggregation.check_presence(
                self._register.size,
                self.sampling,
                rounds=1 if given else rounds,  # a run with noise of its own may end early
                delta=self.budget.delta,
                paid=[record.event for record in self._spending.ledger.records],
            )
        if given:
            return
        besides = [*self._evaluate_events(), self._presence]
        self._state.noise_multiplier = self._spending.calibrate(
            self.sampling, rounds=rounds, release=self._train_release, besides=besides * rounds
        )
        if self._state.noise_multiplier is None:
            taken, remedies = self._beside_training(rounds)
            if math.isfinite(self._spending.epsilon_with(besides * rounds)):
                remedies.append("raise budget.epsilon")
            raise (SpentBudgetError if self._spending.ledger.records else BudgetError)(
                f"no noise is enough for {_rounds(rounds)} within {self._budget_text()}"
                f"{', of which ' * bool(taken)}{'; '.join(taken)}. The run was not begun: "
                f"{'; or '.join(remedies)}"
            )
        self._check_what_is_left(self._state.noise_multiplier, initial, rounds)

    def _beside_training(self, rounds: int) -> tuple[list[str], list[str]]:
        """What takes from the budget beside the models of so many rounds, and what would help."""
        taken, remedies = [], []
        if evaluated := self._evaluate_events() * rounds:
            each = self.metrics.evaluate
            z = each.noise_multiplier if isinstance(each, NoisedMetrics) else math.nan
            taken.append(
                f"metrics.evaluate (noise_multiplier {z:g}, in {_rounds(rounds)}) takes ε = "
                f"{self._spending.cost(evaluated):.6g}"
            )
            remedies.append("give metrics.evaluate a larger noise_multiplier")
        if reserved := self._spending.reserved:
            taken.append(
                f"what is reserved for after training takes ε = {self._spending.cost(reserved):.6g}"
            )
            remedies.append("reserve less")
        if self._spending.ledger.records:
            taken.append(self._paid_text())
            remedies.append(_OWN_LEDGER)
        return taken, remedies

    def _check_what_is_left(self, z: float, initial: ArrayRecord, rounds: int) -> None:
        """Refuse to spend the last of a budget on noise, and warn where little of it is left.

        Raises
        ------
        SpentBudgetError
            If the noise has to be ten times what the whole budget would have bought.
        """
        if not self._spending.ledger.records:
            return

        def bought_alone(times: float) -> bool:
            due = [self._train_release(z / times), self._presence, *self._evaluate_events()]
            return self._spending.affordable_alone(due * rounds)

        left = (
            f"{self._paid_text()} of {self._budget_text()}; what is left buys {_rounds(rounds)} "
            f"with noise_multiplier = {z:.3g}, on each average "
            f"{self._noise_beside_norm(initial):.3g} times the clipping norm"
        )
        if bought_alone(_REFUSED):
            raise SpentBudgetError(
                f"{left}, more than {_REFUSED} times the noise of a first run. Raise "
                "budget.epsilon; or, for other clients, give a ledger of their own; or set "
                "noise_multiplier yourself, and the run ends when the budget does"
            )
        if bought_alone(_WARNED):
            log(WARNING, "%s, more than %d times the noise of a first run.", left, _WARNED)

    def _check_first_round(self, arrays: ArrayRecord, rounds: int) -> None:
        """Refuse a run that can play no round, and warn where it cannot play all of them.

        A run that was resumed after its first round has a model to keep: it is not refused.

        Raises
        ------
        SpentBudgetError
            If not one round fits what earlier runs have left of the budget.
        BudgetError
            If not one round fits the whole of it.
        """
        if self.budget.epsilon == math.inf or rounds < 1:
            return
        self._measure(arrays)
        due = [*self._train_events(), *self._evaluate_events()]
        fitting = self._spending.rounds_affordable(due, rounds)
        if fitting == rounds:
            return
        given = f"noise_multiplier is {self.noise_multiplier:.6g}, with which"
        if fitting or self.epsilon_by_round:
            log(
                WARNING,
                "%s only %d of %d rounds fit what is left of %s: the run ends after them.",
                given,
                fitting,
                rounds,
                self._budget_text(),
            )
            return
        needed = self._spending.epsilon_with(due)
        taken, others = self._beside_training(1)
        remedies = self._noise_needed(rounds) or others
        if math.isfinite(needed):
            remedies.append(f"raise budget.epsilon to {_rounded_up(needed)} or more")
        if self._spending.ledger.records and _OWN_LEDGER not in remedies:
            remedies.append(_OWN_LEDGER)
        raise (SpentBudgetError if self._spending.ledger.records else BudgetError)(
            f"{given} not one round fits {self._budget_text()}"
            f"{', of which ' * bool(taken)}{'; '.join(taken)}: the first would bring ε to "
            f"{needed:.6g}. The run was not begun: "
            f"{'; or '.join(remedies) or 'neither more noise nor a larger ε helps at this δ'}"
        )

    def _noise_needed(self, rounds: int) -> list[str]:
        """With which z all rounds would fit what is left, and with which one would."""
        besides = [*self._evaluate_events(), self._presence]
        remedies = []
        for number, words in ({rounds: f"all {rounds} rounds"} | {1: "one round"}).items():
            z = self._spending.calibrate(
                self.sampling,
                rounds=number,
                release=self._train_release,
                besides=besides * number,
            )
            if z is not None:
                remedies.append(f"give a noise_multiplier of {_rounded_up(z)} or more for {words}")
        return remedies

    def _paid_text(self) -> str:
        return (
            f"earlier runs on the ledger {self._spending.ledger.path} have paid ε = "
            f"{self.epsilon():.6g}"
        )

    def _noise_beside_norm(self, arrays: ArrayRecord) -> float:
        """How long the noise on a round's average is, z·√d/(q·W), in clipping norms S."""
        size = sum(array.size for array in ModelSchema(arrays).arrays)
        return self._multipliers().update * math.sqrt(size) / self._denominator

    def _say_noise(self, arrays: ArrayRecord, rounds: int) -> None:
        warn_of_large_delta(self.budget.delta, self._register.size)
        noise = self._noise_beside_norm(arrays)
        log(
            INFO,
            "\t     Noise: on each round's average about %.3g times the clipping norm S, which is "
            "as far as all clients together can move it (z·√d/(q·W)).",
            noise,
        )
        over_all = noise / math.sqrt(rounds)
        if over_all > 1:
            log(
                WARNING,
                "The noise drowns what the clients teach: even over the whole run it carries the "
                "model about %.2g times as far as they can. More clients or a higher sampling "
                "rate, a smaller model, a larger ε or more rounds would help.",
                over_all,
            )

    def _budget_text(self) -> str:
        return f"the budget of ε = {self.budget.epsilon:g} at δ = {self.budget.delta:g}"

    def _stop(self, why: str) -> None:
        self._state.stopped = why
        log(WARNING, "Stopping: %s.", why)

    def _why_in_vain(self, number: int) -> str:
        return f"round {number} asked clients and could use no reply ({self._watch.reasons()})"

    def _end_unpaid(self, number: int) -> None:
        """End the run before a round that used no reply is paid.

        Raises
        ------
        NoUsableReplyError
            If no reply was ever used in this run.
        """
        why = f"{self._why_in_vain(number)}; it was not paid for"
        if not self._train_in_vain.any_used:
            raise NoUsableReplyError(
                f"{why}. Nothing was learned yet: {self._watch.remedy()}, and begin again with the "
                "budget that is left"
            )
        self._stop(why)

    def epsilon(self) -> float:
        """ε of everything this population has paid by now, over all runs."""
        return self._spending.epsilon()

    def report(self) -> PrivacyReport:
        """The guarantee of this run as it stands, with all that its ledger holds by now.

        After an :class:`EncryptedRound` on the same ledger it counts that too.
        """
        z, secure = self._state.noise_multiplier, self.secure_aggregation
        return PrivacyReport(
            epsilon=self.epsilon(),
            delta=self.budget.delta,
            noise_multiplier=math.inf if z is None else z,
            clipping_norm=self.clipping.norm,
            sampling=self.sampling.kind,
            sampling_rate=self._fraction,
            rounds=len(self.epsilon_by_round),
            population=self._register.size,
            adjacency=self.adjacency.value,
            accountant=self.accountant,
            mechanism=self.mechanism.name if secure is None else secure.mechanism(1).name,
            private=self._randomness.private and z != 0,
            stopped=self._state.stopped,
            epsilon_by_round=dict(self.epsilon_by_round),
            secure_aggregation=self._secure_report(),
            epsilon_without_amplification=self._spending.epsilon_without_amplification(),
        )

    def _secure_report(self) -> SecureAggregationReport | None:
        secure = self.secure_aggregation
        if secure is None:
            return None
        return SecureAggregationReport(
            server=secure.adversary.server.value,
            max_corrupt_fraction=secure.adversary.max_corrupt_fraction,
            min_clients=secure.min_clients,
            max_dropout_fraction=secure.max_dropout_fraction,
            noise_placement=secure.noise_placement,
            epsilon_against_server=(
                self._spending.epsilon_against_server()
                if secure.noise_placement == "distributed"
                else math.inf
            ),
            dropout_probability=secure.dropout_probability,
            presence_delta=self._presence.delta,
            aborted_rounds=tuple(self._state.aborted),
        )

    def privacy_spent(self) -> PrivacySpent:
        """What this population has paid, as Flower's own private strategies tell it."""
        return PrivacySpent(
            epsilon=self.epsilon(),
            delta=self.budget.delta,
            num_releases=len(self._spending.paid.records),
            accounting_method=self.accountant,
        )

    # Flower's hooks ---------------------------------------------------------------------------

    def summary(self) -> None:
        """Log the settings. All of them are public."""
        size = self._register.size
        log(INFO, "\t├──> Privacy of every client (%s):", self.adjacency.value)
        limit = self.budget.epsilon
        epsilon = "no limit" if limit == math.inf else f"at most {limit:g}"
        log(INFO, "\t│\t├── ε: %s at δ = %g (%s)", epsilon, self.budget.delta, self.accountant)
        if self._state.noise_multiplier is not None:
            log(INFO, "\t│\t├── Noise multiplier: %.4f", self._state.noise_multiplier)
        log(INFO, "\t│\t├── Clipping: %s", self.clipping)
        log(INFO, "\t│\t├── Mechanism: %s", self.mechanism.name)
        log(INFO, "\t│\t└── Ledger: %s", self._spending.ledger.path)
        log(INFO, "\t├──> Sampling: %s of a population of %d", self.sampling, size)
        log(INFO, "\t├──> Weights: %s", self.weighting)
        log(INFO, "\t├──> Secure aggregation: %s", self.secure_aggregation or "off")
        log(INFO, "\t└──> Server optimizer: %s", self.optimizer)
        if not self._randomness.private:
            log(WARNING, "The randomness is seeded: this run is NOT private.")

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw the cohort and make its messages; none once the budget is spent."""
        self._train_round = None
        schema = self._measure(arrays)
        if self._state.stopped is None and not self._spending.affordable(
            [*self._train_events(), *self._evaluate_events()]
        ):
            self._stop(f"round {server_round} would pass {self._budget_text()}")
        if self._state.stopped is not None:
            return []
        nodes, drawn = self._draw(f"round {server_round}, train", self.sampling, grid)
        if self._ended():  # the draw found a client too many
            return []
        content = self._content(server_round, arrays, config)
        if self.secure_aggregation is not None:
            secure = self._secure_round(server_round, schema, self.secure_aggregation, grid)
            self._train_round = secure
            return secure.begin(nodes, content, drawn=drawn)
        self._train_round = TrainRound(
            server_round,
            schema,
            self.clipping.geometry(schema.names),
            self._multipliers(),
            mechanism=self.mechanism,
            weighting=self.weighting,
            weighted_by_key=self.record_keys.weighted_by,
            randomness=self._randomness,
        )
        messages = _addressed(content, MessageType.TRAIN, nodes)
        self._train_asked = PendingReplies(messages)
        return messages

    def _secure_round(
        self, number: int, schema: ModelSchema, settings: SecureAggregation, grid: Grid
    ) -> SecureTrainRound:
        # Clients are in one round of a run, the one with the highest number. So a resumed run is
        # the same one to them, and ends the round in which its server died; the clock counts, for
        # that round's number died with it.
        self._secure_number = max(self._secure_number + 1, time.time_ns() // 1_000_000)
        encoding = UpdateEncoding(
            geometry=self.clipping.geometry(schema.names),
            weight_cap=float(self.weighting.cap)
            if isinstance(self.weighting, CappedWeights)
            else 0.0,
            weighted_by=self.record_keys.weighted_by,
            mechanism=settings.mechanism(self._parameters),
            noise_multiplier=self.noise_multiplier,
        )
        return SecureTrainRound(
            number,
            schema,
            encoding,
            settings=settings,
            run=self._state.name,
            sequence=self._secure_number,
            randomness=self._randomness,
            grid=grid,
            observed=self._observed_dropouts,
            watch=self._watch,
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Bound, sum, pay, add noise, step.

        The event is durable in the ledger before the noisy sum exists. An empty cohort is a
        round like any other. A round that asked clients and can use nothing of what came ends the
        run, before it is paid.

        Raises
        ------
        NoUsableReplyError
            If the run ends so, never used a reply, and goes on from no round that was opened.
        """
        this = self._train_round
        if this is None or this.number != server_round:
            return None, None
        self._train_round = None
        if isinstance(this, SecureTrainRound):
            return self._aggregate_masked(this, replies), None
        rule = self.metrics.train
        noised = self._open_metrics(rule)
        public: list[MetricRecord | None] = []
        name = f"round {server_round}, train"
        left_out = partial(self._watch.metrics_left_out, name)

        def use(read: tuple[TrainReply, float]) -> None:
            content, weight = read
            this.add(content, weight)
            if noised is not None:
                if fault := noised.add(content.metrics):
                    self._watch.metrics_counted_as_middle(name, fault)
            elif rule is not None:
                public.append(content.metrics)

        gathered = collect(
            name, self._train_asked, replies, read=this.read, use=use, watch=self._watch
        )
        if self._train_in_vain.add(gathered):
            self._end_unpaid(server_round)
            return None, None
        self._pay(server_round, *self._train_events())

        update = _divided(this.release(), self._denominator)
        fraction = this.unclipped_fraction(self._expected_cohort)
        if isinstance(self.clipping, AdaptiveClipping) and fraction is not None:
            self.clipping.follow(fraction)
        stepped = self.optimizer.step(this.schema.arrays, update)
        metrics = None
        if noised is not None:
            metrics = noised.release(self._expected_cohort)
        elif isinstance(rule, PublicMetrics):
            metrics = rule.release(public, self.record_keys.weighted_by, left_out=left_out)
        self.epsilon_by_round[server_round] = self.epsilon()
        return this.schema.record(stepped), metrics

    def _aggregate_masked(self, this: SecureTrainRound, replies: Iterable[Message]) -> ArrayRecord:
        """Pay, open the sum, step. A round that opens nothing is paid as well.

        It leaves the model as it was, or steps it by noise alone (``SecureTrainRound.release``).
        """
        this.gather(replies)
        self._pay(this.number, *self._train_events())
        update = this.release()
        self.epsilon_by_round[this.number] = self.epsilon()
        moved = this.aborted and update is not None
        in_vain = self._train_in_vain.add(this.gathered, moved=moved)
        if this.aborted:
            self._state.aborted.append(this.number)
            self._watch.once(
                "A round opened nothing: too few of its clients saw it through, or no plan "
                "withstands the adversary and the dropouts with those who answered; the operator's "
                "log says which. It is paid, and teaches the model nothing; result.privacy lists "
                "all such rounds."
            )
            if in_vain:
                self._stop(self._why_in_vain(this.number))
        if update is None:
            return this.schema.record(this.schema.arrays)
        _divided(update, self._denominator)
        return this.schema.record(self.optimizer.step(this.schema.arrays, update))

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Draw who evaluates; nobody by default, nor once the budget is spent."""
        self._evaluate_asked = PendingReplies([])
        if self._evaluate_sampling is None or self._state.stopped is not None:
            return []
        nodes, _ = self._draw(f"round {server_round}, evaluate", self._evaluate_sampling, grid)
        content = self._content(server_round, arrays, config)
        messages = _addressed(content, MessageType.EVALUATE, nodes)
        self._evaluate_asked = PendingReplies(messages)
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Release the evaluators' metrics, noised and paid, or as they are if declared public."""
        if self._evaluate_sampling is None or self._state.stopped is not None:
            return None
        rule = self.metrics.evaluate
        noised = self._open_metrics(rule)
        public: list[MetricRecord] = []
        name = f"round {server_round}, evaluate"
        left_out = partial(self._watch.metrics_left_out, name)

        def use(metrics: MetricRecord) -> None:
            if noised is None:
                public.append(metrics)
            elif fault := noised.add(metrics):
                self._watch.metrics_counted_as_middle(name, fault)

        gathered = collect(
            name, self._evaluate_asked, replies, read=read_metrics, use=use, watch=self._watch
        )
        if self._evaluate_in_vain.add(gathered):
            self._evaluate_sampling = None
            self._watch.once(
                f"{name} asked clients and could use no reply ({self._watch.reasons()}). Nobody "
                "is asked to evaluate for the rest of the run, and nothing is paid for it."
            )
            return None
        if noised is not None:
            self._pay(server_round, *self._evaluate_events())
            self.epsilon_by_round[server_round] = self.epsilon()
            return noised.release(self.metrics.fraction_evaluate * self._register.size)
        if isinstance(rule, PublicMetrics):
            return rule.release(public, self.record_keys.weighted_by, left_out=left_out)
        return None

    def _pay(self, server_round: int, *events: Event) -> None:
        """Write events into the ledger; they are durable when this returns."""
        for event in events:
            self._spending.pay(event, run=self._state.name, number=server_round)

    def _open_metrics(self, rule: PublicMetrics | NoisedMetrics | None) -> NoisedMetricsSum | None:
        if not isinstance(rule, NoisedMetrics):
            return None
        return rule.open(self.mechanism, self._randomness)

    def _draw(self, name: str, sampling: Sampling, grid: Grid) -> tuple[list[int], int]:
        """Draw over the whole population, then look who is there; never draw again.

        Who is there of how many.
        """
        drawn = draw_cohort(sampling, self._register.size, randomness=self._randomness)
        node_of, ignored = self._located(grid)
        self._watch.connected(node_of)
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
        return nodes, len(drawn)

    def _content(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> RecordDict:
        config["server-round"] = server_round
        return RecordDict({self.record_keys.arrays: arrays, self.record_keys.config: config})

    def _located(self, grid: Grid) -> tuple[dict[int, int], int]:
        """Who is connected. One client too many stops the run, or keeps it from beginning."""
        try:
            return self._register.locate(grid.get_nodes())
        except PopulationExceededError as error:
            if not self.epsilon_by_round:
                raise
            self._stop(str(error))
            return {}, 0

    def _connected(self, grid: Grid) -> int:
        return len(self._located(grid)[0])


def _rounds(number: int, more: str = "") -> str:
    return f"{number} {more}round" + "s" * (number != 1)


def _rounded_up(value: float) -> str:
    """A bound that still holds as it is printed."""
    return f"{math.ceil(value * 1e4) / 1e4:.4f}"


def _addressed(content: RecordDict, message_type: str, nodes: Iterable[int]) -> list[Message]:
    return [Message(content=content, message_type=message_type, dst_node_id=node) for node in nodes]


def _divided(arrays: list[Vector], denominator: float) -> list[Vector]:
    """Divide in place."""
    for array in arrays:
        array /= denominator
    return arrays
