"""One image a query: milliseconds, bytes and fidelity of a compiled model."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import tenseal as ts
from numpy.typing import NDArray
from torch import nn

from benchmarks.harness import Row, Spread, interleave_clocks
from privacy.inference import (
    BlindEvaluator,
    CompiledModel,
    DataOwner,
    Evaluator,
    MeasurementOwner,
)

Images = NDArray[np.float64]
_PROCESSES = 2


def latency_rows(
    name: str,
    compiled: CompiledModel,
    test: Images,
    peer: Callable[[], object] | None,
    repetitions: int,
) -> list[Row]:
    """Time of an answer, by the wall's clock and the processor's, and bytes."""
    plan = compiled.plan
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    evaluator = role(compiled, material)
    # Each query is answered once: there is one for every turn, the uncounted one too.
    queries = [owner.encrypt(x) for x in test[: repetitions + 1]]
    ways: dict[str, Callable[[], object]] = {
        "ours": partial(_answer_next, evaluator, iter(queries)),
        "end to end": lambda: owner.decrypt(evaluator.evaluate(owner.encrypt(test[0]))),
    }
    if peer is not None:
        ways["TenSEAL"] = peer
    wall, processor = interleave_clocks(ways, repetitions=repetitions)
    peer_name = None if peer is None else "TenSEAL tutorial"
    rows = [
        Row(name, metric, "ms", spent["ours"], spent.get("TenSEAL"), peer_name)
        for metric, spent in (("evaluation", wall), ("evaluation, processor", processor))
    ]
    rows.append(Row(name, "end to end", "ms", wall["end to end"]))
    rows += prediction_rows(name, plan.predicted_ms, processor["ours"])
    for what, size in (
        ("keys", len(material)),
        ("query", len(queries[0])),
        ("answer", plan.answer_bytes),
    ):
        rows.append(Row(name, what, "bytes", Spread.of([float(size)])))
    rows.append(
        Row(name, "proved bound of a logit", "", Spread.of([2.0**plan.logit_bits])),
    )
    return rows


def prediction_rows(name: str, predicted_ms: float, measured: Spread) -> list[Row]:
    """The plan's milliseconds, and the share of them that it took."""
    return [
        Row(name, "predicted evaluation", "ms", Spread.of([predicted_ms])),
        Row(
            name,
            "measured of predicted",
            "share",
            Spread(
                measured.median / predicted_ms,
                measured.low / predicted_ms,
                measured.high / predicted_ms,
                measured.repetitions,
            ),
        ),
    ]


def encrypted_weights_rows(
    name: str, plain: CompiledModel, blind: CompiledModel, test: Images, repetitions: int
) -> list[Row]:
    """Encrypted weights beside the same model with weights that the evaluator holds."""
    ways: dict[str, Callable[[], object]] = {}
    for way, compiled in (("plain", plain), ("blind", blind)):
        owner = DataOwner(compiled.plan)
        evaluator = role(compiled, owner.public_material())
        queries = iter([owner.encrypt(x) for x in test[: repetitions + 1]])
        ways[way] = partial(_answer_next, evaluator, queries)
    wall, processor = interleave_clocks(ways, repetitions=repetitions)
    return [
        Row(name, "evaluation", "ms", wall["blind"], wall["plain"], "plain weights"),
        Row(
            name,
            "evaluation, processor",
            "ms",
            processor["blind"],
            processor["plain"],
            "plain weights",
        ),
        *prediction_rows(name, blind.plan.predicted_ms, processor["blind"]),
        Row(name, "weights", "bytes", Spread.of([float(blind.plan.weights_bytes)])),
    ]


def fidelity_rows(
    name: str, compiled: CompiledModel, images: Images, labels: NDArray[np.int64]
) -> list[Row]:
    """Encrypted answers beside the model's own; a process on each of two cores asks and answers."""
    # What was encoded already stays here: every process encodes for itself.
    bare = CompiledModel(compiled.plan, compiled.program, compiled.network, compiled.model)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(_PROCESSES, mp_context=context) as pool:
        shares = pool.map(partial(_logits, bare), np.array_split(images, _PROCESSES))
        encrypted = np.concatenate(list(shares))
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


def role(compiled: CompiledModel, material: bytes) -> Evaluator:
    """Who evaluates: the holder of the weights, or a third party."""
    plan = compiled.plan
    if not plan.parties:
        return Evaluator(compiled, material)
    weights = compiled.encrypt_weights(material)
    return BlindEvaluator(plan, material, weights, name=plan.parties[2])


def tutorial_way(model: nn.Sequential, image: Images) -> Callable[[], object]:
    """TenSEAL's tutorial 4 as it is written: im2col, ``mm`` with full Galois keys, one image."""
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


def _logits(compiled: CompiledModel, images: Images) -> Any:
    owner = MeasurementOwner(compiled.plan)
    evaluator = role(compiled, owner.public_material())
    return np.concatenate(
        [owner.logits(evaluator.evaluate(owner.encrypt(image))) for image in images]
    )


def _answer_next(evaluator: Evaluator, queries: Iterator[bytes]) -> bytes:
    return evaluator.evaluate(next(queries))
