"""A strategy in figures: its settings for the log, its guarantee for the result."""

import math
from collections.abc import Iterable, Mapping
from logging import INFO, WARNING

from flwr.supercore import log

from privacy.accounting import Observer
from strategies.checkpoint import RunState
from strategies.privacy_budget import PrivacyBudget
from strategies.result import PrivacyReport, SecureAggregationReport
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.train_round import Rounds, RoundSetup, Setup


def log_settings(
    setup: RoundSetup, secure: SecureAggregation | None, budget: PrivacyBudget, state: RunState
) -> None:
    """Log a strategy's settings. All of them are public."""
    masked = "off" if secure is None else f"{secure}; each ClientApp needs SecureAggregationMod"
    lines = [
        f"├──> Privacy of every client ({budget.adjacency.value}):",
        *budget_lines(budget, state),
        f"│\t├── Clipping: {state.clipping}",
        f"│\t├── Mechanism: {setup.mechanism.name}",
        f"│\t└── Ledger: {budget.path}",
        f"├──> Sampling: {setup.sampling} of a population of {setup.population}",
        f"├──> Weights: {setup.weighting}",
        f"├──> Secure aggregation: {masked}",
        f"└──> Server optimizer: {state.optimizer}",
    ]
    log_lines(lines)
    if not setup.randomness.private:
        log(WARNING, "The randomness is seeded: this run is NOT private.")


def budget_lines(budget: PrivacyBudget, state: RunState) -> list[str]:
    """Lines of the settings about ε, and the noise once it is known."""
    limit, z = budget.budget.epsilon, state.noise_multiplier
    return [
        f"│\t├── ε: {'no limit' if limit == math.inf else f'at most {limit:g}'} at "
        f"δ = {budget.budget.delta:g} ({budget.accountant})",
        *([] if z is None else [f"│\t├── Noise multiplier: {z:.4f}"]),
    ]


def log_lines(lines: Iterable[str]) -> None:
    """Log settings, a line each."""
    for line in lines:
        log(INFO, "\t%s", line)


def privacy_report(
    setup: Setup,
    budget: PrivacyBudget,
    state: RunState,
    *,
    mechanism: str,
    secure_aggregation: SecureAggregationReport | None,
    epsilon_by_observer: Mapping[Observer, float] | None = None,
) -> PrivacyReport:
    """The guarantee of a run as it stands, with all that its ledger holds by now."""
    z = state.noise_multiplier
    return PrivacyReport(
        epsilon=budget.epsilon(),
        delta=budget.budget.delta,
        noise_multiplier=math.inf if z is None else z,
        clipping_norm=state.clipping.norm,
        sampling=setup.sampling.kind,
        sampling_rate=setup.sampling_rate,
        rounds=len(state.epsilon_by_round),
        population=setup.population,
        adjacency=budget.adjacency.value,
        accountant=budget.accountant,
        mechanism=mechanism,
        private=setup.randomness.private and z != 0,
        stopped=state.stopped,
        epsilon_by_round=dict(state.epsilon_by_round),
        secure_aggregation=secure_aggregation,
        epsilon_without_amplification=budget.epsilon_without_amplification(),
        unit=setup.unit,
        run=state.name,
        epsilon_by_observer={
            observer.value: value for observer, value in (epsilon_by_observer or {}).items()
        },
    )


def secure_report(
    settings: SecureAggregation, rounds: Rounds, budget: PrivacyBudget, state: RunState
) -> SecureAggregationReport:
    """What secure aggregation by these settings promised."""
    distributed = settings.noise_placement == "distributed"
    return SecureAggregationReport(
        server=settings.adversary.server.value,
        max_corrupt_fraction=settings.adversary.max_corrupt_fraction,
        min_clients=settings.min_clients,
        max_dropout_fraction=settings.max_dropout_fraction,
        noise_placement=settings.noise_placement,
        epsilon_against_server=budget.epsilon_against_server() if distributed else math.inf,
        dropout_probability=settings.dropout_probability,
        presence_delta=rounds.presence.delta,
        aborted_rounds=tuple(state.aborted),
    )
