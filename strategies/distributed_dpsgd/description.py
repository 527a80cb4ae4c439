"""Distributed DP-SGD in figures: its settings for the log, its guarantee for the result."""

import math
from logging import INFO

from flwr.supercore import log

from strategies.checkpoint import RunState
from strategies.distributed_dpsgd.steps import StepSetup
from strategies.privacy_budget import PrivacyBudget
from strategies.result import PrivacyReport, SecureAggregationReport


def log_settings(setup: StepSetup, budget: PrivacyBudget, state: RunState) -> None:
    """Log a strategy's settings. All of them are public."""
    limit, z = budget.budget.epsilon, state.noise_multiplier
    lines = [
        f"├──> Privacy of every {setup.unit} ({budget.adjacency.value}), against the server too:",
        f"│\t├── ε: {'no limit' if limit == math.inf else f'at most {limit:g}'} at "
        f"δ = {budget.budget.delta:g} ({budget.accountant})",
        *([] if z is None else [f"│\t├── Noise multiplier: {z:.4f}, in shares"]),
        f"│\t├── Clipping: a {setup.unit}'s gradient to {state.clipping.norm:g}",
        f"│\t└── Ledger: {budget.ledger.path}; each silo keeps its own",
        f"├──> A step: each of about {setup.persons:,} {setup.unit}s with probability "
        f"{setup.sampling_rate:g}",
        f"├──> Silos: {setup.silos}; each ClientApp needs answer_silo",
        f"└──> Server optimizer: {state.optimizer}",
    ]
    for line in lines:
        log(INFO, "\t%s", line)


def silo_report(setup: StepSetup, budget: PrivacyBudget, state: RunState) -> PrivacyReport:
    """The guarantee of a run as it stands, with all that its ledger holds by now."""
    z, silos = state.noise_multiplier, setup.silos
    by_observer = budget.epsilon_by_observer()
    return PrivacyReport(
        epsilon=budget.epsilon(),
        delta=budget.budget.delta,
        noise_multiplier=math.inf if z is None else z,
        clipping_norm=state.clipping.norm,
        sampling=setup.sampling.kind,
        sampling_rate=setup.sampling_rate,
        rounds=len(state.epsilon_by_round),
        population=setup.persons,
        adjacency=budget.adjacency.value,
        accountant=budget.accountant,
        mechanism=setup.mechanism.name,
        private=True,
        stopped=state.stopped,
        epsilon_by_round=dict(state.epsilon_by_round),
        secure_aggregation=SecureAggregationReport(
            server=silos.adversary.server.value,
            max_corrupt_fraction=silos.adversary.max_corrupt_fraction,
            min_clients=silos.min_silos,
            max_dropout_fraction=(silos.absent or 0) / silos.silos,
            noise_placement="distributed",
            epsilon_against_server=budget.epsilon_against_server(),
            dropout_probability=0.0,
            presence_delta=0.0,
            aborted_rounds=tuple(state.aborted),
        ),
        epsilon_without_amplification=budget.epsilon_without_amplification(),
        unit=setup.unit,
        run=state.name,
        epsilon_by_observer={observer.value: value for observer, value in by_observer.items()},
    )
