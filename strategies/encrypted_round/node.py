"""A node's side of an encrypted round: check the plan, make keys, ask, count, report with noise.

Somebody else holds the model and evaluates. Between the server's two messages the node's secrets
lie in one file of its own.
"""

import base64
import json
import logging
import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Error, Message
from flwr.common.constant import ErrorCode
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import of_kind, real_array, renamed
from privacy.files import write_durably
from privacy.inference import ClassOnly, DataOwner, InputContract, Plan, accept_plan
from privacy.inference.errors import MessageError, OutOfRangeError, PlanRefusedError, ReleaseError
from privacy.inference.plan_check import FAULTS_OF_A_PLAN, MAX_ROUND_BYTES
from privacy.json_text import read_json
from privacy.untrusted_text import quoted
from strategies.encrypted_round import messages
from strategies.encrypted_round.errors import ReportRefusedError, RoundError
from strategies.encrypted_round.messages import Questions
from strategies.encrypted_round.report import AccuracyReport, NoisedAccuracy
from strategies.replies import decline

ENCRYPTED_ROUND = messages.ACTION
"""The action that the round's ``query`` messages name: ``@app.query(ENCRYPTED_ROUND)``."""

_SECRETS = "encrypted-round.secrets"
_LABELS = (
    "this node's labels are not one class an image: give whole numbers from 0 to classes - 1, in "
    "one dimension"
)
_log = logging.getLogger(__name__)
LabelledInputs = tuple[Any, Any]


@renamed(expectation="contract")
def answer_encrypted_round(
    message: Message,
    *,
    data: Callable[[], LabelledInputs],
    contract: InputContract,
    folder: Path,
    report: AccuracyReport | None = None,
    allow_public_release: bool = False,
    threshold: float = 0.0,
) -> Message:
    """Answer a message of an :class:`EncryptedRound`: ask about own images, then report accuracy.

    Give it to the query action of a ClientApp::

        @app.query(ENCRYPTED_ROUND)
        def handle_encrypted_query(message: Message, context: Context) -> Message:
            return answer_encrypted_round(
                message,
                data=load_my_test_data,
                contract=InputContract((784,), (0.0, 1.0), classes=10),
                folder=Path(str(context.node_config["state-dir"])),
            )

    Parameters
    ----------
    message : Message
        The server's: a plan, then answers, or why there are none; that goes to the node's log.
    data : callable
        Gives inputs (n, ...) and labels (n,); called for a plan only.
    contract : InputContract
        Which models the node tests. It is not taken from the message.
    folder : Path
        The node's own, mode 0700; made if it is missing. Between the two messages it holds the
        keys, in a file of mode 0600, and for good the ledger of reports.
    report : AccuracyReport, optional
        How the count is reported. Default: ``NoisedAccuracy()``.
    allow_public_release : bool
        Whether the node's owner agrees that the server publishes the report without noise of the
        server's. Otherwise such a round is declined.
    threshold : float
        Where a model with a single logit decides: class 1 above it.

    Returns
    -------
    Message
        Encrypted questions, the accuracy, or an error whose words tell nothing of the data.
    """
    if contract.multi_label:
        raise ValueError(
            "contract has multi_label=True; an encrypted round counts right classes, of which one "
            "holds: ask with DataOwner and EachLabel() yourself"
        )
    try:
        report = NoisedAccuracy() if report is None else report
        private_folder(folder)
        record = messages.read_stage(message.content)
        stage = record.get("stage")
        if stage == messages.PLAN:
            plan, images = _accepted_plan(record, contract, threshold, public=allow_public_release)
            report.check(folder)
            questions = make_questions(
                plan, *data(), images=images, folder=folder, max_bytes=contract.max_bytes
            )
            content = messages.questions_message(questions)
        elif stage == messages.ANSWERS:
            answers = messages.read_answers(record)
            right, asked = count_right_answers(answers, folder=folder, threshold=threshold)
            name = f"run {message.metadata.run_id}"
            accuracy = report.release(right, asked, folder, name=name)
            content = messages.accuracy_message(accuracy)
        elif stage == messages.REFUSAL:
            raise RoundError(
                f"the server refused this node's questions: {quoted(record.get('reason'))}"
            )
        else:
            raise RoundError(
                "the message is neither a plan nor answers; use one release on both sides"
            )
    except (PlanRefusedError, RoundError, ReportRefusedError) as error:
        _log.warning("this node takes no part in the encrypted round: %s", error)
        return decline(message, f"{type(error).__name__}: {error}")
    except Exception as error:
        # Flower would send the error's own words to the server, and they may be about the data.
        _log.exception("this node could not take part in the encrypted round")
        reason = f"the node could not take part ({type(error).__name__})"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
    return Message(content, reply_to=message)


def _accepted_plan(
    record: ConfigRecord, contract: InputContract, threshold: float, *, public: bool
) -> tuple[Plan, int]:
    """The plan of the server's first message and the number of images, checked."""
    if record["public-release"] and not public:
        raise RoundError(
            "the round would publish this node's accuracy without noise, and its owner has not "
            "agreed to that"
        )
    images = record["images"]
    if type(images) is not int or images < 1:
        raise RoundError("the number of images is not a whole number above 0")
    plan = accept_plan(str(record["plan"]), contract)
    try:
        ClassOnly(threshold).check(plan)
    except ReleaseError as error:
        raise RoundError("this node's threshold does not fit the model") from error
    return plan, images


def make_questions(
    plan: Plan,
    inputs: ArrayLike,
    labels: ArrayLike,
    *,
    images: int,
    folder: Path,
    max_bytes: int = MAX_ROUND_BYTES,
) -> Questions:
    """Make fresh keys, encrypt some of the node's images, and write the secrets down.

    At most ``images`` are drawn at random, fewer where ``max_bytes`` of keys and questions allow no
    more. Secrets of an earlier, unfinished round are overwritten: its answers cannot be read any
    more. Inputs have shape (n, ...), labels (n,).

    Raises
    ------
    RoundError
        If there are no images, or they are not what the node declared.
    PlanRefusedError
        If keys for the plan cannot be made.
    """
    of_kind("plan", plan, Plan, "the plan, as accept_plan returned it")
    x = _reals(inputs, "this node's images are not real numbers")
    classes = _reals(labels, _LABELS)
    room = (max_bytes - plan.public_bytes) // plan.query_bytes * plan.batch_size
    count = min(images, len(x) if x.ndim else 0, room)
    if count < 1 or classes.shape[:1] != (len(x),):
        raise RoundError("this node has no labelled images to ask about")
    if classes.shape != (len(x),) or not bool(np.isin(classes, np.arange(plan.classes)).all()):
        raise RoundError(_LABELS)
    rows = np.array(random.SystemRandom().sample(range(len(x)), count))
    batches = [rows[i : i + plan.batch_size] for i in range(0, count, plan.batch_size)]
    try:
        owner = DataOwner(plan)
        material = owner.public_material()
        queries = tuple(
            owner.encrypt(x[batch[0]] if plan.batch_size == 1 else x[batch]) for batch in batches
        )
    except OutOfRangeError as error:
        raise RoundError("this node's images are outside the range that it declared") from error
    except FAULTS_OF_A_PLAN as error:
        # Without the error's words: they could be about the images.
        raise PlanRefusedError(
            f"the plan is refused: it cannot be carried out ({type(error).__name__})"
        ) from error
    secrets = {
        "plan": plan.to_json(),
        "labels": [classes[batch].astype(int).tolist() for batch in batches],
        "owner": base64.b64encode(owner.secret_state()).decode(),
    }
    write_durably(folder / _SECRETS, json.dumps(secrets).encode())
    return Questions(material, queries)


def _reals(values: ArrayLike, refusal: str) -> NDArray[Any]:
    try:
        return real_array("values", values, "as the node's data are")
    except TypeError as error:
        raise RoundError(refusal) from error


def count_right_answers(
    answers: Sequence[bytes], *, folder: Path, threshold: float = 0.0
) -> tuple[int, int]:
    """Decrypt the answers to :func:`make_questions`, in their order; count right ones and all.

    The secrets are removed before the first answer is read: no answer under these keys is ever
    read a second time.

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
        secrets = read_json(text)
        labels, state = secrets["labels"], base64.b64decode(secrets["owner"])
        plan = Plan.from_json(secrets["plan"])
        owner = DataOwner.from_secret_state(plan, state, release=ClassOnly(threshold))
    except ReleaseError as error:
        raise RoundError(
            "this node's threshold does not fit the model: one logit is needed, and less "
            "than 2^logit_bits"
        ) from error
    except (ValueError, LookupError, TypeError) as error:
        raise RoundError("this node's record of the round is damaged") from error
    if len(answers) != len(labels):
        raise RoundError(f"{len(answers)} answers came to {len(labels)} questions")
    try:
        decided = [owner.decrypt(answer).labels for answer in answers]
    except MessageError as error:
        raise RoundError(f"an answer cannot be read: {error}") from error
    pairs = [
        pair for batch in zip(decided, labels, strict=True) for pair in zip(*batch, strict=True)
    ]
    return sum(answer == label for answer, label in pairs), len(pairs)


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can enter, or check that an existing one is such.

    Raises
    ------
    RoundError
        If it is somebody else's, or open to others.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.lstat()
    own = not hasattr(os, "getuid") or status.st_uid == os.getuid()
    if path.is_symlink() or not own or status.st_mode & 0o077:
        raise RoundError(
            "the node's folder for secrets is not its own: make it mode 0700 and owned by the "
            "user that runs the node"
        )
    return path
