"""A batch of one image a slot beside ``CKKSTensor``, each side in a process of its own.

``CKKSTensor`` has products with matrices, and no convolutions: those of a network are made of one
product for each place of the kernel.
"""

import multiprocessing
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import tenseal as ts
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.encrypted_inference.single import prediction_rows
from benchmarks.harness import Log, Row, Spread, memory_of_process
from privacy.inference import Evaluator, MeasurementOwner, Polynomial, Square, compile_model

Images = NDArray[np.float64]
IMAGES = 4096


def batch_rows(
    case: str,
    model: nn.Sequential,
    sample: Images,
    test: Images,
    *,
    tolerance: float,
    repetitions: int,
    log: Log,
) -> list[Row]:
    """Images a second and peak memory of both sides, on the same weights, in turns."""
    log(f"{case} of {IMAGES}: ours encrypts")
    images = test[:IMAGES]
    ours = _Side(_ours, model, sample, images, tolerance)
    log(f"{case}:\n{ours.ready['plan']}")
    log(f"{case} of {IMAGES}: CKKSTensor encrypts")
    theirs = _Side(_theirs, model, images)
    rates: dict[str, list[float]] = {"ours": [], "theirs": []}
    milliseconds: list[float] = []
    for turn in range(repetitions):
        wall = ours.evaluate()
        rates["ours"].append(IMAGES / wall)
        # Elapsed, not the processor's: the products of a batch run on every core.
        milliseconds.append(wall * 1e3)
        rates["theirs"].append(IMAGES / theirs.evaluate())
        log(f"{case} of {IMAGES}: turn {turn + 1} of {repetitions}")
    figures, peers = ours.finish(), theirs.finish()
    fast, slow = Spread.of(rates["ours"]), Spread.of(rates["theirs"])
    encryption = Spread.of([IMAGES / ours.ready["encryption"]])
    return [
        Row(case, "images", "1/s", fast, slow, "CKKSTensor", larger_is_better=True),
        *prediction_rows(case, ours.ready["predicted_ms"], Spread.of(milliseconds)),
        Row(
            case,
            "process peak",
            "bytes",
            Spread.of([figures["peak"]]),
            Spread.of([peers["peak"]]),
            "CKKSTensor",
        ),
        Row(case, "encryption", "images/s", encryption),
        Row(
            case,
            "largest logit error",
            "",
            Spread.of([figures["error"]]),
            Spread.of([peers["error"]]),
            "CKKSTensor",
        ),
        Row(case, "query", "bytes", Spread.of([float(ours.ready["query"])])),
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


def _ours(
    pipe: Connection, model: nn.Sequential, sample: Images, images: Images, tolerance: float
) -> None:
    """Data owner and evaluator; encryption is timed apart."""
    compiled = compile_model(
        model,
        input_shape=images.shape[1:],
        input_range=(0.0, 1.0),
        sample=sample,
        batch_size=IMAGES,
        tolerance=tolerance,
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
    layers = squared(model)
    # A level for each layer and each square.
    levels = 2 * len(layers) - 1
    degree = 8192 if levels <= 3 else 16384
    context = ts.context(ts.SCHEME_TYPE.CKKS, degree, coeff_mod_bit_sizes=[40, *[30] * levels, 40])
    context.global_scale = 2**30
    # Rows of one pixel, with the images along the slots.
    pixels = images.reshape(len(images), -1)
    encrypted = ts.ckks_tensor(context, ts.plain_tensor(pixels[:, None, :].tolist()), batch=True)
    pipe.send({})
    value = encrypted
    while pipe.recv() == "evaluate":
        start = time.perf_counter()
        value = evaluated(encrypted, layers, images.shape[1:])
        pipe.send(time.perf_counter() - start)
    logits = np.asarray(value.decrypt().tolist()).reshape(len(images), -1)
    with torch.no_grad():
        clear = model.double()(torch.from_numpy(images)).numpy()
    error = float(np.abs(logits - clear).max())
    pipe.send({"peak": memory_of_process("VmHWM"), "error": error})


@dataclass(frozen=True)
class _Layer:
    """A convolution or a linear layer, before a square or at the end."""

    weight: Tensor
    bias: Tensor
    stride: int


def squared(model: nn.Sequential) -> list[_Layer]:
    """The layers of a model whose activations are then plain squares.

    A parabola is c·(x + s)² + t: s goes into the bias before it, c and t into the layer behind.
    """
    layers: list[_Layer] = []
    factor, constant = 1.0, 0.0
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight, bias = (layer.state_dict()[name].double() for name in ("weight", "bias"))
            bias = bias + constant * weight.flatten(1).sum(1)
            stride = int(layer.stride[0]) if isinstance(layer, nn.Conv2d) else 0
            layers.append(_Layer(factor * weight, bias, stride))
        elif isinstance(layer, Square | Polynomial):
            c0, c1, c2 = (
                (0.0, 0.0, 1.0) if isinstance(layer, Square) else layer.coefficients.tolist()
            )
            last = layers[-1]
            layers[-1] = _Layer(last.weight, last.bias + c1 / (2 * c2), last.stride)
            factor, constant = c2, c0 - c1**2 / (4 * c2)
    return layers


def evaluated(encrypted: Any, layers: list[_Layer], shape: tuple[int, ...]) -> Any:
    """A network on a ``CKKSTensor`` of shape (1, pixels), with squares between its layers.

    Values are kept by their place in the picture, each a row of its channels.
    """
    _, height, width = shape
    places = (
        {
            (row, column): encrypted[0:1, row * width + column : row * width + column + 1]
            for row in range(height)
            for column in range(width)
        }
        if layers[0].stride
        else {(0, 0): encrypted}
    )
    for index, layer in enumerate(layers):
        if index:
            places = {place: value.square() for place, value in places.items()}
        places = _convolved(places, layer) if layer.stride else {(0, 0): _dense(places, layer)}
    return places[0, 0]


def _convolved(places: dict[tuple[int, int], Any], layer: _Layer) -> dict[tuple[int, int], Any]:
    _, _, rows, columns = layer.weight.shape
    kernel = {
        (row, column): ts.plain_tensor(layer.weight[:, :, row, column].T.tolist())
        for row in range(rows)
        for column in range(columns)
    }
    high, wide = (max(place[axis] for place in places) + 1 for axis in (0, 1))
    made = {}
    for row in range((high - rows) // layer.stride + 1):
        for column in range((wide - columns) // layer.stride + 1):
            products = (
                places[row * layer.stride + down, column * layer.stride + right].mm(weight)
                for (down, right), weight in kernel.items()
            )
            made[row, column] = _sum(products, layer)
    return made


def _dense(places: dict[tuple[int, int], Any], layer: _Layer) -> Any:
    # PyTorch flattens channels first.
    weight = layer.weight.reshape(len(layer.weight), -1, len(places))
    products = (
        value.mm(ts.plain_tensor(weight[:, :, place].T.tolist()))
        for place, value in enumerate(places[key] for key in sorted(places))
    )
    return _sum(products, layer)


def _sum(products: Iterable[Any], layer: _Layer) -> Any:
    total = reduce(operator.add, products)
    return total + ts.plain_tensor([layer.bias.tolist()])
