"""``ask --shared``: images, or rows, to two workers, of whom neither sees them."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.commands.own_questions import Question
from flower_app.errors import CommandFailedError, DataError
from flower_app.models.specs import MODELS, ModelSpec
from flower_app.shared.folders import PartyFolder
from flower_app.tasks import Task, task_spec
from privacy.inference.input_range import input_range
from privacy.shared_inference import Address, DataOwner, Plan, RemoteWorkers
from privacy.shared_inference.errors import (
    LinkError,
    MaterialError,
    MaterialSpentError,
    MessageError,
    OutOfRangeError,
)


def ask_workers(
    workers: str,
    folder: Path,
    questions: Callable[[Plan], Iterator[Question]],
    files: int,
    *,
    names: Sequence[str],
    top: int | None,
    as_json: bool,
) -> int:
    """Ask about each input, one a question; the number of those without an answer.

    Parameters
    ----------
    workers : str
        Alice's and bob's ``host:port``, with a comma between them.
    folder : path
        The data owner's, from ``provider begin``.
    questions : callable
        Gives the inputs, for the session's plan.
    names : sequence of str
        What the classes are called; none for their numbers.

    Raises
    ------
    CommandFailedError
        If nothing can be asked.
    """
    try:
        alice, bob = map(Address.parse, workers.split(","))
    except ValueError as error:
        raise CommandFailedError(
            f"with --shared give alice's and bob's addresses for URL, such as "
            f"alice.example:7441,bob.example:7442 ({error})"
        ) from error
    own = PartyFolder(folder)
    plan, context = own.plan(), own.context(listens=False)
    asked = questions(plan)
    if top is not None and (plan.answer != "logits" or top > plan.logits):
        raise CommandFailedError(
            f"--top is {top}; this session's workers answer with "
            + ("the class alone" if plan.answer == "class" else f"{plan.logits} classes")
        )
    try:
        owner = DataOwner(plan, own.letter(), own.material.absolute())
    except (MessageError, MaterialError) as error:
        raise CommandFailedError(f"{folder}: {error}") from error
    try:
        with RemoteWorkers(owner, alice=alice, bob=bob, context=context) as remote:
            return _ask_all(remote, plan, asked, files, names, top=top or 1, as_json=as_json)
    finally:
        owner.close()


def shared_spec(plan: Plan, task: Task | None) -> ModelSpec:
    """The inputs of a plan: those of the task, or without one of a model of the app's.

    Raises
    ------
    CommandFailedError
        If the plan takes others.
    """
    for spec in [task_spec(task)] if task else MODELS.values():
        declared = input_range("input_range", (spec.low, spec.high), spec.shape)
        if (spec.shape, declared, spec.classes) == (
            plan.input_shape,
            plan.input_range,
            plan.logits,
        ):
            return spec
    whose = f"the task {task.name} does not have" if task else "no model here has; give --task FILE"
    raise CommandFailedError(
        f"the plan is for inputs of shape {plan.input_shape} and {plan.logits} classes, in ranges "
        f"which {whose}"
    )


def _ask_all(
    remote: RemoteWorkers,
    plan: Plan,
    questions: Iterator[Question],
    files: int,
    names: Sequence[str],
    *,
    top: int,
    as_json: bool,
) -> int:
    answered, failed, seconds = 0, 0, []
    for number, name, inputs in questions:
        try:
            if isinstance(inputs, DataError):
                raise inputs
            begun = time.perf_counter()
            classes = _classes(remote, plan, inputs[None], top)
            seconds.append(time.perf_counter() - begun)
        except MaterialSpentError as error:
            raise CommandFailedError(
                f"{error}: `provider deal`, whose files go into `material` of the parties' folders"
            ) from error
        except MaterialError as error:
            raise CommandFailedError(str(error)) from error
        except (DataError, OutOfRangeError, LinkError, MessageError) as error:
            if not answered and isinstance(error, LinkError):
                raise CommandFailedError(str(error)) from error
            failed += 1
            reason = str(error) if isinstance(error, DataError) else f"{name}: {error}"
            print(f"error: {reason}", file=sys.stderr)
            continue
        answered += 1
        if as_json:
            named = {"names": [names[label] for label in classes]} if names else {}
            print(json.dumps({"image": name, "classes": classes} | named), flush=True)
        else:
            place = f"[{number:>{len(str(files))}}/{files}] " if files > 1 else ""
            shown = ", ".join(names[label] for label in classes) if names else ""
            print(f"{place}{name}: {shown or ' '.join(map(str, classes))}", flush=True)
    middle = f"; {1000 * float(np.median(seconds)):.1f} ms a question" if seconds else ""
    print(f"{answered} answered, {failed} not{middle}", file=sys.stderr)
    return failed


def _classes(remote: RemoteWorkers, plan: Plan, inputs: NDArray[np.float32], top: int) -> list[int]:
    """The best classes in order; of equal logits the first."""
    if plan.answer == "class":
        return [int(remote.classes(inputs)[0])]
    return [int(place) for place in np.argsort(-remote.logits(inputs)[0], kind="stable")[:top]]
