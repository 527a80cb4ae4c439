"""Nodes with labelled inputs of their own, and a grid on which every byte can be looked at."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from privacy.inference import (
    CompiledModel,
    EvaluatorProcess,
    InputContract,
    compile_model,
)
from strategies import ENCRYPTED_ROUND, InProcessGrid, answer_encrypted_round
from strategies.encrypted_round import AccuracyReport, ExactAccuracy
from tests.privacy.inference.evaluator.evaluator_program import start_process

CONTRACT = InputContract((6,), (0.0, 1.0), classes=3)
IMAGES = 12
Misbehave = Callable[[Message, Message, Path], Message]


def model() -> CompiledModel:
    torch.manual_seed(3)
    layers = nn.Sequential(nn.Linear(6, 3))
    return compile_model(layers, input_shape=(6,), input_range=(0.0, 1.0))


def start_evaluator() -> EvaluatorProcess:
    return start_process(model)


class Shared:
    """A real evaluator's process that outlives a round, so that the tests need not start many."""

    def __init__(self, process: EvaluatorProcess) -> None:
        self.plan, self.owners = process.plan, process.owners
        self.use_keys, self.evaluate = process.use_keys, process.evaluate
        self.forget, self.alive = process.forget, True

    def close(self) -> None:
        pass


def data_of(partition: int) -> tuple[Any, Any]:
    """Inputs, and labels of which ``IMAGES - partition % IMAGES`` are what the model says."""
    inputs = np.random.default_rng(partition).random((IMAGES, 6))
    labels = model().predict(inputs).argmax(axis=1)
    labels[: partition % IMAGES] = (labels[: partition % IMAGES] + 1) % 3
    return inputs, labels


def accuracy_of(partition: int) -> float:
    return (IMAGES - partition % IMAGES) / IMAGES


def client_app(
    folders: Path,
    *,
    report: AccuracyReport | None = None,
    agree: bool = True,
    misbehave: dict[int, Misbehave] | None = None,
) -> ClientApp:
    """Nodes that answer, and after that misbehave as they are told to."""
    app = ClientApp()

    @app.query(ENCRYPTED_ROUND)
    def query(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        folder = folders / str(partition)
        reply = answer_encrypted_round(
            message,
            data=lambda: data_of(partition),
            contract=CONTRACT,
            folder=folder,
            report=ExactAccuracy() if report is None else report,
            allow_public_release=agree,
        )
        bad = (misbehave or {}).get(partition)
        return reply if bad is None else bad(message, reply, folder)

    return app


class Wiretap(InProcessGrid):
    """Keeps every message, in both directions."""

    def __init__(self, app: ClientApp, nodes: int) -> None:
        super().__init__(app, nodes)
        self.seen: list[Message] = []
        self.after: Callable[[Message], None] = lambda reply: None

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.seen += sent
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            self.seen.append(reply)
            self.after(reply)
            yield reply


def every_byte(messages: Iterable[Message]) -> bytes:
    """All that is in messages: keys, texts, numbers and bytes."""
    parts: list[bytes] = []

    def walk(value: object) -> None:
        if isinstance(value, bytes):
            parts.append(value)
        elif isinstance(value, list):
            for item in value:
                walk(item)
        else:
            parts.append(repr(value).encode())

    for message in messages:
        if message.has_error():
            walk(message.error.reason)
            continue
        content: RecordDict = message.content
        for name, record in content.items():
            walk(name)
            for key, value in record.items():
                walk(key)
                walk(value)
    return b"\n".join(parts)
