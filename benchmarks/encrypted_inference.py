"""Encrypted inference on MNIST beside TenSEAL's own ways, with the same weights."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import tenseal as ts
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks._encrypted_batch import batch_rows
from benchmarks.harness import Row, Say, Spread, interleave
from flower_app.data import InputKind, encode, load_dataset
from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    DataOwner,
    Evaluator,
    EvaluatorPool,
    Polynomial,
    Square,
    ThreeParties,
    ThrowAwayOwner,
    compile_model,
    logit_bound,
)

Images = NDArray[np.float64]


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
        tolerance=0.03,
        logit_bits=11,
    ),
    Case("lenet", _lenet, "pixels", (0.0, 1.0), 8, tolerance=0.5, max_query_bytes=20_000_000),
)


def run(*, quick: bool, say: Say) -> list[Row]:
    """Measure every case, and the peers on the same weights."""
    torch.manual_seed(0)
    repetitions, images = (3, 20) if quick else (7, 1000)
    rows: list[Row] = []
    for case in CASES if not quick else CASES[:4]:
        model, sample, test, labels = train(case, quick=quick)
        compiled = compile_model(
            model,
            input_shape=test.shape[1:],
            input_range=case.input_range,
            sample=sample,
            tolerance=case.tolerance,
            max_query_bytes=case.max_query_bytes,
        )
        say(f"{case.name}:\n{compiled.plan}")
        peer = _tutorial_way(model, test[0]) if case.name == "tutorial-cnn" else None
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
            rows += _several_processes(case.name, compiled, test, quick=quick)
            rows += _encrypted_weights(case.name, compiled, blind, test, repetitions)
            rows += _fidelity(f"{case.name}, encrypted", blind, test[:images], labels[:images])
        rows += _latency(case.name, compiled, test, peer, repetitions)
        rows += _fidelity(case.name, compiled, test[:images], labels[:images])
        if case.name == "mlp":
            rows += batch_rows(model, sample, test, quick=quick, say=say)
    for row in rows:
        say(f"{row.case:<14} {row.metric:<24} {row.ours.median:.6g} {row.unit} {row.ratio or ''}")
    return rows


def train(case: Case, *, quick: bool) -> tuple[nn.Sequential, Images, Images, NDArray[np.int64]]:
    data = load_dataset("mnist")
    train = torch.from_numpy(np.array(encode(data.train.images, case.kind)))
    labels = torch.from_numpy(np.array(data.train.labels))
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


def _latency(
    name: str,
    compiled: CompiledModel,
    test: Images,
    peer: Callable[[], object] | None,
    repetitions: int,
) -> list[Row]:
    plan = compiled.plan
    owner = ThrowAwayOwner(plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    # Each query is answered once: there is one for every turn, the uncounted ones too.
    queries = [owner.encrypt(x) for x in test[: 2 * repetitions + 2]]
    waiting = list(queries)
    ways: dict[str, Callable[[], object]] = {}
    ways["evaluation"] = lambda: evaluator.evaluate(waiting.pop())
    if peer is not None:
        ways["TenSEAL"] = peer
    ways["end to end"] = lambda: owner.decrypt(evaluator.evaluate(owner.encrypt(test[0])))
    spent = {
        way: _milliseconds(spread)
        for way, spread in interleave(ways, repetitions=repetitions).items()
    }
    del ways["end to end"]
    processor = {
        way: _milliseconds(spread)
        for way, spread in interleave(
            ways, repetitions=repetitions, clock=time.process_time
        ).items()
    }
    rows = [
        Row(
            name,
            metric,
            "ms",
            figures["evaluation"],
            figures.get("TenSEAL"),
            None if peer is None else "TenSEAL tutorial",
        )
        for metric, figures in (("evaluation", spent), ("evaluation, processor", processor))
    ]
    rows += [
        Row(name, "end to end", "ms", spent["end to end"]),
        Row(name, "predicted evaluation", "ms", Spread.of([plan.predicted_ms])),
        Row(
            name,
            "measured of predicted",
            "share",
            Spread.of([processor["evaluation"].median / plan.predicted_ms]),
        ),
    ]
    for what, size in (
        ("keys", len(material)),
        ("query", len(queries[0])),
        ("answer", plan.answer_bytes),
    ):
        rows.append(Row(name, what, "bytes", Spread.of([float(size)])))
    return rows


def _role(compiled: CompiledModel, material: bytes) -> Evaluator:
    """Who evaluates: the holder of the weights, or a third party."""
    plan = compiled.plan
    if not plan.parties:
        return Evaluator(compiled, material)
    weights = compiled.encrypt_weights(material)
    return BlindEvaluator(plan, material, weights, name=plan.parties[2])


def _answer_next(evaluator: Evaluator, queries: Iterator[bytes]) -> bytes:
    return evaluator.evaluate(next(queries))


def _encrypted_weights(
    name: str, plain: CompiledModel, blind: CompiledModel, test: Images, repetitions: int
) -> list[Row]:
    """Encrypted weights beside the same model with weights that the evaluator holds."""
    ways: dict[str, Callable[[], object]] = {}
    for way, compiled in (("plain", plain), ("blind", blind)):
        owner = DataOwner(compiled.plan)
        evaluator = _role(compiled, owner.public_material())
        queries = iter([owner.encrypt(x) for x in test[: repetitions + 1]])
        ways[way] = partial(_answer_next, evaluator, queries)
    spent = {
        way: _milliseconds(spread)
        for way, spread in interleave(ways, repetitions=repetitions).items()
    }
    case = f"{name}, encrypted"
    return [
        Row(case, "evaluation", "ms", spent["blind"], spent["plain"], "plain weights"),
        Row(case, "predicted evaluation", "ms", Spread.of([blind.plan.predicted_ms])),
        Row(case, "weights", "bytes", Spread.of([float(blind.plan.weights_bytes)])),
    ]


def _several_processes(
    name: str, compiled: CompiledModel, test: Images, *, quick: bool
) -> list[Row]:
    """Images a second with a process on every core, beside one."""
    owner = DataOwner(compiled.plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    images = 20 if quick else 100
    rates: dict[str, list[float]] = {"pool": [], "single": []}
    with EvaluatorPool(compiled, material) as pool:
        # The processes start with their first queries.
        pool.evaluate_many([owner.encrypt(x) for x in test[:8]])
        for _ in range(3):
            for way, answer in (
                ("pool", pool.evaluate_many),
                ("single", lambda queries: [evaluator.evaluate(query) for query in queries]),
            ):
                queries = [owner.encrypt(x) for x in test[:images]]
                start = time.perf_counter()
                answer(queries)
                rates[way].append(images / (time.perf_counter() - start))
    ours, single = Spread.of(rates["pool"]), Spread.of(rates["single"])
    return [Row(name, "all cores", "images/s", ours, single, "one process", larger_is_better=True)]


def _milliseconds(spread: Spread) -> Spread:
    return Spread(spread.median * 1e3, spread.low * 1e3, spread.high * 1e3, spread.repetitions)


def _fidelity(
    name: str, compiled: CompiledModel, images: Images, labels: NDArray[np.int64]
) -> list[Row]:
    owner = ThrowAwayOwner(compiled.plan)
    evaluator = _role(compiled, owner.public_material())
    encrypted = np.concatenate(
        [owner.logits(evaluator.evaluate(owner.encrypt(image))) for image in images]
    )
    clear = compiled.predict(images)
    agreement = float(np.mean(encrypted.argmax(axis=1) == clear.argmax(axis=1)))
    return [
        Row(name, "argmax agreement", "share", Spread.of([agreement]), larger_is_better=True),
        Row(name, "largest logit error", "", Spread.of([float(np.abs(encrypted - clear).max())])),
        Row(name, "predicted error", "", Spread.of([2.0**compiled.plan.error_bits])),
        Row(
            name,
            "accuracy, encrypted",
            "share",
            Spread.of([float(np.mean(encrypted.argmax(axis=1) == labels))]),
            Spread.of([float(np.mean(clear.argmax(axis=1) == labels))]),
            "in the clear",
            larger_is_better=True,
        ),
    ]


def _tutorial_way(model: nn.Sequential, image: Images) -> Callable[[], object]:
    """Tutorial 4 as it is written: im2col, ``mm`` with full Galois keys, one image."""
    context = ts.context(
        ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[31, 26, 26, 26, 26, 26, 26, 31]
    )
    context.global_scale = 2**26
    context.generate_galois_keys()
    state = model.state_dict()
    kernels = state["0.weight"].reshape(4, 7, 7).tolist()
    biases = state["0.bias"].tolist()
    matrices = [state[f"{layer}.weight"].T.tolist() for layer in (3, 5)]
    offsets = [state[f"{layer}.bias"].tolist() for layer in (3, 5)]
    encrypted, windows = ts.im2col_encoding(context, image[0].tolist(), 7, 7, 3)

    def evaluate() -> object:
        channels = [
            encrypted.conv2d_im2col(kernel, windows) + bias
            for kernel, bias in zip(kernels, biases, strict=True)
        ]
        value = ts.CKKSVector.pack_vectors(channels)
        value.square_()
        value = value.mm(matrices[0]) + offsets[0]
        value.square_()
        return value.mm(matrices[1]) + offsets[1]

    return evaluate
