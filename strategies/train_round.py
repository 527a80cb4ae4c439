"""A round of training or of evaluation: its messages, its sums, its release."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid

from privacy.accounting import (
    AdditiveDelta,
    CyclicGroups,
    Event,
    Full,
    Sampling,
    joint_noise_multiplier,
)
from privacy.correlated_noise import CorrelatedMechanism
from privacy.mechanisms import ClippingGeometry, LatticeNoise, Randomness, SumMechanism
from privacy.mechanisms.errors import UpdateError
from strategies.clipping import AdaptiveClipping, Clipping
from strategies.errors import Fault, ReplyError
from strategies.lost_clients import FaultLog
from strategies.metrics import MetricFault, Metrics, NoisedMetrics, NoisedMetricsSum, PublicMetrics
from strategies.model_schema import ModelSchema, TrainReply
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import PendingReplies, RecordKeys, collect, read_metrics
from strategies.run import Run
from strategies.weighting import Weighting

Vector = npt.NDArray[Any]


@dataclass(frozen=True)
class RoundOutcome:
    """The release of a round.

    Attributes
    ----------
    update : list of ndarray or None
        The noisy sum of updates; None if the model stays as it is.
    metrics : MetricRecord or None
        Of the clients, as the rule for them allows.
    unclipped_fraction : float or None
        The noisy fraction of clients that were not clipped, where the norm adapts.
    opened : bool
        Whether clients' updates are in the sum.
    in_vain : str
        Why the run ends with this round: too many clients gave no usable reply to go on, or too few
        are left. Empty where it goes on.
    """

    update: list[Vector] | None = None
    metrics: MetricRecord | None = None
    unclipped_fraction: float | None = None
    opened: bool = True
    in_vain: str = ""


class Round(Protocol):
    """One round. Replies go in, noisy sums come out, once, after they were paid."""

    number: int
    schema: ModelSchema

    @property
    def is_paid(self) -> bool:
        """Whether its events are due, once its replies were gathered."""

    def begin(self, nodes: Iterable[int], content: RecordDict, *, drawn: int) -> list[Message]:
        """The messages of the round.

        Parameters
        ----------
        nodes : iterable of int
            Those of the cohort who are connected.
        content : RecordDict
            The model and the round's configuration.
        drawn : int
            How large the cohort is.
        """

    def gather(self, replies: Iterable[Message]) -> bool:
        """Bound the replies and add them up.

        Returns
        -------
        bool
            False if the round is not to be paid, since too many clients gave no usable reply to go
            on. True where only the opened sum can show it.
        """

    def release(self) -> RoundOutcome:
        """Add the noise. The round is paid by now."""


class Setup(Protocol):
    """Settings that all rounds of a strategy share, as its cost is computed from them."""

    @property
    def population(self) -> int:
        """N, of those whose privacy is accounted."""

    @property
    def unit(self) -> str:
        """Whom it protects: "client", "person" or "row"."""

    @property
    def sampling(self) -> Sampling | CyclicGroups:
        """How they are drawn."""

    @property
    def sampling_rate(self) -> float:
        """With which share of them a round is expected."""

    @property
    def cohort_sampling(self) -> Sampling:
        """How one of them is drawn where its turn has come."""

    @property
    def record_keys(self) -> RecordKeys:
        """Keys in the records."""

    @property
    def randomness(self) -> Randomness:
        """The server's."""

    @property
    def expected_cohort(self) -> float:
        """How many of them a round draws on average."""

    @property
    def denominator(self) -> float:
        """The public number by which a sum is divided."""

    def noise_shares(self, clipping: Clipping, z: float) -> tuple[float, float | None]:
        """See :meth:`RoundSetup.noise_shares`."""


@dataclass(frozen=True)
class RoundSetup:
    """Settings that all rounds of a strategy share.

    Attributes
    ----------
    population : int
        N.
    sampling, mechanism, weighting, metrics, record_keys, randomness
        As given to the strategy.
    sampling_rate : float
        q, the public fraction of the population that a round is expected to draw.
    expected_cohort : float
        q·N.
    denominator : float
        q·W, by which a sum is divided.
    """

    population: int
    sampling: Sampling | CyclicGroups
    mechanism: SumMechanism
    weighting: Weighting
    metrics: Metrics
    record_keys: RecordKeys
    randomness: Randomness
    sampling_rate: float
    expected_cohort: float = field(init=False)
    denominator: float = field(init=False)

    def __post_init__(self) -> None:
        total = self.weighting.total(self.population)
        object.__setattr__(self, "expected_cohort", self.sampling_rate * self.population)
        object.__setattr__(self, "denominator", self.sampling_rate * total)

    @property
    def unit(self) -> str:
        """Whom it protects."""
        return "client"

    def noise_shares(self, clipping: Clipping, z: float) -> tuple[float, float | None]:
        """The noise multipliers of a round's sums, which together are one release with z.

        Returns
        -------
        float, float or None
            Of the sum of updates, and of the sum of clipping bits where the norm adapts.

        Raises
        ------
        ValueError
            If the other sums alone spend more than the round may.
        """
        others, count = [], None
        if isinstance(clipping, AdaptiveClipping):
            sigma = clipping.count_sigma(noise_multiplier=z, expected_cohort=self.expected_cohort)
            count = 2 * sigma  # a bit moves the centred count by 1/2
            others.append(count)
        if isinstance(self.metrics.train, NoisedMetrics):
            others.append(self.metrics.train.noise_multiplier)
        return _remaining(z, others), count

    @property
    def cohort_sampling(self) -> Sampling:
        """How a client is drawn where its turn has come, as its release is accounted."""
        return self.sampling.within if isinstance(self.sampling, CyclicGroups) else self.sampling

    @property
    def evaluation_events(self) -> list[Event]:
        """The cost of a round of evaluation."""
        rule, sampling = self.metrics.evaluate, self.metrics.sampling
        if sampling is None or not isinstance(rule, NoisedMetrics):
            return []
        if isinstance(self.sampling, CyclicGroups) and self.sampling.rate == 1:
            sampling = Full()  # where no cohort is secret, neither is that of evaluators
        z = rule.noise_multiplier
        return [self.mechanism.account(noise_multiplier=z, sampling=sampling)]

    def train_metrics(self, name: str, run: Run) -> "RoundMetrics":
        """The sum of the metrics of training, empty."""
        return RoundMetrics(self.metrics.train, name, self, self.expected_cohort, run.faults)

    def evaluation_metrics(self, name: str, run: Run) -> "RoundMetrics":
        """The sum of the metrics of evaluation, empty."""
        expected = self.metrics.fraction_evaluate * self.population
        return RoundMetrics(self.metrics.evaluate, name, self, expected, run.faults)


class Rounds(Protocol):
    """Makes the rounds of a run, in the clear or masked, and gives their cost."""

    @property
    def turns(self) -> int:
        """How many groups of clients take turns; 1 where everybody may be in every round."""

    def due(self, event: Event, ahead: int = 0) -> Event:
        """The event as it is paid in this round, or so many rounds ahead."""

    def noise_left(self, rounds: int) -> float:
        """How much noise is in the last model of so many rounds, beside independent noise."""

    @property
    def presence(self) -> AdditiveDelta:
        """Charged for each: one client's presence can decide whether it opens."""

    @property
    def mechanism(self) -> str:
        """The name of the mechanism that adds the noise."""

    def account(self, noise_multiplier: float, parameters: int) -> Event:
        """The event of a round's model of so many parameters."""

    def check_presence(self, rounds: int, budget: PrivacyBudget) -> None:
        """Refuse rounds whose charges for presence together pass δ."""

    def open(self, number: int, schema: ModelSchema, run: Run, grid: Grid) -> Round:
        """A new round, with the norm and the noise multiplier of the run's state."""


class EveryoneInEveryRound:
    """Of rounds that anybody may be drawn for."""

    turns: ClassVar[int] = 1

    def due(self, event: Event, ahead: int = 0) -> Event:
        """The event itself."""
        return event

    def noise_left(self, rounds: int) -> float:
        """Noise of different rounds is independent."""
        return 1.0


class RoundMetrics:
    """Clients' metrics in one round, added up as they come and released as a rule allows."""

    def __init__(
        self,
        rule: PublicMetrics | NoisedMetrics | None,
        name: str,
        setup: RoundSetup,
        expected_cohort: float,
        faults: FaultLog,
    ) -> None:
        self._name, self._faults = name, faults
        self._public = rule if isinstance(rule, PublicMetrics) else None
        self._records: list[MetricRecord | None] = []
        self._weighted_by = setup.record_keys.weighted_by
        self._noised = None
        if isinstance(rule, NoisedMetrics):
            self._noised = NoisedMetricsSum(rule, setup.mechanism, setup.randomness)
        self._expected_cohort = expected_cohort

    def add(self, metrics: MetricRecord | None) -> None:
        """Add one client's."""
        if self._noised is not None:
            if fault := self._noised.add(metrics):
                self._faults.metrics_counted_as_middle(self._name, fault, metrics or ())
        elif self._public is not None:
            self._records.append(metrics)

    def release(self) -> MetricRecord | None:
        """Release the averages; None where there is no rule, or nothing that can be averaged."""
        if self._noised is not None:
            self._faults.metrics_never_sent(self._name, self._noised.never_sent)
            return self._noised.release(self._expected_cohort)
        if self._public is None:
            return None
        return self._public.release(self._records, self._weighted_by, left_out=self._left_out)

    def _left_out(self, fault: MetricFault) -> None:
        self._faults.metrics_left_out(self._name, fault)


def _remaining(z: float, others: Sequence[float]) -> float:
    if z == 0 or not others:
        return z
    taken = sum(other**-2 for other in others)
    if taken >= z**-2:
        raise ValueError(
            f"the noised metrics alone spend more than a round with noise_multiplier = {z:g} "
            "may; raise their noise"
        )
    update: float = (z**-2 - taken) ** -0.5 * (1 + 1e-9)
    if joint_noise_multiplier(update, *others) < z:
        raise ArithmeticError("the shares of the noise multiplier exceed the whole")
    return update


class ClearRounds(EveryoneInEveryRound):
    """Rounds of training whose server sees each update."""

    presence = AdditiveDelta(0.0)

    def __init__(self, setup: RoundSetup) -> None:
        self._setup = setup

    @property
    def mechanism(self) -> str:
        """The name of the mechanism that adds the noise."""
        return self._setup.mechanism.name

    def account(self, noise_multiplier: float, parameters: int) -> Event:
        """The event of a round's model, whatever its size."""
        return self._setup.mechanism.account(
            noise_multiplier=noise_multiplier, sampling=self._setup.cohort_sampling
        )

    def check_presence(self, rounds: int, budget: PrivacyBudget) -> None:
        """Nothing is charged for presence."""

    def open(
        self,
        number: int,
        schema: ModelSchema,
        run: Run,
        grid: Grid,
        *,
        noise: LatticeNoise | None = None,
    ) -> Round:
        """A new round, with the norm and the noise multiplier of the run's state.

        ``noise``, where it is given, is the round's row of correlated noise.
        """
        return ClearRound(number, schema, self._setup, run, noise)


class ClearRound:
    """A round of training whose server sees each update."""

    is_paid = True

    def __init__(
        self,
        number: int,
        schema: ModelSchema,
        setup: RoundSetup,
        run: Run,
        noise: LatticeNoise | None = None,
    ) -> None:
        self.number, self.schema = number, schema
        self._name = f"round {number}, train"
        self._setup, self._run = setup, run
        self._pending = PendingReplies([])
        self._metrics = setup.train_metrics(self._name, run)
        update, count = setup.noise_shares(run.state.clipping, run.noise_multiplier)
        open_sum = partial(setup.mechanism.open, randomness=setup.randomness)
        geometry = run.state.clipping.geometry(schema.names)
        if isinstance(setup.mechanism, CorrelatedMechanism) and noise is not None:
            open_sum = partial(setup.mechanism.open_row, noise=noise)
        self._sum = open_sum(schema.arrays, geometry, noise_multiplier=update)
        self._bits = None
        if count is not None:
            bit = ClippingGeometry((0.5,), (0,))
            self._bits = open_sum([np.zeros(1)], bit, noise_multiplier=count)

    def begin(self, nodes: Iterable[int], content: RecordDict, *, drawn: int) -> list[Message]:
        """One message a node."""
        self._pending = PendingReplies.to(nodes, content, MessageType.TRAIN)
        return self._pending.messages

    def gather(self, replies: Iterable[Message]) -> bool:
        """Bound each reply and add it; one that cannot be bounded is dropped."""
        came = collect(
            self._name,
            self._pending,
            replies,
            read=self._read,
            use=self._add,
            faults=self._run.faults,
        )
        return not self._run.train_in_vain.add(came)

    def _read(self, reply: Message) -> tuple[TrainReply, float]:
        """A reply and its weight; the sums are not touched."""
        content = self.schema.read(reply)
        try:
            weighted_by = self._setup.record_keys.weighted_by
            return content, self._setup.weighting.weight(content.metrics, weighted_by)
        except ValueError as error:
            raise ReplyError(str(error), Fault.WEIGHT) from error

    def _add(self, weighted: tuple[TrainReply, float]) -> None:
        content, weight = weighted
        try:
            clipped = self._sum.add(content.arrays, weight=weight)
        except UpdateError as error:  # the sums are as they were
            raise ReplyError(str(error), Fault.VALUES) from error
        if self._bits is not None:
            bit = np.array([-0.5 if clipped else 0.5])
            self._bits.add([bit], weight=1.0)
        self._metrics.add(content.metrics)

    def release(self) -> RoundOutcome:
        """Add the noise to every sum."""
        fraction = None
        update = self._sum.release()
        if self._bits is not None:
            (total,) = self._bits.release()
            fraction = float(total[0]) / self._setup.expected_cohort + 0.5
        return RoundOutcome(update, self._metrics.release(), fraction)


class EvaluateRound:
    """A round of evaluation: metrics only."""

    def __init__(self, number: int, setup: RoundSetup, run: Run) -> None:
        self._name = f"round {number}, evaluate"
        self._run = run
        self._metrics = setup.evaluation_metrics(self._name, run)
        self._pending = PendingReplies([])

    def begin(self, nodes: Iterable[int], content: RecordDict) -> list[Message]:
        """One message a node."""
        self._pending = PendingReplies.to(nodes, content, MessageType.EVALUATE)
        return self._pending.messages

    def gather(self, replies: Iterable[Message]) -> bool:
        """Add the metrics up; False as :meth:`Round.gather`."""
        came = collect(
            self._name,
            self._pending,
            replies,
            read=read_metrics,
            use=self._metrics.add,
            faults=self._run.faults,
        )
        return not self._run.evaluate_in_vain.add(came)

    def release(self) -> MetricRecord | None:
        """The averages."""
        return self._metrics.release()
