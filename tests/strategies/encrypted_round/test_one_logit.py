"""An encrypted round on a model with one logit: nodes decide at their own threshold."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from privacy.inference import CompiledModel, InputContract, compile_model
from strategies import (
    ENCRYPTED_ROUND,
    Budget,
    EncryptedRound,
    InProcessGrid,
    PublicMetrics,
    answer_encrypted_round,
)
from strategies.encrypted_round import ExactAccuracy
from tests.privacy.inference.evaluator.evaluator_program import start_process

NODES, IMAGES = 2, 12


def one_logit_model() -> CompiledModel:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(6, 1))
    layers[0].weight.data *= 5
    return compile_model(layers, input_shape=(6,), input_range=(-1.0, 1.0))


def test_nodes_report_what_is_right_at_their_threshold(tmp_path: Path) -> None:
    threshold = 0.5
    compiled = one_logit_model()
    app = ClientApp()

    def data_of(node: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.random.default_rng(node).uniform(-1, 1, (IMAGES, 6))
        labels = (compiled.predict(inputs)[:, 0] > threshold).astype(float)  # as BCE wants them
        assert 0 < labels.sum() < IMAGES
        labels[: 3 * node] = 1 - labels[: 3 * node]
        return inputs, labels

    @app.query(ENCRYPTED_ROUND)
    def query(message: Message, context: Context) -> Message:
        node = int(context.node_config["partition-id"])
        return answer_encrypted_round(
            message,
            data=lambda: data_of(node),
            contract=InputContract((6,), (-1.0, 1.0), classes=2),
            folder=tmp_path / str(node),
            report=ExactAccuracy(),
            allow_public_release=True,
            threshold=threshold,
        )

    test = EncryptedRound(
        population=NODES,
        start_evaluator=lambda: start_process(one_logit_model),
        images=IMAGES,
        metrics=PublicMetrics(),
        budget=Budget(math.inf, 1e-5),
        workers=1,
    )
    result = test.run(InProcessGrid(app, NODES))
    assert result.answered == NODES
    assert result.accuracy == pytest.approx((1 + (IMAGES - 3) / IMAGES) / 2)
