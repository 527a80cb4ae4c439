"""Flower's own accounted private strategy beside ours: rounds that are lost, and ε for the rest.

Both add the same noise to the average of about 20 of 100 clients. Flower's accounted mode (its
fixed clipping with an ``RdpAccountant``) takes equal weights only, does not account for sampling,
and gives up a round in which a reply is an error or missing. Ours accounts for Poisson sampling,
and a reply that does not come costs that reply.
"""

import logging
import math
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import PrivacyConfig, RdpAccountant
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.privacy_accounting import NeighboringRelation, SamplingMethod

from benchmarks.harness import Log, Row, Spread
from strategies import Budget, DPFedAvg, InProcessGrid, Poisson

CLIENTS, COHORT, Z, DELTA = 100, 20, 1.0, 1e-5
PEER = "flwr DifferentialPrivacyServerSideFixedClipping, accounted"


@dataclass(frozen=True)
class Played:
    """How many rounds released a model, and ε of them."""

    rounds: float
    epsilon: float


def run(*, quick: bool, log: Log) -> list[Row]:
    """Play both over clients who fail more or less often."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    rounds = 20 if quick else 100
    rows = []
    for failing in (0.0, 0.01, 0.05):
        case = f"{CLIENTS} clients, {COHORT} a round, z = {Z:g}, {failing:.0%} of replies errors"
        log(case)
        ours, theirs = play_ours(failing, rounds), play_flowers(failing, rounds)
        rows += [
            Row(
                case,
                f"rounds of {rounds} that released a model",
                "",
                Spread.of([ours.rounds]),
                Spread.of([theirs.rounds]),
                PEER,
                larger_is_better=True,
            ),
            Row(
                case,
                f"ε of these at δ = {DELTA:g}",
                "",
                Spread.of([ours.epsilon]),
                Spread.of([theirs.epsilon]),
                PEER,
            ),
        ]
    return rows


def clients(failing: float) -> ClientApp:
    """Clients of equal weight, some of whose replies are errors."""
    app = ClientApp()
    draw = np.random.default_rng(7)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if draw.random() < failing:
            raise RuntimeError("this client fails")
        sent = message.content.array_records["arrays"].to_numpy_ndarrays()
        moved = ArrayRecord([array + np.float32(0.01) for array in sent])
        metrics = MetricRecord({"num-examples": 1.0})
        return Message(RecordDict({"arrays": moved, "metrics": metrics}), reply_to=message)

    return app


def model() -> ArrayRecord:
    """A small one."""
    return ArrayRecord([np.zeros(100, np.float32)])


def play_ours(failing: float, rounds: int) -> Played:
    """``DPFedAvg`` with Poisson sampling."""
    with tempfile.TemporaryDirectory() as folder:
        strategy = DPFedAvg(
            population=CLIENTS,
            sampling=Poisson(COHORT / CLIENTS),
            clipping=1.0,
            noise_multiplier=Z,
            budget=Budget(math.inf, DELTA),
            ledger=Path(folder) / "ledger.jsonl",
        )
        strategy.start(InProcessGrid(clients(failing), CLIENTS), model(), num_rounds=rounds)
        spent = strategy.privacy_spent()
    return Played(float(spent.num_releases), spent.epsilon)


def play_flowers(failing: float, rounds: int) -> Played:
    """Flower's wrapper in its accounted mode."""
    accountant = RdpAccountant(
        PrivacyConfig(
            DELTA,
            CLIENTS,
            NeighboringRelation.ADD_OR_REMOVE_ONE,
            SamplingMethod.NO_AMPLIFICATION,
        )
    )
    strategy = DifferentialPrivacyServerSideFixedClipping(
        FedAvg(
            fraction_train=COHORT / CLIENTS,
            fraction_evaluate=0.0,
            min_train_nodes=COHORT,
            min_available_nodes=CLIENTS,
        ),
        Z,
        1.0,
        COHORT,
        accountant=accountant,
    )
    strategy.start(InProcessGrid(clients(failing), CLIENTS), model(), num_rounds=rounds)
    spent = accountant.get_privacy_spent()
    return Played(float(spent.num_releases), spent.epsilon)
