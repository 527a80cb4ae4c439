"""What the utility benchmark runs: protocols, models, budgets, and the settings chosen for each."""

from dataclasses import dataclass

from benchmarks.utility.clients import SHARDS_A_CLIENT
from benchmarks.utility.rounds import Setting
from privacy.accounting import Budget

GEYER_SHARDS = 200


@dataclass(frozen=True)
class Cell:
    """One row: a protocol, a model and a budget, with what was chosen for it.

    Attributes
    ----------
    copies
        How many clients hold each image.
    """

    protocol: str
    model: str
    clients: int
    copies: int
    budget: Budget
    setting: Setting
    peer: float | None = None

    @property
    def case(self) -> str:
        """What the row is called."""
        return (
            f"{self.protocol}, {self.model}, N={self.clients:,}, "
            f"ε={self.budget.epsilon:g}, δ={self.budget.delta:g}"
        )

    @property
    def shards(self) -> int:
        """How many different shards there are."""
        return self.clients * SHARDS_A_CLIENT // self.copies

    @property
    def records(self) -> int:
        """How many images a client holds."""
        images = 60_000 if self.protocol == "Geyer" else 50_000
        return images * self.copies // self.clients


def geyer(model: str, clients: int, delta: float, peer: float, setting: Setting) -> Cell:
    budget = Budget(epsilon=8.0, delta=delta)
    copies = clients * SHARDS_A_CLIENT // GEYER_SHARDS
    return Cell("Geyer", model, clients, copies, budget, setting, peer)


def disjoint(model: str, epsilon: float, setting: Setting) -> Cell:
    return Cell("disjoint", model, 1000, 1, Budget(epsilon=epsilon, delta=1e-5), setting)


def in_turns(arm: str, model: str, epsilon: float, learning_rate: float) -> Cell:
    """Disjoint clients, a tenth of them a round, in groups that take turns."""
    groups, bands = ARMS[arm]
    norm = 0.02 if model == "hog-linear" else 0.005
    setting = Setting(0.1, 100, norm, learning_rate, groups=groups, bands=bands)
    return Cell(arm, model, 1000, 1, Budget(epsilon=epsilon, delta=1e-5), setting)


INDEPENDENT, BANDED, BUFFERED, AMPLIFIED = (
    "in turns, independent noise",
    "in turns, banded",
    "in turns, BLT",
    "in turns, banded and amplified",
)
ARMS = {INDEPENDENT: (10, 1), BANDED: (10, 10), BUFFERED: (10, 0), AMPLIFIED: (5, 5)}
"""Of each protocol in turns, groups and bands; 0: buffers."""

CELLS = (
    geyer("hog-linear", 100, 1e-3, 0.78, Setting(1.0, 40, 0.015, 80)),
    geyer("hog-linear", 1_000, 1e-5, 0.92, Setting(1.0, 100, 0.015, 150)),
    geyer("hog-linear", 10_000, 1e-6, 0.96, Setting(0.1, 150, 0.015, 250)),
    geyer("cnn", 100, 1e-3, 0.78, Setting(1.0, 30, 0.005, 6)),
    geyer("cnn", 1_000, 1e-5, 0.92, Setting(1.0, 60, 0.005, 8)),
    geyer("cnn", 10_000, 1e-6, 0.96, Setting(0.05, 100, 0.005, 10)),
    disjoint("hog-linear", 8.0, Setting(0.2, 150, 0.02, 60)),
    disjoint("hog-linear", 3.0, Setting(0.2, 150, 0.02, 25)),
    disjoint("hog-linear", 2.0, Setting(0.2, 150, 0.02, 18)),
    disjoint("hog-linear", 1.0, Setting(0.3, 100, 0.02, 16)),
    disjoint("cnn", 8.0, Setting(0.3, 150, 0.005, 6)),
    disjoint("cnn", 3.0, Setting(0.3, 150, 0.005, 2.5)),
    disjoint("cnn", 2.0, Setting(0.3, 150, 0.005, 2)),
    disjoint("cnn", 1.0, Setting(0.3, 150, 0.005, 1.2)),
)
_RATES: dict[tuple[str, str], dict[float, float]] = {
    (INDEPENDENT, "hog-linear"): {8.0: 30, 3.0: 12, 2.0: 8.5, 1.0: 5.5},
    (BANDED, "hog-linear"): {8.0: 70, 3.0: 40, 2.0: 30, 1.0: 14},
    (AMPLIFIED, "hog-linear"): {8.0: 80, 3.0: 35, 2.0: 28, 1.0: 18},
    (BUFFERED, "hog-linear"): {8.0: 60, 3.0: 30, 2.0: 25, 1.0: 11},
    (INDEPENDENT, "cnn"): {3.0: 1.5, 1.0: 0.3},
    (BANDED, "cnn"): {3.0: 4, 1.0: 1},
    (AMPLIFIED, "cnn"): {3.0: 4, 1.0: 1.7},
    (BUFFERED, "cnn"): {3.0: 4, 1.0: 1},
}
TURNS = tuple(
    in_turns(arm, model, e, rate)
    for (arm, model), rates in _RATES.items()
    for e, rate in rates.items()
)
"""Rows of their own table: without secret cohorts, and with."""
