"""A batch of one image a slot beside ``CKKSTensor``, each side in a process of its own."""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray
from torch import nn

from benchmarks.encrypted_inference.single import prediction_rows
from benchmarks.harness import Log, Row, Spread, memory_of_process
from privacy.inference import Evaluator, MeasurementOwner, compile_model

Images = NDArray[np.float64]
IMAGES = 4096


def batch_rows(
    model: nn.Sequential, sample: Images, test: Images, *, quick: bool, log: Log
) -> list[Row]:
    """Images a second and peak memory of both sides, on the same weights, in turns."""
    log(f"batch of {IMAGES}: ours encrypts")
    images = test[:IMAGES]
    repetitions = 1 if quick else 7
    ours = _Side(_ours, model, sample, images)
    log(f"batch:\n{ours.ready['plan']}")
    log(f"batch of {IMAGES}: CKKSTensor encrypts")
    theirs = _Side(_theirs, model, images)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    milliseconds: list[float] = []
    for turn in range(repetitions):
        wall = ours.evaluate()
        rates["ours"].append(IMAGES / wall)
        # Elapsed, not the processor's: the products of a batch run on every core.
        milliseconds.append(wall * 1e3)
        rates["theirs"].append(IMAGES / theirs.evaluate())
        log(f"batch of {IMAGES}: turn {turn + 1} of {repetitions}")
    figures, peers = ours.finish(), theirs.finish()
    fast, slow = Spread.of(rates["ours"]), Spread.of(rates["theirs"])
    encryption = Spread.of([IMAGES / ours.ready["encryption"]])
    return [
        Row("batch", "images", "1/s", fast, slow, "CKKSTensor", larger_is_better=True),
        *prediction_rows("batch", ours.ready["predicted_ms"], Spread.of(milliseconds)),
        Row(
            "batch",
            "process peak",
            "bytes",
            Spread.of([figures["peak"]]),
            Spread.of([peers["peak"]]),
            "CKKSTensor",
        ),
        Row("batch", "encryption", "images/s", encryption),
        Row("batch", "largest logit error", "", Spread.of([figures["error"]])),
        Row("batch", "query", "bytes", Spread.of([float(ours.ready["query"])])),
    ]


class _Side:
    """One side's process: it gets ready, then evaluates whenever it is told to."""

    def __init__(self, work: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, *arguments))
        self._process.start()
        theirs.close()
        self.ready: dict[str, Any] = self._pipe.recv()

    def evaluate(self) -> float:
        """Seconds of one evaluation."""
        self._pipe.send("evaluate")
        return float(self._pipe.recv())

    def finish(self) -> dict[str, Any]:
        """What the process has to say at the end."""
        self._pipe.send("finish")
        figures: dict[str, Any] = self._pipe.recv()
        self._process.join()
        return figures


def _ours(pipe: Connection, model: nn.Sequential, sample: Images, images: Images) -> None:
    """Data owner and evaluator; encryption is timed apart."""
    compiled = compile_model(
        model,
        input_shape=images.shape[1:],
        input_range=(0.0, 1.0),
        sample=sample,
        batch_size=IMAGES,
        tolerance=0.05,
    )
    owner = MeasurementOwner(compiled.plan)
    evaluator = Evaluator(compiled, owner.public_material())
    start = time.perf_counter()
    query = owner.encrypt(images)
    pipe.send(
        {
            "plan": str(compiled.plan),
            "predicted_ms": compiled.plan.predicted_ms,
            "encryption": time.perf_counter() - start,
            "query": len(query),
        }
    )
    logits = np.zeros((0, 0))
    while pipe.recv() == "evaluate":
        start = time.perf_counter()
        answer = evaluator.evaluate(query)
        seconds = time.perf_counter() - start
        # Each query is answered once; the next is made before the other side has its turn.
        logits, query = owner.logits(answer), b""
        query = owner.encrypt(images)
        pipe.send(seconds)
    error = float(np.abs(logits - compiled.predict(images)).max())
    pipe.send({"peak": memory_of_process("VmHWM"), "error": error})


def _theirs(pipe: Connection, model: nn.Sequential, images: Images) -> None:
    context = ts.context(ts.SCHEME_TYPE.CKKS, 8192, coeff_mod_bit_sizes=[40, 30, 30, 30, 40])
    context.global_scale = 2**30
    flat = images.reshape(len(images), -1)
    # One row of 784 elements, with the images along the slots.
    encrypted = ts.ckks_tensor(context, ts.plain_tensor(flat[:, None, :].tolist()), batch=True)
    state = model.state_dict()
    weights = [ts.plain_tensor(state[f"{layer}.weight"].T.tolist()) for layer in (1, 3)]
    biases = [ts.plain_tensor([state[f"{layer}.bias"].tolist()]) for layer in (1, 3)]
    pipe.send({})
    while pipe.recv() == "evaluate":
        start = time.perf_counter()
        value = encrypted.mm(weights[0]) + biases[0]
        value.square_()
        value = value.mm(weights[1]) + biases[1]
        pipe.send(time.perf_counter() - start)
    pipe.send({"peak": memory_of_process("VmHWM")})
