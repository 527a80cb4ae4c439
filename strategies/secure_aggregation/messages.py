"""The records that cross the grid, and digests of all that a client is asked.

A client's vector depends on nothing but what is digested here, each value with its type and length
and in its order: equal values of other kinds (1, 1.0 and True; the same numbers in another dtype)
have other encodings, so that no two requests share one.
"""

import hashlib
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode

from privacy.secure_aggregation import errors
from privacy.secure_aggregation.errors import MalformedMessageError
from privacy.untrusted_text import quoted
from strategies.errors import Fault, ReplyError
from strategies.replies import refuse_error

KEY = "secure-aggregation"
_BYTES = "message"
UNREADABLE = "the client cannot read what it remembers of earlier rounds"
LEFT = "the client could not do its part"
MOD_ERRORS = (UNREADABLE, LEFT)
"""Errors that the mod sends, refusals apart. It lets no other out: others come without it."""
_DOUBLE = struct.Struct("<d")
_AT_ONCE = 1 << 20  # numbers of a model that are widened together


def protocol_record(message: bytes) -> ConfigRecord:
    """The record that carries one message of the protocol."""
    return ConfigRecord({_BYTES: message})


def without_message(record: object) -> object:
    """A record without the message of the protocol in it."""
    if not isinstance(record, ConfigRecord):
        return record
    return ConfigRecord({name: value for name, value in record.items() if name != _BYTES})


def protocol_bytes(record: object) -> bytes:
    """The message of the protocol in a record; ``MalformedMessageError`` if there is none."""
    if not isinstance(record, ConfigRecord):
        raise MalformedMessageError("the protocol's record is of another kind")
    message = record.get(_BYTES)
    if not isinstance(message, bytes):
        raise MalformedMessageError("the record carries no message of the protocol")
    return message


def reply_bytes(reply: Message) -> bytes:
    """The protocol bytes of a client's reply; ``ReplyError`` if it carries anything else."""
    if reply.has_error() and _is_refusal(reply.error.reason):
        raise ReplyError(f"the client refuses: {quoted(reply.error.reason)}", Fault.REFUSED)
    try:
        refuse_error(reply, reason=True)
    except ReplyError as error:
        raised = reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
        if error.fault is Fault.ERROR and raised and reply.error.reason not in MOD_ERRORS:
            error.fault = Fault.NO_MOD
        raise
    if reply.has_content() and KEY not in reply.content:
        raise ReplyError("the reply holds no record of the protocol", Fault.NO_MOD)
    if not reply.has_content() or list(reply.content) != [KEY]:
        raise ReplyError("the reply is not one message of the protocol", Fault.PROTOCOL)
    record = reply.content[KEY]
    try:
        answer = protocol_bytes(record)
    except MalformedMessageError as error:
        raise ReplyError(str(error), Fault.PROTOCOL) from error
    if len(record) != 1:
        raise ReplyError(
            "the reply carries something beside a message of the protocol", Fault.PROTOCOL
        )
    return answer


def _is_refusal(reason: str | None) -> bool:
    """Whether a refusing client's mod wrote this."""
    kind = getattr(errors, (reason or "").partition(":")[0], None)
    return isinstance(kind, type) and issubclass(kind, errors.RefusedError)


def content_of(message: bytes) -> RecordDict:
    """The content of a message or reply that carries protocol bytes only."""
    return RecordDict({KEY: protocol_record(message)})


def is_invitation(message: Message) -> bool:
    """Whether a message invites a client to a round of secure aggregation.

    It is the round's first. Beside the protocol's own record it carries the round's configuration,
    and no model. Who declines now costs the round nothing; who declines later drops out of it.
    """
    if not message.has_content() or KEY not in message.content:
        return False
    return len(message.content) > 1 and not message.content.array_records


def request_digest(message: Message) -> bytes:
    """A digest, 32 bytes, of a request to train, but for the protocol's own message in it.

    All its records count, and its type and group. Not the protocol's bytes, which differ between
    clients and are bound by the protocol itself, nor the ids and times of messages. ``TypeError``
    if a record or value is of a kind that Flower does not have.
    """
    digest, metadata = hashlib.sha256(), message.metadata
    _add(digest, b"request", _text(metadata.message_type), _text(metadata.group_id))
    for name, record in message.content.items():
        _add(digest, b"record", _text(name))
        _add(digest, *_record(without_message(record) if name == KEY else record))
    return digest.digest()


def configuration_digest(context: Context) -> bytes:
    """A digest of what the server's side gives a client beside its messages: its run's settings."""
    digest = hashlib.sha256()
    _add(digest, b"configuration", *_value(int(context.run_id)))
    _add(digest, *_mapping(dict(sorted(context.run_config.items()))))
    return digest.digest()


def model_digest(arrays: list[npt.NDArray[Any]]) -> bytes:
    """A digest, 32 bytes, of a model's values, whatever its arrays' names, order, shapes or dtypes.

    The arrays are floating-point, of at most 64 bits, so that float64 holds their values exactly.
    """
    parts = []
    for array in arrays:
        digest, flat = hashlib.sha256(), array.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            wide = flat[start : start + _AT_ONCE].astype("<f8")
            wide += 0.0  # minus zero becomes zero
            digest.update(wide.tobytes())
        parts.append(digest.digest())
    return hashlib.sha256(b"model" + b"".join(sorted(parts))).digest()


def _add(digest: Any, *parts: bytes) -> None:
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _record(record: Any) -> Iterator[bytes]:
    if isinstance(record, ArrayRecord):
        yield b"arrays"
        for name, array in record.items():
            yield from map(_text, (name, array.stype, array.dtype))
            yield repr(tuple(int(side) for side in array.shape)).encode()
            yield array.data
    elif isinstance(record, ConfigRecord | MetricRecord):
        yield b"config" if isinstance(record, ConfigRecord) else b"metrics"
        yield from _mapping(record)
    else:
        raise TypeError(f"a record of an unknown kind, {type(record).__name__}")


def _mapping(values: Mapping[str, Any]) -> Iterator[bytes]:
    for name, value in values.items():
        yield _text(name)
        yield from _value(value)


def _value(value: Any) -> Iterator[bytes]:
    """A value with its type; a list with its length, since it may be empty."""
    if isinstance(value, bool):  # before int, which it is
        yield b"bool" + bytes([value])
    elif isinstance(value, int):
        yield b"int" + str(int(value)).encode()  # one of an Enum is written by its name
    elif isinstance(value, float):
        yield b"float" + _DOUBLE.pack(value)
    elif isinstance(value, str):
        yield _text(value)
    elif isinstance(value, bytes):
        yield b"bytes" + value
    elif isinstance(value, list):
        yield b"list" + str(len(value)).encode()
        for item in value:
            yield from _value(item)
    else:
        raise TypeError(f"a value of an unknown kind, {type(value).__name__}")


def _text(text: str) -> bytes:
    return b"str" + text.encode("utf-8", "surrogatepass")
