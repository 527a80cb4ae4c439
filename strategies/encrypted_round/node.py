"""A ClientApp's side of an encrypted test-time round, in a few lines."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

from privacy.inference import ClassOnly, InputContract, accept_plan
from privacy.inference.errors import PlanRefusedError, ReleaseError
from privacy.untrusted_text import quoted
from strategies.encrypted_round import messages
from strategies.encrypted_round.errors import ReportRefusedError, RoundError
from strategies.encrypted_round.node_keys import begin_round, finish_round, private_folder
from strategies.encrypted_round.report import AccuracyReport, NoisedAccuracy
from strategies.replies import decline

ENCRYPTED_ROUND = messages.ACTION
"""The action that the round's ``query`` messages name: ``@app.query(ENCRYPTED_ROUND)``."""

_log = logging.getLogger(__name__)
LabelledInputs = tuple[Any, Any]


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
    """Take part in an :class:`EncryptedRound`: ask about own images, then report the accuracy.

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
        What the node knows of the models it tests. It is not taken from the message.
    folder : Path
        The node's own, mode 0700; made if it is missing. Between the two messages it holds the
        keys, in a file of mode 0600, and for good the ledger of reports.
    report : AccuracyReport, optional
        What is told of the count. Default: ``NoisedAccuracy()``.
    allow_public_release : bool
        Whether the node's owner agrees that the server publishes its report without noise of
        its own. Without, such a round is declined.
    threshold : float
        Where a model with a single logit decides: class 1 above it.

    Returns
    -------
    Message
        Encrypted questions, the accuracy, or an error whose words tell nothing of the data.
    """
    try:
        report = NoisedAccuracy() if report is None else report
        content = _answer(
            message,
            data,
            contract,
            private_folder(folder),
            report,
            allow_public_release=allow_public_release,
            threshold=threshold,
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


def _answer(
    message: Message,
    data: Callable[[], LabelledInputs],
    contract: InputContract,
    folder: Path,
    report: AccuracyReport,
    *,
    allow_public_release: bool,
    threshold: float,
) -> RecordDict:
    asked = messages.read_stage(message.content)
    if asked.get("stage") == messages.REFUSAL:
        raise RoundError(f"the server refused this node's questions: {quoted(asked.get('reason'))}")
    if asked.get("stage") == messages.ANSWERS:
        answers = asked["answers"]
        if not isinstance(answers, list):
            raise RoundError("the answers are not a list")
        encrypted = [answer for answer in answers if isinstance(answer, bytes)]
        found = finish_round(encrypted, folder=folder, threshold=threshold)
        name = f"run {message.metadata.run_id}"
        return messages.accuracy_message(report.release(*found, folder, name=name))
    if asked.get("stage") != messages.PLAN:
        raise RoundError("the message is neither a plan nor answers; use one release on both sides")
    if asked["public-release"] and not allow_public_release:
        raise RoundError(
            "the round would publish this node's accuracy without noise, and its owner has not "
            "agreed to that"
        )
    images = asked["images"]
    if type(images) is not int or images < 1:
        raise RoundError("the number of images is not a whole number above 0")
    plan = accept_plan(str(asked["plan"]), contract)
    try:
        ClassOnly(threshold).check(plan)
    except ReleaseError as error:
        raise RoundError("this node's threshold does not fit the model") from error
    report.check(folder)
    inputs, labels = data()
    return messages.questions_message(
        begin_round(
            plan,
            inputs,
            labels,
            images=images,
            folder=folder,
            max_bytes=contract.max_bytes,
        )
    )
