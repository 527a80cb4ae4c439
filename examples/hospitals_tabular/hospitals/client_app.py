"""A hospital: answers the server under its owner's policy."""

from pathlib import Path
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from strategies import SiloTable, SiloTask, answer_silo

if TYPE_CHECKING:
    from privacy.training import Persons

app = ClientApp()


def folder(context: Context) -> Path:
    """Where this hospital's table and policy are: ``tables`` of the node, or of a simulation."""
    if "table" in context.node_config:
        return Path(str(context.node_config["table"]))
    site = int(context.node_config["partition-id"]) + 1
    return Path(str(context.run_config["tables"])).expanduser() / f"site-{site}"


@app.train()
def take_part(message: Message, context: Context) -> Message:
    """Statistics, a step or an evaluation, whichever the message is about."""
    place = folder(context)

    def describe() -> SiloTask:
        import numpy as np  # PyTorch too: messages without data do without them
        import torch

        from hospitals import task
        from privacy.training import Persons

        def persons(*, test: bool) -> "Persons":
            known = message.content["config"]
            means, deviations = (np.array(known[name]) for name in ("means", "deviations"))
            table = task.load(place / "visits.csv", test=test)
            inputs = task.scaled(table.features, means, deviations)
            return Persons((inputs, torch.from_numpy(table.labels)), person_ids=table.persons)

        def table() -> SiloTable:
            rows = task.load(place / "visits.csv", test=False)
            return SiloTable(features=rows.features, labels=rows.labels, person_ids=rows.persons)

        return SiloTask(
            model=task.model(),
            loss=torch.nn.functional.cross_entropy,
            persons=lambda: persons(test=False),
            test_persons=lambda: persons(test=True),
            table=table,
        )

    return answer_silo(message, context, task=describe, policy=place / "policy.toml")
