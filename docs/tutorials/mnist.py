"""A private model of a thousand people's digits, and an encrypted question to it."""

# %% A thousand clients with 50 images each, of two digits
import tempfile
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from flower_app.data import PartitionSpec, load_dataset, load_inputs, load_partitions
from flower_app.models.specs import MODELS
from privacy.inference import DataOwner, Evaluator, compile_model
from strategies import Budget, DPFedAvg, Poisson, ServerSGD, run_in_process

dataset = load_dataset("mnist")
features = load_inputs(dataset, "hog")  # 392 fixed, public features of each image
shares = load_partitions(PartitionSpec("shards", clients=1000), dataset)

# %% A client takes one step on its own images
client = ClientApp()


@client.train()
def train(message: Message, context: Context) -> Message:
    """Softmax regression, one gradient step."""
    (weights,) = message.content["arrays"].to_numpy_ndarrays()
    rows = shares.rows(int(context.node_config["partition-id"]))
    inputs, labels = features.train(rows), dataset.train.labels[rows]
    logits = inputs @ weights.T
    chances = np.exp(logits - logits.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(rows)), labels] -= 1
    moved = weights - chances.T @ inputs / len(rows)
    metrics = MetricRecord({"num-examples": len(rows)})
    content = RecordDict({"arrays": ArrayRecord([moved]), "metrics": metrics})
    return Message(content, reply_to=message)


# %% The server: forty rounds, and no client can be told from the result
server = ServerApp()
learned: list[np.ndarray] = []


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Train, say what it cost, and keep the weights."""
    strategy = DPFedAvg(
        population=1000,
        sampling=Poisson(0.1),
        clipping=0.02,
        budget=Budget(epsilon=3.0, delta=1e-5),
        optimizer=ServerSGD(learning_rate=40.0, momentum=0.9),
        # A file that all runs on these clients share. Here everything is made up.
        ledger=Path(tempfile.mkdtemp()) / "ledger.jsonl",
    )
    start = ArrayRecord([np.zeros((10, 392), np.float32)])
    result = strategy.start(grid, initial_arrays=start, num_rounds=40)
    learned.extend(result.arrays.to_numpy_ndarrays())
    spent = result.privacy
    print(f"ε = {spent.epsilon:.2f} at δ = {spent.delta}, z = {spent.noise_multiplier:.2f}")


run_in_process(server, client, num_nodes=1000)

# %% How good it is, on images that nobody trained on
logits = features.test() @ learned[0].T
print(f"test accuracy {(logits.argmax(axis=1) == dataset.test.labels).mean():.1%}")

# %% An encrypted question
model = torch.nn.Linear(392, 10, bias=False)
model.weight.data = torch.from_numpy(learned[0].copy())
spec = MODELS["hog-linear"]
compiled = compile_model(model, input_shape=spec.shape, input_range=(spec.low, spec.high))
owner = DataOwner(compiled.plan)  # on your phone: it alone has the secret key
evaluator = Evaluator(compiled, owner.public_material())  # anywhere

question = owner.encrypt(features.test(slice(0, 1))[0])
answer = owner.decrypt(evaluator.evaluate(question))
print(
    f"{len(question):,} encrypted bytes; answer {answer.label}, in truth {dataset.test.labels[0]}"
)
