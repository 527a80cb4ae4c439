"""Audit the running strategy: canary clients in a federated run, and a lower bound on ε."""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord
from flwr.clientapp import ClientApp

from privacy.accounting import Adjacency, CyclicGroups, Event, Poisson, Sampling
from privacy.audit import (
    AuditResult,
    PrivacyCurve,
    audit,
    independent_cohorts_p_value,
    poisson_cohort_p_value,
)
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import Identity
from strategies.canary_clients import CanaryApp, CountingGrid, Directions
from strategies.dp_fedavg import DPFedAvg
from strategies.errors import PopulationExceededError
from strategies.model_schema import ModelSchema
from strategies.noise_alone import noise_alone
from strategies.result import PrivacyReport


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
    identities: Sequence[Identity] = (),
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
    A third run, whose clients send the model back as it came, shows the noise alone: that there is
    no less of it than is claimed (not where the clipping norm adapts); of correlated noise also its
    factor, that no round is given another's, and that nobody is asked before its turn.

    Under secure aggregation canaries take part in its protocol, their updates within the masked
    sum; one that is not there adds zeros. The auditor has the released models alone, as before.

    **Guarantee.** That of :func:`privacy.audit.audit`: a correct strategy is contradicted in at
    most a fraction ``1 - confidence`` of audits.

    **Assumptions.** ``make_strategy`` does not depend on the coins.

    **Not covered.** A transport, for clients run in this process; under adaptive or per-layer
    clipping the canaries are not the worst that could be. Of secure aggregation: what the server
    sees beside the released model, of distributed noise the server's own smaller share, and that
    one client's presence can decide whether a round opens.

    Parameters
    ----------
    make_strategy : callable
        Given an empty folder for the ledger, returns the strategy as it will be used, with a
        population of ``clients + canaries``. Called three times.
    client_app : ClientApp
        Of the ordinary clients, on partitions 0 to ``clients - 1``; under secure aggregation with
        the mod.
    initial_arrays : ArrayRecord
        The model; it has at least as many parameters as there are canaries.
    clients, canaries : int
        How many ordinary clients and how many canaries.
    num_rounds : int
        As for ``start``.
    confidence, guesses, randomness
        As in :func:`privacy.audit.audit`.
    identities : sequence of Identity, optional
        Where secure aggregation withstands a malicious server: one for each node, ordinary clients
        first.

    Returns
    -------
    AuditResult
        At client level, δ the strategy's.

    Raises
    ------
    ValueError
        If the strategy's population is another, the model is too small, or clients pin one
        another's keys and ``identities`` are missing.
    """
    source = SystemRandomness() if randomness is None else randomness
    size = sum(array.size for array in ModelSchema(initial_arrays).arrays)
    directions = Directions.draw(canaries, size, randomness=source)
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
            app = CanaryApp(client_app, strategy, directions, included, clients, identities)
            grid = CountingGrid(app, clients + canaries, strategy)
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
            alone = noise_alone(
                strategy, initial_arrays, nodes=nodes, rounds=num_rounds, identities=identities
            )
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
