"""A run's privacy report, for tests of what is said of it."""

from dataclasses import replace
from typing import Any

from strategies import PrivacyReport


def a_report(**changes: Any) -> PrivacyReport:
    """The report of three rounds over a thousand clients, with these changes."""
    kept = PrivacyReport(
        epsilon=0.2,
        delta=1e-5,
        noise_multiplier=3.0,
        clipping_norm=0.02,
        sampling="poisson",
        sampling_rate=0.1,
        rounds=3,
        population=1000,
        adjacency="add-or-remove-one",
        accountant="pld",
        mechanism="lattice-gaussian",
        private=True,
        stopped=None,
        epsilon_by_round={1: 0.1, 2: 0.15, 3: 0.2},
        epsilon_without_amplification=2.5,
    )
    return replace(kept, **changes)
