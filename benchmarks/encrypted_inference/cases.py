"""The networks of encrypted inference, trained on MNIST."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import nn

from flower_app.data import InputKind, encode, load_dataset
from privacy.inference import (
    CompiledModel,
    Polynomial,
    Square,
    compile_model,
    logit_bound,
    serve_evaluations,
)

Images = NDArray[np.float64]
Trained = tuple[nn.Sequential, Images, Images, NDArray[np.int64]]


@dataclass(frozen=True)
class Case:
    """A model, what it is fed, and what its plan must hold."""

    name: str
    make: Callable[[], nn.Sequential]
    kind: InputKind
    input_range: tuple[float, float]
    epochs: int
    tolerance: float = 0.05
    max_query_bytes: int | None = None
    logit_bits: float | None = None
    """Where given, training keeps the bound of the logits near 2 to that power."""

    def compiled(self, model: nn.Sequential, sample: Images) -> CompiledModel:
        """Compile a model of this case, with some inputs for its predicted error."""
        return compile_model(
            model,
            input_shape=sample.shape[1:],
            input_range=self.input_range,
            sample=sample,
            tolerance=self.tolerance,
            max_query_bytes=self.max_query_bytes,
        )


def _linear(inputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10))


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), Square(), nn.Linear(64, 10))


def tutorial_cnn() -> nn.Sequential:
    """The network of TenSEAL's tutorial 4."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 7, stride=3),
        Square(),
        nn.Flatten(),
        nn.Linear(256, 64),
        Square(),
        nn.Linear(64, 10),
    )


def _lenet() -> nn.Sequential:
    """Two convolutions as wide as LeNet-5's, with activations that learn."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, stride=2),
        Polynomial([0.0, 0.5, 0.25], trainable=True),
        nn.Conv2d(6, 16, 5, stride=2),
        Polynomial([0.0, 0.5, 0.25], trainable=True),
        nn.Flatten(),
        nn.Linear(256, 84),
        Polynomial([0.0, 0.5, 0.25], trainable=True),
        nn.Linear(84, 10),
    )


CASES = (
    Case("hog-linear", lambda: _linear(392), "hog", (-1.0, 1.0), 3),
    Case("linear", lambda: _linear(784), "pixels", (0.0, 1.0), 3),
    Case("mlp", _mlp, "pixels", (0.0, 1.0), 3),
    # Two plans for one network: the quickest, and a more precise one in a larger ring.
    Case("tutorial-cnn", tutorial_cnn, "pixels", (0.0, 1.0), 5, tolerance=0.5, logit_bits=11),
    Case(
        "tutorial-cnn, precise",
        tutorial_cnn,
        "pixels",
        (0.0, 1.0),
        5,
        tolerance=0.025,
        logit_bits=11,
    ),
    Case("lenet", _lenet, "pixels", (0.0, 1.0), 8, tolerance=0.5, max_query_bytes=20_000_000),
)


def train(case: Case, *, quick: bool) -> Trained:
    """The model of a case, a public sample, and the test images and their labels."""
    data = load_dataset("mnist")
    count = 20_000 if quick else len(data.train)
    train = torch.from_numpy(np.array(encode(data.train.images[:count], case.kind)))
    labels = torch.from_numpy(np.array(data.train.labels[:count]))
    test = np.asarray(encode(data.test.images, case.kind), dtype=np.float64)
    model = case.make()
    # Weight decay keeps the proved range of the logits small, and with it the error.
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    epochs = 1 if quick else case.epochs
    steps = epochs * (len(train) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps + 1)
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(128)[: len(train) // 128]:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(train[rows]), labels[rows])
            if case.logit_bits is not None:
                bound = logit_bound(
                    model, input_shape=train.shape[1:], input_range=case.input_range
                )
                loss = loss + 0.3 * nn.functional.relu(bound.log2() - case.logit_bits)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    sample = train[:32].double().numpy()
    return model.eval(), sample, test, np.array(data.test.labels)


def evaluate(name: str, path: str) -> None:
    """Be an evaluator's process: of this case, with the weights and the sample of a file."""

    def compiling() -> CompiledModel:
        (case,) = (case for case in CASES if case.name == name)
        tensors = load_file(path)
        sample = tensors.pop("sample").numpy()
        model = case.make()
        model.load_state_dict(tensors)
        return case.compiled(model.eval(), sample)

    serve_evaluations(compiling)
