"""A Flower app without privacy: FedAvg on the same model, data, cohort and local work as ours.

``end_to_end`` copies this file into an app of its own and runs it with ``flwr run``.
"""

import json
import time
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from torch.nn.functional import cross_entropy

from flower_app.client_app import own_data
from flower_app.data import load_dataset, load_inputs
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from flower_app.settings import Settings
from flower_app.training.progress import accuracy

client = ClientApp()
server = ServerApp()


def settings_of(context: Context) -> Settings:
    """Our app's settings, of which this one uses a few."""
    known = Settings().as_config()
    return Settings.from_config({k: v for k, v in context.run_config.items() if k in known})


@client.train()
def train(message: Message, context: Context) -> Message:
    """Take the local steps with plain SGD."""
    settings = settings_of(context)
    data = own_data(settings, context)
    model = build_model(settings.model)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.local_learning_rate)
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    for _ in range(settings.local_steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    content = RecordDict({"metrics": MetricRecord({"num-examples": len(labels)})})
    content["arrays"] = ArrayRecord(model.state_dict())
    return Message(content, reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    """FedAvg over a tenth of the nodes; writes the time of each round down."""
    settings = settings_of(context)
    nodes = len(list(grid.get_node_ids()))
    inputs = load_inputs(load_dataset(settings.dataset), MODELS[settings.model].kind)
    images = torch.from_numpy(inputs.validation())
    labels = torch.tensor(inputs.dataset.validation.labels)
    model = build_model(settings.model)
    seconds: list[float] = []
    before = time.perf_counter()

    def evaluate(number: int, arrays: ArrayRecord) -> None:
        nonlocal before
        model.load_state_dict(arrays.to_torch_state_dict())
        accuracy(model, images, labels)
        now = time.perf_counter()
        if number:
            seconds.append(now - before)
        before = now

    FedAvg(
        fraction_train=settings.sampling_rate,
        fraction_evaluate=0.0,
        min_train_nodes=1,
        min_available_nodes=nodes,
    ).start(grid, ArrayRecord(model.state_dict()), num_rounds=settings.rounds, evaluate_fn=evaluate)
    target = Path(str(context.run_config["times"]))
    part = target.with_suffix(".part")
    part.write_text(json.dumps(seconds))
    part.rename(target)
