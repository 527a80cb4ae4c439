"""What the data owner and a worker say to each other: a kind, one byte, and a body.

A plan and a state are asked for with an empty body. Everything that is secret is in questions and
answers, which are messages of :mod:`.messages`.
"""

import json
import struct
from dataclasses import dataclass
from enum import IntEnum

from privacy.json_text import read_json
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError
from privacy.untrusted_text import one_line

_STATE = struct.Struct("<32sQQ")
_MOST_TEXT = 2_000
"""Characters of a worker's reason that are shown."""


class Kind(IntEnum):
    """Kinds of frames."""

    STATE = 1
    QUESTION = 2
    ANSWER = 3
    REFUSAL = 4


@dataclass(frozen=True)
class State:
    """What a worker says of itself.

    Attributes
    ----------
    plan : bytes
        The digest of its plan.
    next_question, left : int
        The first question whose material is fresh, and how many there are.
    """

    plan: bytes
    next_question: int
    left: int

    def to_bytes(self) -> bytes:
        """The frame's body."""
        return _STATE.pack(self.plan, self.next_question, self.left)

    @classmethod
    def from_bytes(cls, body: bytes) -> "State":
        """Of a frame's body; another one is a ``MessageError``."""
        if len(body) != _STATE.size:
            raise MessageError("a worker's state has another length")
        return cls(*_STATE.unpack(body))


_REASONS: dict[str, type[Exception]] = {
    "material": MaterialError,
    "link": LinkError,
    "message": MessageError,
}


def frame(kind: Kind, body: bytes = b"") -> bytes:
    """A frame as it is sent."""
    return bytes([kind]) + body


def split(received: bytes) -> tuple[int, bytes]:
    """Kind and body; an empty frame is a ``MessageError``."""
    if not received:
        raise MessageError("an empty frame")
    return received[0], received[1:]


def refusal(error: Exception) -> bytes:
    """The frame that says why there is no answer."""
    reason = next((name for name, kind in _REASONS.items() if isinstance(error, kind)), "message")
    return frame(Kind.REFUSAL, json.dumps({"reason": reason, "text": str(error)}).encode())


def refused(body: bytes, worker: str) -> Exception:
    """The error of a refusal that ``worker`` sent."""
    try:
        fields = read_json(body)
        kind, text = _REASONS[fields["reason"]], fields["text"]
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, LookupError, TypeError):
        return MessageError(f"{worker} sent a refusal that cannot be read")
    return kind(f"{worker}: {one_line(text[:_MOST_TEXT])}")
