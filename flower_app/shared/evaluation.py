"""Test-time inference in shares: the trained model, with two workers as processes."""

import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from flower_app.encrypted.evaluation import EncryptedTest, wrong_answers
from flower_app.models.specs import ModelSpec
from flower_app.shared.folders import PartyFolder
from flower_app.shared.model import compile_shared, write_shares
from flower_app.shared.session import begin_session, deal, started_worker
from privacy.shared_inference import DataOwner, RemoteWorkers


def run_shared_test(
    model: nn.Sequential,
    spec: ModelSpec,
    inputs: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    *,
    notify: Callable[[str], None],
) -> EncryptedTest:
    """Ask two worker processes about inputs in shares, over mutual TLS on this machine.

    Parameters
    ----------
    model : nn.Sequential
        To split, and to compare with.
    inputs, labels : ndarray, shapes (n, ...) and (n,)
        Test examples.
    notify : callable
        Takes lines of progress.

    Raises
    ------
    CommandFailedError
        If a worker does not come up.
    LinkError
        If one dies.
    """
    with torch.no_grad():
        plain = model.eval()(torch.from_numpy(inputs)).double().numpy()
    compiled = compile_shared(model, spec)
    plan = compiled.plan
    with tempfile.TemporaryDirectory(prefix="bloomseal-shared-") as made:
        folder = Path(made) / "session"
        begin_session(plan, folder, alice="localhost", bob="localhost", lifetime=timedelta(days=2))
        shares = write_shares(compiled, PartyFolder(folder / "model-owner"))
        for worker, path in shares.items():
            path.rename(PartyFolder(folder / worker).model_file)
        files = deal(folder, len(inputs))
        material = sum(path.stat().st_size for path in files) / len(inputs)
        notify(
            f"Plan: {plan.exchanges} exchanges of {plan.exchanged_bytes:,} bytes each way a "
            f"question, material {material:,.0f} bytes"
        )
        own = PartyFolder(folder / "data-owner")
        listen = ("--listen", "127.0.0.1:0")
        with (
            started_worker("bob", folder / "bob", *listen) as (_, bob),
            started_worker("alice", folder / "alice", *listen, "--bob", str(bob)) as (_, alice),
            RemoteWorkers(
                DataOwner(plan, own.letter(), own.material),
                alice=alice,
                bob=bob,
                context=own.context(listens=False),
            ) as workers,
        ):
            logits, seconds = [], []
            for number, example in enumerate(inputs, 1):
                begun = time.perf_counter()
                logits.append(workers.logits(example[None]))
                seconds.append(time.perf_counter() - begun)
                if number % 100 == 0:
                    notify(f"Asked {number} of {len(inputs)}")
    answered = np.concatenate(logits)
    answers, errors = answered.argmax(axis=1), np.abs(answered - plain)
    return EncryptedTest(
        metrics={
            "backend": "shared",
            "images": len(inputs),
            "agreement": float((answers == plain.argmax(axis=1)).mean()),
            "accuracy": float((answers == labels).mean()),
            **wrong_answers(answers, plain.argmax(axis=1), labels),
            "max_logit_error": float(errors.max()),
            "proved_logit_error": plan.error,
            "ms_per_image": 1000 * statistics.median(seconds),
            "query_bytes": 2 * 8 * plan.inputs,
            "answer_bytes": 2 * 8 * plan.logits,
            "exchanges": plan.exchanges,
            "exchanged_bytes": plan.exchanged_bytes,
            "material_bytes": round(material),
            "release": "logits, to whoever asks alone",
        },
        labels=labels.tolist(),
        answers=answers.tolist(),
    )
