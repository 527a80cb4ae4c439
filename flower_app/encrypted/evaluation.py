"""Encrypted test-time inference: a data owner's questions and their measurement."""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flower_app.encrypted.evaluator import start_evaluator
from flower_app.encrypted.model import compile_app_model, compiled_file
from flower_app.errors import SettingError
from flower_app.models.specs import ModelSpec
from privacy.inference import MeasurementOwner, decide


@dataclass(frozen=True)
class EncryptedTest:
    """Metrics as in ``metrics.json``; the true classes and the decrypted ones."""

    metrics: dict[str, Any]
    labels: Sequence[int]
    answers: Sequence[int]


def check_model_can_be_encrypted(
    model: nn.Sequential,
    spec: ModelSpec,
    compile_it: Callable[[nn.Sequential, ModelSpec], object] = compile_app_model,
) -> None:
    """Refuse, before training, a model that could not be evaluated afterwards.

    A layer that begins at zero gets torch's usual first weights here: the model then distinguishes
    inputs, as it will when it is trained. ``compile_it`` is the backend's.

    Raises
    ------
    SettingError
        Naming the obstacle.
    """
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in copied.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
                layer.reset_parameters()
    try:
        compile_it(copied, spec)
    except ValueError as error:
        shared = ", or set encrypted-backend = 'shared'" * (compile_it is compile_app_model)
        raise SettingError(
            f"model = {spec.name!r} cannot be evaluated under encryption ({error}); choose "
            f"another model{shared}, or encrypted-test-images = 0"
        ) from error


def wrong_answers(
    answers: npt.NDArray[np.int64],
    in_the_clear: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
) -> dict[str, int]:
    """How many answers are wrong, and how many of these the plain model answers as wrongly."""
    wrong = answers != labels
    same = int((wrong & (answers == in_the_clear)).sum())
    return {"wrong": int(wrong.sum()), "wrong_as_in_the_clear": same}


def run_encrypted_test(
    model: nn.Sequential,
    weights: Path,
    spec: ModelSpec,
    inputs: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    notify: Callable[[str], None],
) -> EncryptedTest:
    """Encrypt inputs, have them evaluated by a process without a secret key, and decrypt.

    The owner's key is thrown away, so that errors of the decrypted logits may be published.

    ``model`` is the plain model to compare with, ``weights`` the same as a run's file; inputs and
    labels are test examples, (n, ...) and (n,). ``notify`` receives lines of progress.

    Raises
    ------
    EvaluatorFailedError
        If the evaluator's process died.
    """
    with torch.no_grad():
        plain = model.eval()(torch.from_numpy(inputs)).double().numpy()
    with compiled_file(spec.name, weights) as file, start_evaluator(file) as evaluator:
        plan = evaluator.plan
        notify(f"Plan: {plan.query_bytes:,} bytes a question, {plan.answer_bytes:,} an answer")
        owner = MeasurementOwner(plan)
        material = owner.public_material()
        evaluator.use_keys(material)
        logits, seconds, sizes = [], [], []
        for i, example in enumerate(inputs):
            query = owner.encrypt(example)
            answer, duration = evaluator.evaluate(query)
            seconds.append(duration)
            logits.append(owner.logits(answer))
            sizes.append((len(query), len(answer)))
            if (i + 1) % 100 == 0:
                notify(f"Asked {i + 1} of {len(inputs)}")
    decrypted = np.concatenate(logits)
    answers, errors = decide(decrypted), np.abs(decrypted - plain)
    in_the_clear = decide(plain)
    beyond = int((errors.max(axis=1) > 2.0**plan.error_bits).sum())
    if beyond:
        notify(
            f"The plan's prediction was wrong for these images: {beyond} of {len(inputs)} have a "
            f"larger error of a logit than the {2.0**plan.error_bits:.3g} that it names"
        )
    return EncryptedTest(
        metrics={
            "backend": "ckks",
            "images": len(inputs),
            "agreement": float((answers == in_the_clear).mean()),
            "accuracy": float((answers == labels).mean()),
            **wrong_answers(answers, in_the_clear, labels),
            "max_logit_error": float(errors.max()),
            "ms_per_image": 1000 * statistics.median(seconds),
            "query_bytes": max(query for query, _ in sizes),
            "answer_bytes": max(answer for _, answer in sizes),
            "public_key_bytes": len(material),
            "security_bits": plan.security_bits,
            "release": "full-precision logits of test data alone, which ε does not cover, under "
            "a key thrown away",
        },
        labels=labels.tolist(),
        answers=answers.tolist(),
    )
