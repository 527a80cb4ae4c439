"""Encrypted inference beside Orion, pyhelayers and CrypTen, with the same weights."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from benchmarks import _pictures
from benchmarks._peers.asking import Asked, Reply
from benchmarks._peers.environments import PEERS, NotMeasuredError, Peer, interpreter
from benchmarks._peers.serving import Array, Case, Layer, write_case
from benchmarks.encrypted_inference.cases import CASES, train
from benchmarks.harness import Log, Row, Spread
from privacy.inference import (
    CompiledModel,
    Evaluator,
    MeasurementOwner,
    Square,
)

COMPARED = ("hog-linear", "linear", "mlp", "tutorial-cnn")
COMPARED_QUICKLY = ("linear", "tutorial-cnn")
_PLAIN = {Square: "square", nn.ReLU: "relu", nn.Flatten: "flatten"}
OURS, OURS_COLOUR, PEER_COLOUR = "ours", "#2f9e63", "#9aa5b1"


@dataclass
class Answers:
    """What one side took and gave, image by image."""

    replies: list[Reply] = field(default_factory=list)

    @property
    def evaluation(self) -> Spread:
        """Milliseconds."""
        return Spread.of([1e3 * reply.evaluation for reply in self.replies])

    @property
    def end_to_end(self) -> Spread:
        """Milliseconds, with encryption and decryption."""
        return Spread.of([1e3 * reply.end_to_end for reply in self.replies])

    @property
    def processor(self) -> float | None:
        """Median milliseconds of all threads, evaluation only."""
        spent = [1e3 * r.processor for r in self.replies if r.processor is not None]
        return float(np.median(spent)) if spent else None

    def agreement(self, clear: Array) -> Spread:
        """Share of images whose class is that of the logits in the clear."""
        same = self._logits.argmax(axis=1) == clear.argmax(axis=1)
        return Spread.of([float(np.mean(same))])

    def error(self, clear: Array) -> Spread:
        """Of the logit that is furthest off."""
        return Spread.of([float(np.abs(self._logits - clear).max())])

    @property
    def _logits(self) -> Array:
        return np.array([reply.logits for reply in self.replies])


def run(*, quick: bool, log: Log) -> list[Row]:
    """Ask ours and every peer that can be had about the same images, in turns.

    A quick run makes no environment: it takes the peers that have one.
    """
    torch.manual_seed(0)
    count = 5 if quick else 50
    pythons: dict[Peer, Path] = {}
    missing: dict[Peer, str] = {}
    for peer in PEERS:
        try:
            pythons[peer] = interpreter(peer, make=not quick, log=log)
        except NotMeasuredError as reason:
            missing[peer] = str(reason)
    rows: list[Row] = []
    for case in CASES:
        if case.name not in (COMPARED_QUICKLY if quick else COMPARED):
            continue
        model, sample, test, _ = train(case, quick=quick)
        compiled = case.compiled(model, sample)
        log(f"{case.name}:\n{compiled.plan}")
        commands = {
            peer: [str(python), "-m", f"benchmarks._peers.{peer.module}"]
            for peer, python in pythons.items()
        }
        rows += compare(
            case.name, compiled, Case(layers(model), test[:count]), commands, missing, log
        )
    return rows


def layers(model: nn.Sequential) -> tuple[Layer, ...]:
    """The model's layers as peers read them."""
    listed = []
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight, bias = (part.detach().double().numpy() for part in layer.parameters())
            if isinstance(layer, nn.Conv2d):
                listed.append(Layer("conv", weight, bias, layer.stride[0]))
            else:
                listed.append(Layer("linear", weight, bias))
        elif isinstance(layer, nn.MaxPool2d):
            listed.append(Layer("maxpool", stride=cast(int, layer.kernel_size)))
        elif type(layer) in _PLAIN:
            listed.append(Layer(_PLAIN[type(layer)]))
        else:
            raise TypeError(f"peers are not listed of {type(layer).__name__}; add it to layers()")
    return tuple(listed)


def compare(
    name: str,
    compiled: CompiledModel,
    case: Case,
    commands: Mapping[Peer, list[str]],
    missing: Mapping[Peer, str],
    log: Log,
) -> list[Row]:
    """Rows of one model.

    Parameters
    ----------
    name : str
        The case's.
    compiled : CompiledModel
        Ours.
    case : Case
        The same weights for peers, and images.
    commands : mapping of Peer to list of str
        How to start each; the file of the case is added at the end.
    missing : mapping of Peer to str
        Why others cannot be started.
    log : callable
        Told of peers that fail.
    """
    failed = dict(missing)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "case.npz"
        write_case(file, case)
        sides: dict[Peer, Asked] = {}
        for peer, command in commands.items():
            try:
                sides[peer] = stack.enter_context(Asked([*command, str(file)]))
            except NotMeasuredError as reason:
                failed[peer] = str(reason)
        us = _Us(compiled, case.images)
        ours, theirs = Answers(), {peer: Answers() for peer in sides}
        # The first answer of each fills its caches, and is not counted.
        for turn, image in enumerate([0, *range(len(case.images))]):
            answers = [(ours, us.ask(image))]
            for peer, side in list(sides.items()):
                try:
                    answers.append((theirs[peer], side.ask(image)))
                except NotMeasuredError as reason:
                    failed[peer] = str(reason)
                    del sides[peer]
            for answered, reply in answers if turn else []:
                answered.replies.append(reply)
    clear = compiled.predict(case.images)
    rows = []
    for peer, side in sides.items():
        rows += _rows(name, peer, (ours, us.keys), (theirs[peer], side), clear)
    for peer, why in failed.items():
        label = f"{peer.title}: not measured: {why}"
        rows.append(Row(name, "evaluation", "ms", ours.evaluation, None, label))
    for row in rows:
        beside = "" if row.peer is None else f"{row.peer.median:.6g}"
        log(
            f"{name:<13} {row.metric:<20} {row.ours.median:.6g} {row.unit} {beside} {row.peer_name}"
        )
    return rows


class _Us:
    """Data owner and evaluator, asked like a peer."""

    def __init__(self, compiled: CompiledModel, images: Array) -> None:
        self._owner = MeasurementOwner(compiled.plan)
        material = self._owner.public_material()
        self._evaluator = Evaluator(compiled, material)
        self._images = images
        self.keys = len(material)

    def ask(self, image: int) -> Reply:
        start = time.perf_counter()
        query = self._owner.encrypt(self._images[image])
        encrypted, before = time.perf_counter(), time.process_time()
        answer = self._evaluator.evaluate(query)
        processor, evaluated = time.process_time() - before, time.perf_counter()
        logits = self._owner.logits(answer)
        end = time.perf_counter()
        return Reply(evaluated - encrypted, end - start, processor, tuple(logits.ravel().tolist()))


def _rows(
    name: str,
    peer: Peer,
    ours: tuple[Answers, int],
    theirs: tuple[Answers, Asked],
    clear: Array,
) -> list[Row]:
    (us, our_keys), (them, side) = ours, theirs
    title = peer.title
    details = {
        "packages": list(peer.packages),
        "parameters": side.parameters,
        "processor_ms": us.processor,
        "peer_processor_ms": them.processor,
        "peer_query_bytes": side.sizes["query"],
        "peer_agreement": them.agreement(clear).median,
    }
    rows = [
        Row(name, "evaluation", "ms", us.evaluation, them.evaluation, title, details=details),
        Row(name, "end to end", "ms", us.end_to_end, them.end_to_end, title),
    ]
    if "keys" in side.sizes:
        keys = [Spread.of([float(size)]) for size in (our_keys, side.sizes["keys"])]
        rows.append(Row(name, "keys", "bytes", keys[0], keys[1], title))
    share, off = us.agreement(clear), us.error(clear)
    return [
        *rows,
        Row(name, "argmax agreement", "share", share, them.agreement(clear), title, True),
        Row(name, "largest logit error", "", off, them.error(clear), title),
    ]


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Milliseconds of one answer: a bar to evaluate it, a line to its end on the other side."""
    rows = document["rows"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    figure = Figure(figsize=(9, 1.5 * len(cases) + 1), layout="constrained")
    panels = figure.subplots(len(cases), 1, sharex=True, squeeze=False)[:, 0]
    for axes, case in zip(panels, cases, strict=True):
        bars = _bars([row for row in rows if row["case"] == case])
        for height, (title, (evaluation, end_to_end, right)) in enumerate(reversed(bars.items())):
            colour = OURS_COLOUR if title == OURS else PEER_COLOUR
            hatch = "//" if "parties" in title else None
            axes.barh(height, evaluation, color=colour, hatch=hatch, edgecolor="white", height=0.7)
            axes.plot([evaluation, end_to_end], [height, height], color="#333333", lw=1)
            label = f"  {evaluation:.3g} of {end_to_end:.3g} ms{'' if right else ', wrong answers'}"
            axes.text(end_to_end, height, label, va="center", fontsize=8)
        axes.set_yticks(range(len(bars)), list(reversed(bars)), fontsize=8)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_title(case, loc="left", fontsize=9)
    panels[-1].set_xlabel(
        "ms for one image (log scale): bar: evaluation; line: to the end of decryption"
    )
    figure.suptitle("One encrypted answer (hatched: another trust model)", fontsize=11)
    _pictures.save(figure, path)


def _bars(rows: list[Mapping[str, Any]]) -> dict[str, tuple[float, float, bool]]:
    """Evaluation, end to end, and whether the classes are right, by who answers."""
    bars: dict[str, tuple[float, float, bool]] = {}
    ends = {row["peer_name"]: row for row in rows if row["metric"] == "end to end"}
    for row in rows:
        if row["metric"] == "evaluation" and row["peer"] is not None:
            end, right = ends[row["peer_name"]], row["details"]["peer_agreement"] >= 0.9
            bars.setdefault(OURS, (row["ours"], end["ours"], True))
            bars[row["peer_name"]] = (row["peer"], end["peer"], right)
    return bars
