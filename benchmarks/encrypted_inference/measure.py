"""The cases of encrypted inference, their training, and the rows of each."""

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.encrypted_inference.batch import batch_rows
from benchmarks.encrypted_inference.cases import CASES, Case, Images, Trained, train
from benchmarks.encrypted_inference.picture import draw_inference
from benchmarks.encrypted_inference.single import (
    encrypted_weights_rows,
    fidelity_rows,
    latency_rows,
    tutorial_way,
)
from benchmarks.harness import Log, Row, Spread
from privacy.inference import (
    DataOwner,
    Evaluator,
    EvaluatorPool,
    EvaluatorProcess,
    ThreeParties,
    compile_model,
)

_BATCHES = {"mlp": ("batch", 7), "lenet": ("lenet, batch", 1)}
"""By case, its batch and the turns of a full run: CKKSTensor takes minutes."""


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure every case, and TenSEAL's own ways on the same weights."""
    torch.manual_seed(0)
    repetitions, images = (3, 20) if quick else (7, 1000)
    rows: list[Row] = []
    trained: dict[Callable[[], nn.Sequential], Trained] = {}
    for case in CASES if not quick else (CASES[0], CASES[3]):
        if case.make not in trained:
            log(f"{case.name}: training")
            trained[case.make] = train(case, quick=quick)
        model, sample, test, labels = trained[case.make]
        compiled = case.compiled(model, sample)
        log(f"{case.name}:\n{compiled.plan}")
        peer = tutorial_way(model, test[0]) if case.name == "tutorial-cnn" else None
        rows += latency_rows(case.name, compiled, test, peer, repetitions)
        log(f"{case.name}: {images} images")
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
            log(f"{case.name}, encrypted weights:\n{blind.plan}")
            name = f"{case.name}, encrypted"
            rows += encrypted_weights_rows(name, compiled, blind, test, repetitions)
            rows += fidelity_rows(name, blind, test[:images], labels[:images])
            log(f"{case.name}: all cores")
            rows += _several_processes(case, model, sample, test, quick=quick)
        if case.name in _BATCHES and not quick:
            rows += batch_rows(
                _BATCHES[case.name][0],
                model,
                sample,
                test,
                tolerance=case.tolerance,
                repetitions=_BATCHES[case.name][1],
                log=log,
            )
    return rows


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw milliseconds, images a second, and predictions against measurements."""
    draw_inference(document, path)


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
    evaluating = "from benchmarks.encrypted_inference.cases import evaluate"
    program = f"import sys\n{evaluating}\nevaluate(*sys.argv[1:])"
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
