"""Encrypted test-time inference: what the data owner does, and what is measured of it."""

import os
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flower_app.evaluator import read_frame, write_frame
from flower_app.models import ModelSpec
from flower_app.settings import SettingError
from privacy.inference import Plan, ThrowAwayOwner, compile_model

_BUNDLE = Path(__file__).parents[1]


class EvaluatorFailed(RuntimeError):
    """The evaluator's process ended before it had answered."""


@dataclass(frozen=True)
class EncryptedTest:
    """What came of the encrypted questions.

    Attributes
    ----------
    metrics : dict
        As ``metrics.json`` holds them.
    labels, answers : sequence of int
        The true classes, and those the owner decrypted.
    """

    metrics: dict[str, Any]
    labels: Sequence[int]
    answers: Sequence[int]

    @property
    def summary(self) -> str:
        """One line for a person."""
        m = self.metrics
        return (
            f"Encrypted inference: {m['images']} images, {100 * m['accuracy']:.2f} % right, "
            f"{100 * m['agreement']:.2f} % as in the clear, {m['ms_per_image']:.1f} ms an image, "
            f"{m['security_bits']} bits"
        )


def check_model_can_be_encrypted(model: nn.Sequential, spec: ModelSpec) -> None:
    """Refuse, before training, a model that could not be evaluated afterwards.

    Raises
    ------
    SettingError
        Naming what stands in the way.
    """
    try:
        compile_model(model, input_shape=spec.shape, input_range=(spec.low, spec.high))
    except ValueError as error:
        raise SettingError(
            f"model = {spec.name!r} cannot be evaluated under encryption ({error}); choose "
            "another model, or set encrypted-images = 0"
        ) from error


def run_encrypted_test(
    model: nn.Sequential,
    weights: Path,
    spec: ModelSpec,
    inputs: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    say: Callable[[str], None],
) -> EncryptedTest:
    """Encrypt inputs, have them evaluated by a process without a secret key, and decrypt.

    The owner's key is thrown away: only so may errors of the decrypted logits be published.

    Parameters
    ----------
    model : nn.Sequential
        The plain model, to compare with.
    weights : Path
        The same model as the evaluator reads it, safetensors.
    spec : ModelSpec
        What it is.
    inputs, labels : ndarray
        Test examples, (n, ...) and (n,).
    say : callable
        Given a line of progress now and then.

    Raises
    ------
    EvaluatorFailed
        If the evaluator's process died; the message carries its last words.
    """
    with torch.no_grad():
        plain = model.eval()(torch.from_numpy(inputs)).double().numpy()
    with _Evaluator(spec.name, weights) as evaluator:
        plan = Plan.from_json(evaluator.take().decode())
        say(f"Plan: {plan.query_bytes:,} bytes a question, {plan.answer_bytes:,} an answer")
        owner = ThrowAwayOwner(plan)
        material = owner.public_material()
        evaluator.give(material)
        logits, seconds, sizes = [], [], []
        for i, example in enumerate(inputs):
            query = owner.encrypt(example)
            evaluator.give(query)
            frame = evaluator.take()
            seconds.append(struct.unpack(">d", frame[:8])[0])
            logits.append(owner.logits(frame[8:]))
            sizes.append((len(query), len(frame) - 8))
            if (i + 1) % 100 == 0:
                say(f"Asked {i + 1} of {len(inputs)}")
    found = np.concatenate(logits)
    answers = found.argmax(1)
    return EncryptedTest(
        metrics={
            "images": len(inputs),
            "agreement": float((answers == plain.argmax(1)).mean()),
            "accuracy": float((answers == labels).mean()),
            "max_logit_error": float(np.abs(found - plain).max()),
            "ms_per_image": 1000 * statistics.median(seconds),
            "query_bytes": max(query for query, _ in sizes),
            "answer_bytes": max(answer for _, answer in sizes),
            "public_key_bytes": len(material),
            "security_bits": plan.security_bits,
            "release": "full-precision logits under a key thrown away: public test data only",
        },
        labels=labels.tolist(),
        answers=answers.tolist(),
    )


class _Evaluator:
    """The evaluator's process, seen from the owner's."""

    def __init__(self, name: str, weights: Path) -> None:
        # The app may run from a bundle that is not installed: its folder must be found.
        paths = [str(_BUNDLE), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "flower_app.evaluator", name, str(weights)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=_BUNDLE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def __enter__(self) -> "_Evaluator":
        return self

    def __exit__(self, *_: object) -> None:
        cast(BinaryIO, self._process.stdin).close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        cast(BinaryIO, self._process.stdout).close()
        self._errors.close()

    def give(self, frame: bytes) -> None:
        try:
            write_frame(cast(BinaryIO, self._process.stdin), frame)
        except BrokenPipeError as error:
            raise self._last_words() from error

    def take(self) -> bytes:
        frame = read_frame(cast(BinaryIO, self._process.stdout))
        if frame is None:
            raise self._last_words()
        return frame

    def _last_words(self) -> EvaluatorFailed:
        self._process.wait()
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        return EvaluatorFailed(f"the evaluator's process ended: {words[-2000:]}")
