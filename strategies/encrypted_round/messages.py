"""The messages of an encrypted test-time round, as Flower records."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from privacy.inference import Plan
from strategies.encrypted_round.errors import RoundError
from strategies.errors import Fault, ReplyError

ACTION = "encrypted_round"
RECORD = "encrypted-round"
PLAN, QUESTIONS, ANSWERS, REFUSAL = "plan", "questions", "answers", "refusal"
ACCURACY = "accuracy"


@dataclass(frozen=True)
class Questions:
    """A node's public and evaluation keys, and one query for each ``batch_size`` images."""

    material: bytes
    queries: tuple[bytes, ...]


def plan_message(plan: Plan, *, images: int, public: bool) -> RecordDict:
    """The server's first: the plan to make keys for, and how many images to ask about."""
    return _record(PLAN, {"plan": plan.to_json(), "images": images, "public-release": public})


def questions_message(questions: Questions) -> RecordDict:
    """The node's first: public keys and encrypted images."""
    content = {"material": questions.material, "queries": list(questions.queries)}
    return _record(QUESTIONS, content)


def answers_message(answers: Sequence[bytes]) -> RecordDict:
    """The server's second: answers that only the node can read."""
    return _record(ANSWERS, {"answers": list(answers)})


def refusal_message(fault: Fault) -> RecordDict:
    """In place of answers: why a node's questions are refused, for its owner's log."""
    return _record(REFUSAL, {"reason": str(fault)})


def _record(stage: str, content: dict[str, Any]) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({"stage": stage} | content)})


def accuracy_message(accuracy: float) -> RecordDict:
    """The node's second: one number."""
    return RecordDict({"metrics": MetricRecord({ACCURACY: accuracy})})


def read_stage(content: RecordDict) -> ConfigRecord:
    """The record of a message of the round.

    Raises
    ------
    KeyError
        If there is none.
    """
    return content.config_records[RECORD]


def read_answers(record: ConfigRecord) -> list[bytes]:
    """The answers in the server's second message.

    Raises
    ------
    RoundError
        If they are not a list.
    """
    answers = record["answers"]
    if not isinstance(answers, list):
        raise RoundError("the answers are not a list")
    return [answer for answer in answers if isinstance(answer, bytes)]


def read_questions(content: RecordDict, plan: Plan, *, images: int, max_bytes: int) -> Questions:
    """A node's questions, checked for sizes only; the evaluator checks the rest.

    Raises
    ------
    ReplyError
        If it is not public material and queries for 1 to ``images`` images, of exactly the
        plan's sizes, within ``max_bytes``, and nothing else.
    """
    record = content.config_records.get(RECORD)
    if record is None or len(content) != 1 or record.get("stage") != QUESTIONS:
        raise ReplyError("it holds no questions, or something beside them", Fault.QUESTIONS)
    if set(record) != {"stage", "material", "queries"}:
        raise ReplyError("it holds something beside public keys and questions", Fault.QUESTIONS)
    material, queries = record["material"], record["queries"]
    if not isinstance(material, bytes) or len(material) != plan.public_bytes:
        raise ReplyError("its public keys have not the plan's size", Fault.QUESTIONS)
    most = -(-images // plan.batch_size)
    if not isinstance(queries, list) or not 1 <= len(queries) <= most:
        raise ReplyError(f"it does not hold 1 to {most} questions", Fault.QUESTIONS)
    encrypted = [query for query in queries if isinstance(query, bytes)]
    if any(len(query) != plan.query_bytes for query in encrypted) or len(encrypted) < len(queries):
        raise ReplyError("a question has not the plan's size", Fault.QUESTIONS)
    if len(material) + len(encrypted) * plan.query_bytes > max_bytes:
        raise ReplyError(f"it is larger than {max_bytes:,} bytes", Fault.QUESTIONS)
    return Questions(material, tuple(encrypted))


def read_accuracy(content: RecordDict) -> float:
    """The number that a node reports.

    Raises
    ------
    ReplyError
        If it is not one finite number.
    """
    records = content.metric_records
    if len(content) != 1 or len(records) != 1:
        raise ReplyError("it is not one metric record", Fault.REPORT)
    (record,) = records.values()
    value: Any = record.get(ACCURACY)
    if set(record) != {ACCURACY} or not isinstance(value, int | float) or not isfinite(value):
        raise ReplyError("it is not an accuracy, or holds something beside it", Fault.REPORT)
    return float(value)
