"""The cases of encrypted inference, their training, and the rows of each."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.encrypted_inference.batch import batch_rows
from benchmarks.encrypted_inference.picture import draw_inference
from benchmarks.encrypted_inference.single import (
    encrypted_weights_rows,
    fidelity_rows,
    latency_rows,
    tutorial_way,
)
from benchmarks.harness import Row, Say, Spread
from flower_app.data import InputKind, encode, load_dataset
from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    EvaluatorPool,
    EvaluatorProcess,
    Polynomial,
    Square,
    ThreeParties,
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


def _tutorial_cnn() -> nn.Sequential:
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
    Case("tutorial-cnn", _tutorial_cnn, "pixels", (0.0, 1.0), 5, tolerance=0.5, logit_bits=11),
    Case(
        "tutorial-cnn, precise",
        _tutorial_cnn,
        "pixels",
        (0.0, 1.0),
        5,
        tolerance=0.025,
        logit_bits=11,
    ),
    Case("lenet", _lenet, "pixels", (0.0, 1.0), 8, tolerance=0.5, max_query_bytes=20_000_000),
)


def run(*, quick: bool, say: Say) -> list[Row]:
    """Measure every case, and TenSEAL's own ways on the same weights."""
    torch.manual_seed(0)
    repetitions, images = (3, 20) if quick else (7, 1000)
    rows: list[Row] = []
    trained: dict[Callable[[], nn.Sequential], Trained] = {}
    for case in CASES if not quick else CASES[:4]:
        if case.make not in trained:
            say(f"{case.name}: training")
            trained[case.make] = train(case, quick=quick)
        model, sample, test, labels = trained[case.make]
        compiled = case.compiled(model, sample)
        say(f"{case.name}:\n{compiled.plan}")
        peer = tutorial_way(model, test[0]) if case.name == "tutorial-cnn" else None
        rows += latency_rows(case.name, compiled, test, peer, repetitions)
        say(f"{case.name}: {images} images")
        rows += fidelity_rows(case.name, compiled, test[:images], labels[:images])
        if case.name == "tutorial-cnn":
            blind = compile_model(
                model,
                input_shape=test.shape[1:],
                input_range=case.input_range,
                sample=sample,
                tolerance=1.0,
                parties=ThreeParties("laboratory", "clinic", "cloud"),
            )
            say(f"{case.name}, encrypted weights:\n{blind.plan}")
            name = f"{case.name}, encrypted"
            rows += encrypted_weights_rows(name, compiled, blind, test, repetitions)
            rows += fidelity_rows(name, blind, test[:images], labels[:images])
            say(f"{case.name}: all cores")
            rows += _several_processes(case, model, sample, test, quick=quick)
        if case.name == "mlp":
            rows += batch_rows(model, sample, test, quick=quick, say=say)
    return rows


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw milliseconds, images a second, and predictions against measurements."""
    draw_inference(document, path)


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


def _several_processes(
    case: Case, model: nn.Sequential, sample: Images, test: Images, *, quick: bool
) -> list[Row]:
    """Images a second with a process on every core, beside one."""
    compiled = case.compiled(model, sample)
    owner = DataOwner(compiled.plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    images = 20 if quick else 100
    rates: dict[str, list[float]] = {"pool": [], "single": []}
    program = (
        "import sys\nfrom benchmarks.encrypted_inference import evaluate\nevaluate(*sys.argv[1:])"
    )
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        weights = Path(folder) / "weights.safetensors"
        save_file(model.state_dict() | {"sample": torch.from_numpy(sample)}, weights)
        command = [sys.executable, "-c", program, case.name, str(weights)]
        pool = stack.enter_context(EvaluatorPool(partial(EvaluatorProcess, command)))
        pool.start_all()
        keys = pool.hold(material)
        pool.evaluate_many(keys, [owner.encrypt(x) for x in test[:8]])  # keys reach each process
        for _ in range(3):
            for way, answer in (
                ("pool", partial(pool.evaluate_many, keys)),
                ("single", lambda queries: [evaluator.evaluate(query) for query in queries]),
            ):
                queries = [owner.encrypt(x) for x in test[:images]]
                start = time.perf_counter()
                answer(queries)
                rates[way].append(images / (time.perf_counter() - start))
    ours, single = Spread.of(rates["pool"]), Spread.of(rates["single"])
    return [
        Row(case.name, "all cores", "images/s", ours, single, "one process", larger_is_better=True)
    ]
