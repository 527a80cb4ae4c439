"""Distributed DP-SGD in figures: its settings for the log, its guarantee for the result."""

from strategies.checkpoint import RunState
from strategies.description import budget_lines, log_lines, privacy_report
from strategies.distributed_dpsgd.steps import StepSetup
from strategies.privacy_budget import PrivacyBudget
from strategies.result import PrivacyReport, SecureAggregationReport


def log_settings(setup: StepSetup, budget: PrivacyBudget, state: RunState) -> None:
    """Log a strategy's settings. All of them are public."""
    log_lines(
        [
            f"├──> Privacy of every {setup.unit} ({budget.adjacency.value}), against the server "
            "too:",
            *budget_lines(budget, state),
            f"│\t├── Clipping: a {setup.unit}'s gradient to {state.clipping.norm:g}",
            f"│\t└── Ledger: {budget.path}; each silo keeps its own",
            f"├──> A step: each of about {setup.persons:,} {setup.unit}s with probability "
            f"{setup.sampling_rate:g}",
            f"├──> Silos: {setup.silos}; each ClientApp needs answer_silo",
            f"└──> Server optimizer: {state.optimizer}",
        ]
    )


def silo_report(setup: StepSetup, budget: PrivacyBudget, state: RunState) -> PrivacyReport:
    """The guarantee of a run as it stands, with all that its ledger holds by now."""
    silos = setup.silos
    return privacy_report(
        setup,
        budget,
        state,
        mechanism=setup.mechanism.name,
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
        epsilon_by_observer=budget.epsilon_by_observer(),
    )
