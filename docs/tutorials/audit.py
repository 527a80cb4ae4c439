"""Attack your own training, to see whether the privacy is there that its ledger claims."""

# %% A project: its clients, and its strategy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from privacy.audit import epsilon_lower_bound
from privacy.mechanisms import LatticeGaussian
from strategies import Budget, DPFedAvg, Full, audit_strategy

client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Move the model a little."""
    moved = [array + 0.01 for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics})
    return Message(content, reply_to=message)


def project(folder: Path, **changes: Any) -> DPFedAvg:
    """The strategy of the project, for 20 clients and 200 canaries."""
    return DPFedAvg(
        population=220,
        sampling=Full(),
        clipping=0.5,
        budget=Budget(epsilon=1.0, delta=1e-5),
        ledger=folder / "ledger.jsonl",
        **changes,
    )


# %% Two hundred canaries, each there or not by a coin: the auditor guesses the coins
def attack(make_strategy: Any) -> None:
    """Say what the ledger claims and what the attack shows."""
    model = ArrayRecord([np.zeros(1000, np.float32)])
    result = audit_strategy(make_strategy, client, model, clients=20, canaries=200, num_rounds=4)
    print(f"claimed ε {result.claimed_epsilon:.2f}, shown at least {result.epsilon_lower:.2f}")
    print("contradicted" if not result.passed else "not contradicted")


attack(project)


# %% The same with a mistake: noise that would do for the average is added to the sum
@dataclass(frozen=True)
class TooQuiet(LatticeGaussian):
    """Its ledger claims what it claimed before."""

    def open(self, *sum_of: Any, noise_multiplier: float, **rest: Any) -> Any:
        """Add a 220th of the noise."""
        return super().open(*sum_of, noise_multiplier=noise_multiplier / 220, **rest)


attack(lambda folder: project(folder, mechanism=TooQuiet()))

# %% What a number of right guesses proves, by itself: the figure of the paper's Appendix D
print(f"{epsilon_lower_bound(canaries=1000, guesses=100, correct=75, delta=1e-4):.3f}")
