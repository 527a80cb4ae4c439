"""Audit the running strategy: canary clients in a federated run, and a lower bound on ε."""

import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from privacy.accounting import Adjacency, CyclicGroups, Event, Poisson, Sampling
from privacy.audit import (
    AuditResult,
    PrivacyCurve,
    audit,
    correlated_noise_p_values,
    independent_cohorts_p_value,
    poisson_cohort_p_value,
    separation_p_value,
)
from privacy.audit.correlated import SEPARATION
from privacy.correlated_noise import CorrelatedMechanism
from privacy.mechanisms import Randomness, SystemRandomness
from strategies.dp_fedavg import DPFedAvg
from strategies.errors import PopulationExceededError
from strategies.in_process import InProcessGrid
from strategies.model_schema import ModelSchema
from strategies.result import PrivacyReport

_BEYOND = 1000.0  # how many times the clipping norm a canary sends


@dataclass(frozen=True, eq=False)
class _Directions:
    """One direction of the model for each of m canaries, orthogonal to the others'."""

    places: npt.NDArray[np.int64]  # different coordinates of the flattened arrays
    signs: npt.NDArray[np.float64]  # 1 or -1

    @classmethod
    def draw(cls, count: int, parameters: int, *, randomness: Randomness) -> Self:
        """Draw ``count`` directions; ``ValueError`` if the model has fewer parameters."""
        if count > parameters:
            raise ValueError(
                f"canaries is {count}, but the model has {parameters} parameters; each canary "
                "needs one of its own"
            )
        places = np.argsort(randomness.uint64(parameters), kind="stable")[:count]
        signs = np.where(randomness.bernoulli(0.5, count), 1.0, -1.0)
        return cls(places.astype(np.int64), signs)

    def along(self, flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """The inner product of each direction with a flat vector, (m,)."""
        return np.asarray(flat[self.places] * self.signs)


class _CanaryApp(ClientApp):
    """The user's app; its last nodes are canaries, of which some decline everything.

    A client that declines adds nothing to any sum: it is as if it were not there.
    """

    def __init__(
        self,
        app: ClientApp,
        strategy: DPFedAvg,
        directions: _Directions,
        included: npt.NDArray[np.bool_],
        first: int,
    ) -> None:
        super().__init__()
        self._app, self._strategy, self._first = app, strategy, first
        self._directions, self._included = directions, included

    def __call__(self, message: Message, context: Context) -> Message:
        canary = int(context.node_config["partition-id"]) - self._first
        if canary < 0:
            return self._app(message, context)
        if not self._included[canary] or message.metadata.message_type != MessageType.TRAIN:
            # An answer, not an exception: nothing went wrong that the log should show.
            declines = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "this canary declines")
            return Message(declines, reply_to=message)
        strategy = self._strategy
        schema = ModelSchema(message.content.array_records[strategy.record_keys.arrays])
        arrays = [array.copy() for array in schema.arrays]
        place = int(self._directions.places[canary])
        for array in arrays:
            if place < array.size:
                step = self._directions.signs[canary] * _BEYOND * strategy.clipping.norm
                array.reshape(-1)[place] += step
                break
            place -= array.size
        weighted_by = strategy.record_keys.weighted_by
        metrics = MetricRecord({weighted_by: 1e9})  # as heavy as the cap allows
        return Message(
            RecordDict({"arrays": schema.record(arrays), "metrics": metrics}), reply_to=message
        )


class _CountingGrid(InProcessGrid):
    """A grid that counts the messages of each round's training."""

    def __init__(self, app: ClientApp, nodes: int, config_key: str) -> None:
        super().__init__(app, nodes)
        self._config_key = config_key
        self.cohorts: dict[int, set[int]] = {}  # by round; none where nobody was asked

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Count, then push."""
        pushed = list(messages)
        for message in pushed:
            if message.metadata.message_type == MessageType.TRAIN:
                config = message.content.config_records[self._config_key]
                cohort = self.cohorts.setdefault(int(str(config["server-round"])), set())
                cohort.add(message.metadata.dst_node_id)
        return super().push_messages(pushed)


def _still(message: Message, context: Context) -> Message:
    """A client that sends the model back as it came, so that a round is noise alone."""
    (name,) = message.content.array_records
    arrays = message.content.array_records[name]
    metrics = MetricRecord({"num-examples": 1.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def _noise_alone(
    strategy: DPFedAvg, arrays: ArrayRecord, *, nodes: int, rounds: int
) -> dict[str, float]:
    """P-values of a run's correlated noise and turns, its clients moving nothing."""
    mechanism, sampling = strategy.mechanism, strategy.sampling
    if not isinstance(mechanism, CorrelatedMechanism) or not isinstance(sampling, CyclicGroups):
        return {}
    app = ClientApp()
    app.train()(_still)
    grid = _CountingGrid(app, nodes, strategy.record_keys.config)
    steps: list[npt.NDArray[np.float64]] = []
    optimizer = strategy.optimizer
    inner = optimizer.step

    def step(model: Sequence[Any], update: Sequence[Any]) -> list[Any]:
        steps.append(np.concatenate([np.ravel(u).astype(np.float64) for u in update]))
        return inner(model, update)

    optimizer.step = step  # type: ignore[method-assign, assignment]
    strategy.start(grid, arrays, num_rounds=rounds)
    momentum = float(getattr(optimizer, "momentum", 0.0))
    factor = mechanism.factor(rounds=rounds, momentum=momentum, groups=sampling.groups)
    norm, denominator = strategy.clipping.norm, strategy.denominator
    return {
        **correlated_noise_p_values(
            np.array(steps) * denominator / norm,
            factor.coefficients,
            sigma=strategy.noise_multiplier * factor.norm,
        ),
        SEPARATION: separation_p_value(
            [grid.cohorts.get(number, set()) for number in range(1, rounds + 1)],
            separation=sampling.groups,
        ),
    }


def audit_strategy(
    make_strategy: Callable[[Path], DPFedAvg],
    client_app: ClientApp,
    initial_arrays: ArrayRecord,
    *,
    clients: int,
    canaries: int = 200,
    num_rounds: int = 1,
    confidence: float = 0.95,
    guesses: int | None = None,
    randomness: Randomness | None = None,
) -> AuditResult:
    """Attack a federated run with canary clients: a lower bound on ε, against the run's ledger.

    Each canary is a client that moves one parameter of the model by far more than the clipping
    norm, whenever it is asked. A fair coin decides whether it is there. The auditor sees the
    released models and guesses the coins, in two ways:

    - *last model*: how far the run moved each canary's parameter;
    - *less a second run*: the same, less what a second run without any canary did. It changes
      nothing where noise is fresh, and finds noise that comes from a seed or is used twice.

    With Poisson sampling the sizes of the cohorts are tested too (within groups, of whole turns),
    and without groups whether rounds draw their cohorts independently.
    With correlated noise a further run, whose clients send the model back as it came, shows the
    noise alone: its size, its factor, that no round is given another's, and that nobody is asked
    before its turn.

    **Guarantee.** That of :func:`privacy.audit.audit`: a correct strategy is contradicted in at
    most a fraction ``1 - confidence`` of audits.

    **Assumptions.** ``make_strategy`` does not depend on the coins.

    **Not covered.** A transport, for clients run in this process; under adaptive or per-layer
    clipping the canaries are not the worst that could be.

    Parameters
    ----------
    make_strategy : callable
        Given an empty folder for the ledger, returns the strategy as it will be used, with a
        population of ``clients + canaries``. Called twice, or with correlated noise three times.
    client_app : ClientApp
        Of the ordinary clients, on partitions 0 to ``clients - 1``.
    initial_arrays : ArrayRecord
        The model; it has at least as many parameters as there are canaries.
    clients, canaries : int
        How many ordinary clients and how many canaries.
    num_rounds : int
        As for ``start``.
    confidence, guesses, randomness
        As in :func:`privacy.audit.audit`.

    Returns
    -------
    AuditResult
        At client level, δ the strategy's.

    Raises
    ------
    ValueError
        If the strategy's population is another, it aggregates securely, or the model is too small.
    """
    source = SystemRandomness() if randomness is None else randomness
    size = sum(array.size for array in ModelSchema(initial_arrays).arrays)
    directions = _Directions.draw(canaries, size, randomness=source)
    nobody = np.zeros(canaries, dtype=np.bool_)
    # Of both runs.
    claims: list[tuple[PrivacyReport, Sampling | CyclicGroups, tuple[Event, ...]]] = []
    cohort_sizes: list[int] = []
    drawn: list[set[int]] = []
    another_population = (
        f"the strategy's population must be clients + canaries = {clients + canaries}"
    )

    def moved(included: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            strategy = make_strategy(Path(folder))
            if strategy.secure_aggregation is not None:
                raise ValueError(
                    "secure_aggregation is set, and canaries do not speak its protocol; "
                    "audit the same strategy without it"
                )
            app = _CanaryApp(client_app, strategy, directions, included, clients)
            grid = _CountingGrid(app, clients + canaries, strategy.record_keys.config)
            try:
                result = strategy.start(grid, initial_arrays, num_rounds=num_rounds)
            except PopulationExceededError as error:
                raise ValueError(another_population) from error
            events = strategy._privacy_budget.paid.events
        report = result.privacy
        if report is None or report.population != clients + canaries:
            raise ValueError(another_population)
        claims.append((report, strategy.sampling, events))
        cohorts = [grid.cohorts.get(number, set()) for number in report.epsilon_by_round]
        drawn.extend(cohorts)
        sizes = [len(cohort) for cohort in cohorts]
        # Groups are no secret, and their sizes stay; a whole turn draws each client once.
        groups = getattr(strategy.sampling, "groups", 1)
        turns = range(0, len(sizes) - groups + 1, groups)
        cohort_sizes.extend(sum(sizes[first : first + groups]) for first in turns)
        return directions.along(_flat(result.arrays) - _flat(initial_arrays))

    def run(included: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.float64]]:
        movement = moved(included)
        return {"last model": movement, "less a second run": movement - moved(nobody)}

    def curve() -> PrivacyCurve | None:
        report, _, events = claims[0]
        adjacency = Adjacency(report.adjacency)
        # The ledger's ε is not the claim of a run that is not private, nor of one canary's
        # presence where neighbours differ by a client that is replaced.
        if not math.isfinite(report.epsilon) or adjacency is Adjacency.REPLACE_ONE:
            return None
        return PrivacyCurve.of_events(
            events, delta=report.delta, accountant=report.accountant, adjacency=adjacency
        )

    def cohorts() -> float | None:
        _, sampling, _ = claims[0]
        if not isinstance(sampling, Poisson | CyclicGroups) or sampling.rate == 1:
            return None
        if not cohort_sizes:  # not one turn of all groups
            return None
        return poisson_cohort_p_value(
            cohort_sizes, population=clients + canaries, rate=sampling.rate
        )

    def further() -> dict[str, float]:
        _, sampling, _ = claims[0]
        p_values = {}
        if isinstance(sampling, Poisson) and sampling.rate < 1 and drawn:
            p_values["cohorts: rounds do not draw them independently"] = (
                independent_cohorts_p_value(
                    drawn, population=clients + canaries, rate=sampling.rate
                )
            )
        with tempfile.TemporaryDirectory(prefix="audit-") as folder:
            strategy = make_strategy(Path(folder))
            nodes = clients + canaries
            alone = _noise_alone(strategy, initial_arrays, nodes=nodes, rounds=num_rounds)
        return p_values | alone

    return audit(
        run,
        canaries=canaries,
        claimed_epsilon=lambda: float(claims[0][0].epsilon),
        delta=lambda: float(claims[0][0].delta),
        confidence=confidence,
        guesses=guesses,
        curve=curve,
        cohort_p_value=cohorts,
        p_values=further,
        randomness=source,
    )


def _flat(record: ArrayRecord) -> npt.NDArray[np.float64]:
    arrays = ModelSchema(record).arrays
    return np.concatenate([array.reshape(-1).astype(np.float64) for array in arrays])
