"""Messages between the parties, and the letters that make them parties.

A message is a header, a nonce, and its body encrypted and authenticated together with the header
by AES-256-GCM (NIST SP 800-38D) under a key for one purpose, which the provider gave to both ends::

    magic 4 | version 1 | tag 1 | sender 1 | recipient 1 | session 16 | question 8 | part 4

and 12 bytes of nonce.

A receiver knows every field but the question's number, and refuses a message in which one is
another. A session is one provider's material for one plan.
"""

import hashlib
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privacy.shared_inference.errors import MessageError
from privacy.shared_inference.plan import Plan
from privacy.shared_inference.ring import SEED_BYTES, Buffer

VERSION = 3
_MAGIC = b"BSSI"
_HEADER = struct.Struct("<4sBBBB16sQI")
_NONCE_BYTES = 12
_TAG_BYTES = 16
_BODY = _HEADER.size + _NONCE_BYTES
"""Where the encrypted body begins."""
OVERHEAD = _BODY + _TAG_BYTES
"""Bytes of a message beside its body."""
_LARGE = 1 << 20
_BYTES = (bytes, bytearray, memoryview)
_LETTER = struct.Struct("<4sBB16s32s")
_LETTER_MAGIC = b"BSSE"


class Tag(IntEnum):
    """Kinds of messages."""

    MODEL = 1
    MATERIAL = 2
    QUESTION = 3
    EXCHANGE = 4
    ANSWER = 5


class Party(IntEnum):
    """Who sends and receives; a worker's number is its holder's."""

    ALICE = 0
    BOB = 1
    DATA_OWNER = 2
    MODEL_OWNER = 3
    PROVIDER = 4


_SECRETS = {Party.ALICE: 3, Party.BOB: 3, Party.DATA_OWNER: 1, Party.MODEL_OWNER: 4}
"""Keys and seeds of 32 bytes in a party's letter."""


class Head(NamedTuple):
    """What a message says of itself."""

    tag: Tag
    sender: Party
    recipient: Party
    session: bytes
    question: int = 0
    part: int = 0

    def to_bytes(self) -> bytes:
        """The header as it is sent."""
        fields = (self.tag, self.sender, self.recipient, self.session, self.question, self.part)
        return _HEADER.pack(_MAGIC, VERSION, *fields)


def seal(head: Head, body: bytes, key: bytes) -> bytes:
    """A message."""
    header, nonce = head.to_bytes(), os.urandom(_NONCE_BYTES)
    return b"".join((header, nonce, AESGCM(key).encrypt(nonce, body, header)))


def seal_into(place: memoryview, head: Head, body: Buffer, key: bytes) -> None:
    """Write a message where there is room for it, ``OVERHEAD`` bytes more than the body's."""
    header, nonce = head.to_bytes(), os.urandom(_NONCE_BYTES)
    place[: _HEADER.size], place[_HEADER.size : _BODY] = header, nonce
    AESGCM(key).encrypt_into(nonce, body, header, place[_BODY:])


def unseal(message: Buffer, head: Head, key: bytes, size: int) -> Buffer:
    """The body of a message, ``size`` bytes, whose header must be ``head``.

    Raises
    ------
    MessageError
        If anything about it is another.
    """
    check_size(message, size, head.tag)
    header, view = head.to_bytes(), memoryview(message)
    if view[: _HEADER.size] != header:
        raise MessageError(_difference(message, head))
    nonce, sealed = bytes(view[_HEADER.size : _BODY]), view[_BODY:]
    try:
        if size < _LARGE:
            return AESGCM(key).decrypt(nonce, sealed, header)
        # Such memory as NumPy asks the system for comes in large pages, which takes less time.
        body = np.empty(size, np.uint8)
        AESGCM(key).decrypt_into(nonce, sealed, header, body.data)
        return body.data.toreadonly()
    except InvalidTag:
        raise MessageError(
            f"the {head.tag.name.lower()} was altered: its authentication does not match"
        ) from None


def check_size(message: Buffer, size: int, tag: Tag) -> None:
    """Refuse what is no bytes, or of another length than a message with a body of ``size``."""
    if isinstance(message, _BYTES) and len(message) == size + OVERHEAD:
        return
    name = tag.name.lower()
    if not isinstance(message, _BYTES):
        raise MessageError(f"the {name} is bytes, not {type(message).__name__}")
    if len(message) != size + OVERHEAD:
        raise MessageError(
            f"the {name} has {len(message)} bytes, and one of this plan {size + OVERHEAD}"
        )


def question_of(message: bytes) -> int:
    """The number of the question that a message says it is about; its length was checked."""
    return int(_HEADER.unpack_from(message)[6])


def another_format(version: int) -> str:
    """What a message, letter or material of another release is, and what to do."""
    return (
        f"of format {version}, and this release's is {VERSION}; use the same release everywhere, "
        "and begin a new session"
    )


def _difference(message: Buffer, head: Head) -> str:
    magic, version, tag, sender, recipient, session, question, part = _HEADER.unpack_from(message)
    name = head.tag.name.lower()
    if magic != _MAGIC:
        return f"the {name} is no message of shared inference"
    if version != VERSION:
        return f"the {name} is {another_format(version)}"
    if tag != head.tag:
        return f"expected a {name}, got a message of kind {tag}"
    if session != head.session:
        return f"the {name} is of another session: its provider, or its plan, is another"
    if (sender, recipient) != (head.sender, head.recipient):
        return f"the {name} is from, or for, another party"
    return f"the {name} is of question {question}, part {part}; due is {head.question}, {head.part}"


@dataclass(frozen=True)
class Letter:
    """What the provider tells a party before anything else; secret, and sent once.

    Attributes
    ----------
    party : Party
    session : bytes
        16, of the provider's material for the plan.
    secrets : tuple of bytes
        Keys and seeds of 32 bytes. A worker's: the key of its material, the seed of its share of
        the model's masks, and the key of its message from the model owner. The data owner's: the
        key of its material. The model owner's: both seeds, then both keys.
    """

    party: Party
    session: bytes
    secrets: tuple[bytes, ...]

    def to_bytes(self, plan: Plan) -> bytes:
        """The letter as it is sent."""
        head = _LETTER.pack(_LETTER_MAGIC, VERSION, self.party, self.session, plan.digest)
        signed = b"".join((head, *self.secrets))
        return signed + hashlib.sha256(signed).digest()

    @classmethod
    def from_bytes(cls, letter: bytes, plan: Plan, *parties: Party) -> "Letter":
        """A letter for one of ``parties``.

        Raises
        ------
        MessageError
            If it is for somebody else, of another plan, or damaged.
        """
        if not isinstance(letter, bytes | bytearray) or len(letter) < _LETTER.size:
            raise MessageError("a letter is bytes, from Provider.letter")
        magic, version, number, session, digest = _LETTER.unpack_from(letter)
        if magic != _LETTER_MAGIC:
            raise MessageError("a letter is bytes, from Provider.letter")
        if version != VERSION:
            raise MessageError(f"the letter is {another_format(version)}")
        if number not in [*parties]:
            names = " or ".join(party.name.lower() for party in parties)
            raise MessageError(f"the letter is for another party than {names}")
        party = Party(number)
        size = _LETTER.size + _SECRETS[party] * SEED_BYTES
        signed = bytes(letter[:size])
        if len(letter) != size + 32 or hashlib.sha256(signed).digest() != letter[size:]:
            raise MessageError("the letter is damaged; ask the provider for it again")
        if digest != plan.digest:
            raise MessageError("the letter belongs to another plan")
        secrets = tuple(
            signed[start : start + SEED_BYTES] for start in range(_LETTER.size, size, SEED_BYTES)
        )
        return cls(party, session, secrets)
