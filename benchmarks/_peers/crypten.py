"""CrypTen: secret sharing between two processes on this machine. Another trust model.

Party 0 has the images, party 1 the model. Neither sees the other's, as long as they do not
collude; no single server could answer. The provider of multiplication triples is the default:
party 0 makes them, which protects the model from it by its honesty alone.
"""

import os
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks._peers.serving import Array, Case, Layer, Prepared, read_case, serve

# CrypTen's importer of ONNX files asks for a module that PyTorch has dropped since, as soon as
# CrypTen is imported. Here layers are made by hand, so an empty one will do.
sys.modules["torch.onnx.symbolic_registry"] = types.ModuleType("symbolic_registry")
import crypten  # noqa: E402

DATA_OWNER, MODEL_OWNER = 0, 1
_BATCHED = 5
"""Axes of the images of batches: questions, images, channels, rows, columns."""


class Traffic:
    """Counts what the data owner's party sends, and delays it.

    Each collective operation counts as one exchange: less than the two that gloo takes for a sum.
    """

    def __init__(self, other: int) -> None:
        self._other = other
        self._delay = 0.0
        self._exchanges = self._bytes = 0
        self._processor = self._clock()
        here = crypten.comm.get()
        for name in ("all_reduce", "all_gather", "reduce", "gather", "scatter", "broadcast"):
            setattr(here, name, self._watched(getattr(here, name)))

    def delay(self, seconds: float) -> None:
        """Wait so long at each exchange from now on."""
        self._delay = seconds

    def costs(self) -> dict[str, float]:
        """Exchanges, bytes, and seconds of both processors, since this was last called."""
        clock = self._clock()
        made = {
            "exchanges": float(self._exchanges),
            "bytes": float(self._bytes),
            "processor": clock - self._processor,
        }
        self._exchanges, self._bytes, self._processor = 0, 0, clock
        return made

    def _watched(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def watched(given: Any, *rest: Any, **named: Any) -> Any:
            tensors = given if isinstance(given, list) else [given]
            self._exchanges += 1
            self._bytes += sum(tensor.nelement() * tensor.element_size() for tensor in tensors)
            if self._delay:
                time.sleep(self._delay)
            return operation(given, *rest, **named)

        return watched

    def _clock(self) -> float:
        """Seconds of this processor and the other party's, all threads."""
        tasks = Path(f"/proc/{self._other}/task").glob("*/schedstat")
        return time.process_time() + sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def prepare(case: Case, folder: str, other: int) -> Prepared:
    """Meet the other party in ``folder``, and share the weights and the image with it.

    ``other`` is the number of its process. Images of a batch come together: shape (questions,
    images, ...).
    """
    network = _join(case, DATA_OWNER, folder)
    traffic = Traffic(other)
    shape = _shape(case)

    def encrypt(image: Array) -> Any:
        return crypten.cryptensor(torch.from_numpy(image.reshape(shape)), src=DATA_OWNER)

    def decrypt(answer: Any) -> list[float]:
        logits: list[float] = answer.get_plain_text(dst=DATA_OWNER).ravel().tolist()
        return logits

    bits = crypten.cfg.encoder.precision_bits
    return Prepared(
        encrypt,
        network,
        decrypt,
        f"additive shares modulo 2^64, {bits} bits after the point, triples by party 0",
        {"query": 8 * case.images[0].size},
        alone=False,
        delay=traffic.delay,
        costs=traffic.costs,
    )


def take_part(case: Case, folder: str) -> None:
    """Be the model's owner, until the other party is gone."""
    network = _join(case, MODEL_OWNER, folder)
    nothing = torch.zeros(_shape(case))
    while True:
        network(crypten.cryptensor(nothing, src=DATA_OWNER)).get_plain_text(dst=DATA_OWNER)


def _shape(case: Case) -> tuple[int, ...]:
    """Of a question: a batch of images."""
    return case.images.shape[1:] if case.images.ndim == _BATCHED else (1, *case.images.shape[1:])


def _join(case: Case, rank: int, folder: str) -> Callable[[Any], Any]:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "RENDEZVOUS": (Path(folder) / "rendezvous").as_uri(),
        "DISTRIBUTED_BACKEND": "gloo",
    }
    torch.set_num_threads(1)  # a core for each party
    crypten.init()
    steps = [_step(layer) for layer in case.layers]

    def network(values: Any) -> Any:
        for step in steps:
            values = step(values)
        return values

    return network


def _step(layer: Layer) -> Callable[[Any], Any]:
    if layer.weight is None or layer.bias is None:
        steps: dict[str, Callable[[Any], Any]] = {
            "square": lambda values: values.square(),
            "relu": lambda values: values.relu(),
            "maxpool": lambda values: values.max_pool2d(layer.stride),
            "flatten": lambda values: values.flatten(start_dim=1),
        }
        return steps[layer.kind]
    weight = crypten.cryptensor(torch.from_numpy(layer.weight), src=MODEL_OWNER)
    bias = crypten.cryptensor(torch.from_numpy(layer.bias), src=MODEL_OWNER)
    if layer.kind == "conv":
        wide = bias.reshape(-1, 1, 1)
        return lambda values: values.conv2d(weight, stride=layer.stride) + wide
    turned = weight.t()
    return lambda values: values.matmul(turned) + bias


if __name__ == "__main__":
    if len(sys.argv) > 2:
        take_part(read_case(Path(sys.argv[1])), sys.argv[2])
    else:
        with tempfile.TemporaryDirectory() as meeting:
            other = subprocess.Popen([sys.executable, "-m", __spec__.name, sys.argv[1], meeting])
            try:
                serve(partial(prepare, folder=meeting, other=other.pid))
            finally:
                other.kill()
                other.wait()
