"""A node's side of a test-time round: keys for this round alone, questions, one count.

Somebody else holds the model and evaluates. The node is sent a plan, looks at it before it
believes it, makes keys, asks about some of its own labelled images, and later counts how many
answers were right. What it must remember between the two lies in one file of its own.
"""

import base64
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import of_kind, real_array
from privacy.files import write_durably
from privacy.inference.errors import MessageError, OutOfRangeError, PlanRefusedError, ReleaseError
from privacy.inference.owner.owner import DataOwner
from privacy.inference.owner.release_policy import ClassOnly
from privacy.inference.plan import Plan
from privacy.inference.plan_check import FAULTS_OF_A_PLAN, MAX_ROUND_BYTES
from strategies.encrypted_round.errors import RoundError

_SECRETS = "encrypted-round.secrets"
_LABELS = (
    "this node's labels are not one class an image: give whole numbers from 0 to classes - 1, in "
    "one dimension"
)


@dataclass(frozen=True)
class Questions:
    """What leaves the node; all of it is public or encrypted.

    Attributes
    ----------
    material : bytes
        Public and evaluation keys, made for this round.
    queries : tuple of bytes
        One for each ``batch_size`` images.
    """

    material: bytes
    queries: tuple[bytes, ...]


def begin_round(
    plan: Plan,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    images: int,
    folder: Path,
    max_bytes: int = MAX_ROUND_BYTES,
) -> Questions:
    """Make fresh keys, encrypt some of the node's images, and keep the secrets.

    Secrets of an earlier round that was not finished are overwritten: its answers cannot be read
    any more.

    Parameters
    ----------
    plan : Plan
        From :func:`accept_plan`.
    inputs, labels : array_like
        The node's own, (n, ...) and (n,).
    images : int
        How many to ask about, at most; drawn at random if there are more, and fewer where
        ``max_bytes`` allows no more.
    folder : Path
        The node's own, mode 0700; see :func:`private_folder`.
    max_bytes : int
        Of keys and questions together.

    Returns
    -------
    Questions

    Raises
    ------
    RoundError
        If there are no images, or they are not what the node said they are.
    PlanRefusedError
        If keys for the plan cannot be made.
    TypeError
        If ``plan`` is none.
    """
    of_kind("plan", plan, Plan, "the plan, as accept_plan returned it")
    x = _reals(inputs, "this node's images are not real numbers")
    right = _reals(labels, _LABELS)
    room = (max_bytes - plan.public_bytes) // plan.query_bytes * plan.batch_size
    count = min(images, len(x) if x.ndim else 0, room)
    if count < 1 or right.shape[:1] != (len(x),):
        raise RoundError("this node has no labelled images to ask about")
    if right.shape != (len(x),) or not bool(np.isin(right, np.arange(plan.classes)).all()):
        raise RoundError(_LABELS)
    rows = np.array(random.SystemRandom().sample(range(len(x)), count))
    chunks = [rows[i : i + plan.batch_size] for i in range(0, count, plan.batch_size)]
    try:
        owner = DataOwner(plan)
        material = owner.public_material()
        queries = tuple(
            owner.encrypt(x[chunk[0]] if plan.batch_size == 1 else x[chunk]) for chunk in chunks
        )
    except OutOfRangeError as error:
        raise RoundError("this node's images are outside the range that it declared") from error
    except FAULTS_OF_A_PLAN as error:
        # Not in words: they could be about the images.
        raise PlanRefusedError(
            f"the plan is refused: it cannot be carried out ({type(error).__name__})"
        ) from error
    kept = {
        "plan": plan.to_json(),
        "labels": [right[chunk].astype(int).tolist() for chunk in chunks],
        "owner": base64.b64encode(owner.secret_state()).decode(),
    }
    write_durably(folder / _SECRETS, json.dumps(kept).encode())
    return Questions(material, queries)


def _reals(values: ArrayLike, refusal: str) -> NDArray[Any]:
    try:
        return real_array("values", values, "as the node's data are")
    except TypeError as error:
        raise RoundError(refusal) from error


def finish_round(
    answers: Sequence[bytes], *, folder: Path, threshold: float = 0.0
) -> tuple[int, int]:
    """Decrypt the answers to the questions of :func:`begin_round` and count the right ones, once.

    The secrets are removed before the first answer is read: whatever happens, no answer under
    these keys is ever read a second time.

    Parameters
    ----------
    answers : sequence of bytes
        One for each question, in their order.
    folder : Path
        As in :func:`begin_round`.
    threshold : float
        Where a single logit decides, as :class:`ClassOnly`.

    Returns
    -------
    right, asked : int

    Raises
    ------
    RoundError
        If there is no open round, or not one good answer for each question.
    """
    path = folder / _SECRETS
    try:
        text = path.read_text()
    except FileNotFoundError as error:
        raise RoundError(
            "this node has no open round: it has been answered, another began, or the node lost "
            "its folder"
        ) from error
    path.unlink()
    try:
        kept = json.loads(text)
        state = base64.b64decode(kept["owner"])
        owner = DataOwner.from_secret_state(
            Plan.from_json(kept["plan"]), state, release=ClassOnly(threshold)
        )
    except ReleaseError as error:
        raise RoundError(
            "this node's threshold does not fit the model: one logit is needed, and less "
            "than 2^logit_bits"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise RoundError("what this node kept of the round is damaged") from error
    if len(answers) != len(kept["labels"]):
        raise RoundError(f"{len(answers)} answers came to {len(kept['labels'])} questions")
    try:
        found = [owner.decrypt(answer).labels for answer in answers]
    except MessageError as error:
        raise RoundError(f"an answer cannot be read: {error}") from error
    pairs = zip(found, kept["labels"], strict=True)
    right = sum(a == b for got, wanted in pairs for a, b in zip(got, wanted, strict=True))
    return right, sum(map(len, kept["labels"]))


def private_folder(path: Path) -> Path:
    """Make a folder that only we can enter, or see to it that an existing one is.

    Raises
    ------
    RoundError
        If it is somebody else's, or open to others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    ours = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if path.is_symlink() or not ours or found.st_mode & 0o077:
        raise RoundError(
            "the node's folder for secrets is not its own: make it mode 0700 and owned by the "
            "user that runs the node"
        )
    return path
