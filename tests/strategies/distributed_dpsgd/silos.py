"""Silos in one process: linear models over made-up persons."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from privacy.accounting import Budget
from privacy.secure_aggregation import FewSilos
from privacy.training import DataPolicy, Persons
from strategies.distributed_dpsgd import DistributedDPSGD, SiloTable, SiloTask, answer_silo

FEATURES, CLASSES, PERSONS, ROWS_EACH = 8, 3, 40, 2
SILOS = FewSilos(4, absent=1)


def linear() -> nn.Module:
    return nn.Linear(FEATURES, CLASSES)


def initial() -> ArrayRecord:
    """The model of zeros."""
    return ArrayRecord({name: torch.zeros_like(p) for name, p in linear().state_dict().items()})


def rows(silo: int) -> tuple[Tensor, Tensor]:
    """A silo's rows, two of each person, whose classes a linear model can tell."""
    generator = torch.Generator().manual_seed(silo)
    x = torch.randn(PERSONS * ROWS_EACH, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(dim=1)


def persons(silo: int) -> Persons:
    return Persons(rows(silo), np.arange(PERSONS * ROWS_EACH) // ROWS_EACH)


def table_of(silo: int) -> SiloTable:
    x, y = rows(silo)
    owners = np.arange(PERSONS * ROWS_EACH) // ROWS_EACH
    return SiloTable(features=x.numpy(), labels=y.numpy(), person_ids=owners)


class FailsAfterTrials:
    """Loads, from its first call on, every second time: the silo's trial is the first."""

    def __init__(self, load: Callable[[int], Any], failing: Callable[[int], Any]) -> None:
        self._ways, self._calls = (load, failing), Counter[int]()

    def __call__(self, silo: int) -> Any:
        self._calls[silo] += 1
        return self._ways[(self._calls[silo] - 1) % 2](silo)


def policy(silo: int, **changes: Any) -> DataPolicy:
    rules: dict[str, Any] = {
        "dataset": f"silo {silo}",
        "max_epsilon": 1e6,
        "max_delta": 1e-5,
    }
    return DataPolicy(**(rules | changes))


def silo_app(
    policies: Callable[[int], Any] = policy,
    *,
    load: Callable[[int], Persons] = persons,
    model: Callable[[], nn.Module] = linear,
    table: Callable[[int], SiloTable] = table_of,
) -> ClientApp:
    """Silos with these policies and persons; the same rows are their test rows."""
    app = ClientApp()

    @app.train()
    def take_part(message: Message, context: Context) -> Message:
        silo = int(context.node_config["partition-id"])
        task = SiloTask(
            model=model(),
            loss=nn.functional.cross_entropy,
            persons=lambda: load(silo),
            test_persons=lambda: load(silo),
            table=lambda: table(silo),
        )
        return answer_silo(message, context, task=lambda: task, policy=policies(silo))

    return app


def strategy_of(folder: Path, **settings: Any) -> DistributedDPSGD:
    """A strategy with little noise and no limit, unless told otherwise."""
    usual: dict[str, Any] = {
        "silos": SILOS,
        "persons": 4 * PERSONS,
        "sampling_rate": 0.5,
        "clipping_norm": 1.0,
        "budget": Budget(math.inf, 1e-5),
        "noise_multiplier": 1.0,
        "ledger": folder / "ledger.jsonl",
    }
    return DistributedDPSGD(**(usual | settings))
