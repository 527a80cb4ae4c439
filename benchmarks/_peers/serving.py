"""A peer's side of the pipe, and the file that brings it a model and images.

This module runs in the peer's environment: it imports nothing but NumPy.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """A layer: ``conv`` and ``linear`` have weights; others have none.

    ``square``, ``relu``, ``flatten``, and ``maxpool`` over windows of ``stride`` by ``stride``.
    """

    kind: str
    weight: Array | None = None
    bias: Array | None = None
    stride: int = 1


@dataclass(frozen=True)
class Case:
    """A model and the images that it is asked about."""

    layers: tuple[Layer, ...]
    images: Array
    """Shape (n, ...): images before the first layer."""

    @property
    def depth(self) -> int:
        """Multiplications one after the other: one a layer, but for those that only reshape."""
        return sum(layer.kind != "flatten" for layer in self.layers)


def write_case(path: Path, case: Case) -> None:
    """Write a case for peers to read."""
    arrays = {"images": case.images}
    kinds = []
    for place, layer in enumerate(case.layers):
        kinds.append({"kind": layer.kind, "stride": layer.stride})
        if layer.weight is not None and layer.bias is not None:
            arrays |= {f"{place}.weight": layer.weight, f"{place}.bias": layer.bias}
    np.savez(path, layers=np.array(json.dumps(kinds)), **arrays)  # type: ignore[arg-type]


def read_case(path: Path) -> Case:
    """Read what ``write_case`` wrote."""
    with np.load(path) as file:
        layers = tuple(
            Layer(
                kind["kind"],
                file.get(f"{place}.weight"),
                file.get(f"{place}.bias"),
                kind["stride"],
            )
            for place, kind in enumerate(json.loads(str(file["layers"])))
        )
        return Case(layers, file["images"])


@dataclass(frozen=True)
class Prepared:
    """A peer with its keys made and its model compiled, ready for questions."""

    encrypt: Callable[[Array], Any]
    """From one image to what goes to the evaluator."""
    evaluate: Callable[[Any], Any]
    """From there to the encrypted logits: what is timed."""
    decrypt: Callable[[Any], Sequence[float]]
    """From there to the logits."""
    parameters: str
    """Of the scheme, in words."""
    sizes: Mapping[str, int]
    """Bytes of what travels: ``query``, and ``keys`` where there are any."""
    alone: bool = True
    """Whether this process does all the work."""
    delay: Callable[[float], None] | None = None
    """Have each exchange with another party wait so many seconds, from now on."""
    costs: Callable[[], Mapping[str, float]] | None = None
    """What was spent since this was last called: ``exchanges``, ``bytes`` this party sent, and
    ``processor``, seconds of all parties."""


def serve(prepare: Callable[[Case], Prepared]) -> None:
    """Prepare the case named on the command line, and answer each index on standard input.

    The first reply says that the peer is ready, each further one what an image took and gave.
    """
    # Libraries print as they like; replies have the pipe for themselves.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(**fields: object) -> None:
        print(json.dumps(fields), file=replies, flush=True)

    case = read_case(Path(sys.argv[1]))
    prepared = prepare(case)
    reply(parameters=prepared.parameters, sizes=dict(prepared.sizes))
    for line in sys.stdin:
        place, delay = line.split()
        image = case.images[int(place)]
        if prepared.delay is not None:
            prepared.delay(float(delay))
        if prepared.costs is not None:
            prepared.costs()
        moments = [time.perf_counter()]
        query = prepared.encrypt(image)
        moments.append(time.perf_counter())
        before = time.process_time()
        answer = prepared.evaluate(query)
        processor = time.process_time() - before
        moments.append(time.perf_counter())
        costs = prepared.costs() if prepared.costs is not None else {}
        logits = prepared.decrypt(answer)
        moments.append(time.perf_counter())
        reply(
            end_to_end=moments[3] - moments[0],
            evaluation=moments[2] - moments[1],
            processor=processor if prepared.alone else None,
            logits=[float(value) for value in logits],
            costs=dict(costs),
        )
