"""A FedAvg project, and the same made private: what changes, and what it costs."""

# %% The project as it was: clients that tell bars from crosses
import tempfile
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from strategies import Budget, DPFedAvg, Poisson, run_in_process


def pictures(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy pictures of 8 by 8: a standing bar, a lying bar or a cross."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (count,), generator=generator)
    images = 0.5 * torch.randn(count, 8, 8, generator=generator)
    places = torch.randint(1, 7, (count, 2), generator=generator)
    rows, columns = torch.nn.functional.one_hot(places, 8).unbind(1)
    images += 1.5 * ((labels != 1)[:, None] * columns)[:, None, :]
    images += 1.5 * ((labels != 0)[:, None] * rows)[:, :, None]
    return images, labels


def network() -> torch.nn.Module:
    """The same first weights everywhere."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    )


client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Three passes over the client's own sixty pictures."""
    model = network()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    images, labels = pictures(1 + int(context.node_config["partition-id"]), 60)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    arrays = ArrayRecord(model.state_dict())
    metrics = MetricRecord({"num-examples": len(labels)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


# %% Two strategies: one of them is private
def plain(grid: Grid) -> FedAvg:
    """Flower's own."""
    return FedAvg(fraction_train=0.2, fraction_evaluate=0.0)


def private(grid: Grid) -> DPFedAvg:
    """In its place."""
    return DPFedAvg(
        population=300,
        sampling=Poisson(0.2),
        clipping=1.0,
        budget=Budget(epsilon=8.0, delta=1e-3),
        # A file that all runs on these clients share. Here everything is made up.
        ledger=Path(tempfile.mkdtemp()) / "ledger.jsonl",
    )


# %% The rest of the server is the same for both
images, labels = pictures(0, 1000)


def run(strategy_of) -> None:
    """Twenty rounds among 300 clients, then the accuracy."""
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = strategy_of(grid)
        start = ArrayRecord(network().state_dict())
        result = strategy.start(grid, initial_arrays=start, num_rounds=20)
        model = network()
        model.load_state_dict(result.arrays.to_torch_state_dict())
        accuracy = (model(images).argmax(dim=1) == labels).float().mean()
        spent = getattr(result, "privacy", None)
        cost = f"ε = {spent.epsilon:.2f} at δ = {spent.delta}" if spent else "no privacy"
        print(f"{strategy_of.__name__}: accuracy {accuracy:.1%}, {cost}")

    run_in_process(server, client, num_nodes=300)


# %% Before
run(plain)

# %% After
run(private)
