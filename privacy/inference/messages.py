"""Messages between the parties.

A message is a fixed header, a body whose length the plan fixes, and an HMAC-SHA256 under the
session key over both::

    magic 4 | version 1 | tag 1 | plan digest 32 | model version 16 | query id 8 | length 8

A message may be *bound* to something that both ends know and that does not travel in it: the code
is then over the header, the body and the binding.

Everything is checked before a residue is looked at, and every residue is checked against its
prime before anything is made of it. Bodies hold residues and seeds only; scale, level and sizes
come from the plan.
"""

import hashlib
import hmac
import struct
from collections.abc import Callable
from enum import IntEnum

import numpy as np

from privacy.inference.ckks import Residues
from privacy.inference.errors import MessageError
from privacy.inference.plan import MESSAGE_OVERHEAD, Plan

MAGIC = b"BSHE"
VERSION = 3
MAC_BYTES = 32
_HEADER = struct.Struct("<4sBB32s16sQQ")


class Tag(IntEnum):
    """Kinds of messages."""

    MATERIAL = 1
    QUERY = 2
    ANSWER = 3
    WEIGHTS = 4


def seal_message(
    tag: Tag,
    plan: Plan,
    digest: bytes,
    query_id: int,
    body: bytes | bytearray,
    session_key: bytes,
    *,
    binding: bytes = b"",
) -> bytes:
    """Frame and authenticate a body."""
    version = bytes.fromhex(plan.model_version)
    head = _HEADER.pack(MAGIC, VERSION, tag, digest, version, query_id, len(body))
    mac = hmac.new(session_key, head, hashlib.sha256)
    mac.update(body)
    mac.update(binding)
    return b"".join((head, body, mac.digest()))


def rebind(message: bytes, session_key: bytes) -> bytes:
    """A checked message without its binding: for processes of the same party."""
    signed = message[:-MAC_BYTES]
    return signed + hmac.new(session_key, signed, hashlib.sha256).digest()


def open_message(
    message: bytes,
    tag: Tag,
    plan: Plan,
    digest: bytes,
    session_key: Callable[[memoryview], bytes],
    *,
    binding: bytes = b"",
) -> tuple[int, memoryview]:
    """Check a message; its query id and body.

    ``session_key`` gives the session key of the body, since the first message carries it.

    Raises
    ------
    MessageError
        If anything is wrong with it.
    """
    expected = {
        Tag.MATERIAL: plan.public_bytes,
        Tag.QUERY: plan.query_bytes,
        Tag.ANSWER: plan.answer_bytes,
        Tag.WEIGHTS: plan.weights_bytes,
    }[tag]
    name = tag.name.lower()
    if not isinstance(message, bytes | bytearray | memoryview):
        raise MessageError(f"a {name} is bytes, not {type(message).__name__}")
    if len(message) != expected:
        raise MessageError(f"a {name} of this plan has {expected} bytes, this one {len(message)}")
    expected -= MESSAGE_OVERHEAD
    magic, version, kind, plan_digest, model, query_id, length = _HEADER.unpack_from(message)
    if magic != MAGIC or version != VERSION:
        raise MessageError(f"not a message of format {VERSION}; use the same release on both sides")
    if kind != tag:
        raise MessageError(f"expected a {name} (tag {int(tag)}), got tag {kind}")
    if plan_digest != digest:
        raise MessageError("the message belongs to another plan; fetch the plan again")
    if model != bytes.fromhex(plan.model_version):
        raise MessageError("the message belongs to another version of the model")
    if length != expected:
        raise MessageError(f"the message declares {length} bytes of body, the plan {expected}")
    view = memoryview(message)
    body = view[_HEADER.size : _HEADER.size + expected]
    mac = hmac.new(session_key(body), view[: _HEADER.size + expected], hashlib.sha256)
    mac.update(binding)
    if not hmac.compare_digest(mac.digest(), view[-MAC_BYTES:]):
        raise MessageError(
            "the message was altered"
            + (", or bound to something else" if binding else "")
            + ": its authentication code does not match"
        )
    return query_id, body


class Reader:
    """Reads residues and seeds off a body, in order."""

    def __init__(self, body: memoryview) -> None:
        self._body = body
        self._offset = 0

    def raw(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        part = self._body[self._offset : self._offset + count]
        self._offset += count
        return bytes(part)

    def residues(self, primes: tuple[int, ...], degree: int) -> Residues:
        """The next polynomial, modulo each of ``primes``, shape (len(primes), degree)."""
        count = len(primes) * degree
        flat = np.frombuffer(self._body, dtype="<u8", offset=self._offset, count=count)
        self._offset += 8 * count
        residues = flat.reshape(len(primes), degree)
        largest = residues.max(axis=1).tolist()
        if any(value >= prime for value, prime in zip(largest, primes, strict=True)):
            raise MessageError("the message holds a residue that is not below its prime")
        return residues
