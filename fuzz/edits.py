"""Changes of a good message, as short bytes: what is fuzzed where messages are large.

Random bytes of a message's size would be refused by their first field, and a corpus of them would
fill the repository. An edit is an operation, one byte, a place, 4 bytes, a length, one byte, and as
many bytes.
"""

import struct
from enum import IntEnum

_HEAD = struct.Struct("<BIB")
_MOST = 1 << 24


class Operation(IntEnum):
    """What an edit does at its place."""

    OVERWRITE = 0
    INSERT = 1
    DELETE = 2
    CUT = 3


def edit(operation: Operation, place: int, content: bytes = b"") -> bytes:
    """One edit, as :func:`edited` reads it."""
    return _HEAD.pack(operation, place, len(content)) + content


def edited(message: bytes, edits: bytes) -> bytes:
    """A message after edits; places count from the end where they are past it."""
    changed, offset = bytearray(message), 0
    while offset + _HEAD.size <= len(edits) and len(changed) < _MOST:
        kind, place, length = _HEAD.unpack_from(edits, offset)
        offset += _HEAD.size
        content = edits[offset : offset + length]
        offset += length
        place %= len(changed) + 1
        operation = Operation(kind % len(Operation))
        if operation is Operation.OVERWRITE:
            changed[place : place + len(content)] = content
        elif operation is Operation.INSERT:
            changed[place:place] = content
        elif operation is Operation.DELETE:
            del changed[place : place + length]
        else:
            del changed[place:]
    return bytes(changed)


EDITS = (
    b"",
    edit(Operation.OVERWRITE, 0, b"\xff"),
    edit(Operation.OVERWRITE, 0xFFFFFFFF, b"\x00"),
    edit(Operation.CUT, 40),
    edit(Operation.INSERT, 60, b"\x80"),
    edit(Operation.DELETE, 8, b"\x00" * 8),
    edit(Operation.OVERWRITE, 70, b"\xff" * 8) + edit(Operation.OVERWRITE, 200, b"\xff" * 8),
)
"""Edits to begin with; the first changes nothing."""
