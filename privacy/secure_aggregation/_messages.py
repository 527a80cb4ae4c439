"""The messages of a round as bytes: a version, a kind, what they are bound to, and fields.

Every message is read strictly: another version or kind, a field of the wrong length or anything
after the end is refused.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from enum import IntEnum

from privacy.secure_aggregation._crypto import KEY_BYTES, SIGNATURE_BYTES, digest, verify
from privacy.secure_aggregation.errors import MalformedMessageError

_MAGIC = b"BSA\x02"  # the last byte is the version
_BINDING = 32
_INDICES = struct.Struct("<II")


class Kind(IntEnum):
    """What a message is; in the order of the round."""

    INVITATION = 1
    ADVERTISEMENT = 2
    NEIGHBOURHOOD = 3
    ROSTER = 4
    SHARES = 5
    DELIVERIES = 6
    COMPLAINTS = 7
    DISPUTES = 8
    DISPUTED_SHARES = 9
    PARTICIPANTS = 10
    MASKED_UPDATE = 11
    SURVIVORS = 12
    ENDORSEMENT = 13
    OPENING_REQUEST = 14
    OPENINGS = 15
    STATE = 16


def encode(kind: Kind, bound_to: bytes, *fields: bytes) -> bytes:
    """A message: 4 + 1 + 32 bytes, then each field with its length in 8 bytes."""
    parts = [_MAGIC, bytes([kind]), bound_to]
    for content in fields:
        parts += [len(content).to_bytes(8, "little"), content]
    return b"".join(parts)


def kind_of(message: bytes) -> Kind:
    """The kind of a message; ``MalformedMessageError`` if it is none of this version."""
    if not isinstance(message, bytes):
        raise MalformedMessageError(
            f"a message is bytes, and this is of type {type(message).__qualname__}"
        )
    if len(message) < len(_MAGIC) + 1 + _BINDING or not message.startswith(_MAGIC):
        raise MalformedMessageError("not a message of this version of secure aggregation")
    try:
        return Kind(message[len(_MAGIC)])
    except ValueError as error:
        raise MalformedMessageError(f"a message of unknown kind {message[len(_MAGIC)]}") from error


def bound_to(message: bytes) -> bytes:
    """The digest of the terms, or of the roster, that a message is bound to."""
    kind_of(message)
    return message[len(_MAGIC) + 1 :][:_BINDING]


def decode(message: bytes, kind: Kind, lengths: Sequence[int | None]) -> list[bytes]:
    """The fields of a message, each of the given length (None: any).

    Raises
    ------
    MalformedMessageError
        If the message is anything else.
    """
    if kind_of(message) is not kind:
        raise MalformedMessageError(f"a message of kind {kind_of(message).name}, not {kind.name}")
    fields = []
    place = len(_MAGIC) + 1 + _BINDING
    for expected in lengths:
        length = int.from_bytes(message[place : place + 8], "little")
        content = message[place + 8 : place + 8 + length]
        if len(content) != length or (expected is not None and length != expected):
            raise MalformedMessageError(f"a field of {kind.name} has the wrong length")
        fields.append(content)
        place += 8 + length
    if place != len(message):
        raise MalformedMessageError(f"{kind.name} goes on after its end")
    return fields


def pieces(content: bytes, size: int) -> list[bytes]:
    """Cut bytes into pieces of equal size; ``MalformedMessageError`` if one is left over."""
    if len(content) % size:
        raise MalformedMessageError(f"{len(content)} bytes are no whole number of pieces of {size}")
    return [content[start : start + size] for start in range(0, len(content), size)]


def encode_set(members: Iterable[int], size: int) -> bytes:
    """A set of numbers below ``size``, one bit each."""
    bits = bytearray(-(-size // 8))
    for member in members:
        bits[member >> 3] |= 1 << (member & 7)
    return bytes(bits)


def decode_set(content: bytes, size: int) -> frozenset[int]:
    """Read what ``encode_set`` wrote; ``MalformedMessageError`` if it is of another size."""
    if len(content) != -(-size // 8):
        raise MalformedMessageError("a set has the wrong length")
    members = frozenset(
        8 * place + bit for place, byte in enumerate(content) for bit in range(8) if byte >> bit & 1
    )
    if members and max(members) >= size:
        raise MalformedMessageError("a set names somebody beyond its end")
    return members


@dataclass(frozen=True)
class AdvertisedKeys:
    """A client's keys for one round, and what it was asked, signed by its identity."""

    identity: bytes
    mask_key: bytes
    channel_key: bytes
    asked: bytes
    signature: bytes

    SIZE = 4 * KEY_BYTES + SIGNATURE_BYTES

    def to_bytes(self) -> bytes:
        """192 bytes."""
        return b"".join(astuple(self))

    @classmethod
    def from_bytes(cls, content: bytes) -> "AdvertisedKeys":
        """Read what ``to_bytes`` wrote; the caller has seen to the length."""
        identity, mask_key, channel_key, asked = pieces(content[: 4 * KEY_BYTES], KEY_BYTES)
        return cls(identity, mask_key, channel_key, asked, content[4 * KEY_BYTES :])

    def check_signature(self) -> None:
        """Refuse (``ForgedSignatureError``) keys that their identity did not sign."""
        statement = self.statement_of(self.asked, self.mask_key, self.channel_key)
        verify(self.identity, self.signature, statement, "an advertisement of keys")

    @staticmethod
    def statement_of(asked: bytes, mask_key: bytes, channel_key: bytes) -> bytes:
        """What the signature is of."""
        return digest(b"announcement", asked, mask_key, channel_key)


def asked_of(terms_digest: bytes, configuration: bytes) -> bytes:
    """All that a client was asked, and how it was configured: equal for all of a round."""
    return digest(b"asked", terms_digest, configuration)


def box_statement(session: bytes, sender: int, receiver: int, box: bytes, evidence: bytes) -> bytes:
    """A client signs this of each box of shares, and of the evidence to check them by."""
    return digest(b"box", session, _INDICES.pack(sender, receiver), box, evidence)


def complaint_statement(session: bytes, sender: int, receiver: int) -> bytes:
    """A client signs this when the shares in a signed box are wrong."""
    return digest(b"complaint", session, _INDICES.pack(sender, receiver))


def participants_statement(session: bytes, participants: bytes) -> bytes:
    """A client signs this with its masked update: whose masks it may carry."""
    return digest(b"participants", session, participants)


def survivors_statement(session: bytes, participants: bytes, survivors: bytes) -> bytes:
    """A client signs this when it endorses the survivors."""
    return digest(b"survivors", session, participants, survivors)


def session_of(terms_digest: bytes, plan: bytes, roster: bytes) -> bytes:
    """What everything after the roster is bound to."""
    return digest(b"session", terms_digest, plan, roster)
