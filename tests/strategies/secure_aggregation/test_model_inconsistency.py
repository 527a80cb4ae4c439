"""Model inconsistency with real gradients: an image out of a sum, and what stops it.

Pasquini, Francati and Ateniese (2022, arXiv 2111.07380, section 4): the server sends all clients
but one a model whose gradient in a layer is zero, whatever their data. The sum's part of that layer
is then the one client's, and its image is read out of it. Here the last layer's weights are zero,
so that nothing flows back to the first layer.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn
from torch.nn.functional import cross_entropy

from privacy.audit import invert_first_linear_layer
from strategies.secure_aggregation import protocol_client, train_round
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    MALICIOUS,
    Wire,
    mod,
    secure,
    strategy_of,
)

NODES, TARGET, PIXELS, CLASSES = 8, 5, 36, 3
IMAGES = np.random.default_rng(3).uniform(0, 1, (NODES, PIXELS)).astype(np.float32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(PIXELS, 12), nn.ReLU(), nn.Linear(12, CLASSES))


SIZE = sum(p.numel() for p in network().parameters())


def clients(adversary: object) -> ClientApp:
    """Clients with an image each, who take one step on it."""
    app = ClientApp(mods=[mod(adversary)])  # type: ignore[arg-type]

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition, model = int(context.node_config["partition-id"]), network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        image, label = torch.tensor(IMAGES[[partition]]), torch.tensor([partition % CLASSES])
        cross_entropy(model(image), label).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        metrics = MetricRecord({"num-examples": 1.0})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    return app


class Inconsistent(Wire):
    """A server that sends all but the target a model whose first layer has no gradient."""

    def _work(self, message: Message) -> Message:
        if "arrays" in message.content and message.metadata.dst_node_id != TARGET + 1:
            arrays = dict(message.content.array_records["arrays"])
            arrays["2.weight"] = Array(np.zeros((CLASSES, 12), np.float32))
            message.__dict__["_content"] = RecordDict(
                {**message.content, "arrays": ArrayRecord(arrays)}
            )
        return super()._work(message)


def rebuilt(wire: Wire, folder: Path, adversary: object = MALICIOUS) -> float:
    """How like the target's image is what the server reads out of the opened sum."""
    setting = secure(adversary, min_clients=6)  # type: ignore[arg-type]
    strategy = strategy_of(folder, NODES, SIZE, setting)
    before = {k: v.numpy() for k, v in network().state_dict().items()}
    result = strategy.start(wire, ArrayRecord(network().state_dict()), num_rounds=1)
    moved = [torch.tensor(result.arrays[k].numpy() - before[k]) for k in ("0.weight", "0.bias")]
    image = invert_first_linear_layer(*moved).numpy()
    if not image.any():
        return 0.0
    return float(np.corrcoef(image, IMAGES[TARGET])[0, 1])


def test_without_the_binding_the_targets_image_is_read_out_of_a_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (protocol_client, train_round):
        monkeypatch.setattr(module, "request_digest", lambda message: bytes(32))
    assert rebuilt(Inconsistent(clients(MALICIOUS), NODES), tmp_path) > 0.99


@pytest.mark.parametrize("adversary", [MALICIOUS, CURIOUS])
def test_clients_that_were_sent_another_model_refuse(adversary: object, tmp_path: Path) -> None:
    """Under both assumptions; nothing is opened, and the model stays as it was."""
    wire = Inconsistent(clients(adversary), NODES)
    assert rebuilt(wire, tmp_path, adversary) == 0.0
    refusals = [r.error.reason.partition(":")[0] for r in wire.replies if r.has_error()]
    assert refusals == ["DifferentRequestsError"] * (NODES - 1)


def test_the_sum_of_an_honest_round_is_no_image(tmp_path: Path) -> None:
    assert abs(rebuilt(Wire(clients(MALICIOUS), NODES), tmp_path)) < 0.9
