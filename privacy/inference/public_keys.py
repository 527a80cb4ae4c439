"""A data owner's public and evaluation keys, read from a message."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from privacy.inference.ckks import SEED_BYTES, Parts, PublicKey, Residues, Ring, is_ternary
from privacy.inference.errors import MessageError
from privacy.inference.messages import Reader, Tag, open_message
from privacy.inference.plan import SESSION_KEY_BYTES, Plan


@dataclass(frozen=True)
class Keys:
    """A data owner's keys for an evaluator; none of them decrypts.

    Attributes
    ----------
    public : PublicKey
    relinearisation, rotation : keys as the ring takes them, or None where the plan needs none
    """

    public: PublicKey
    relinearisation: Any
    rotation: Any


def refuse_secret(ring: Ring, residues: Residues) -> None:
    """Refuse a polynomial that is a secret key: all coefficients -1, 0 or 1.

    It catches a client that sends the wrong key; no check can see a secret that someone hides.
    """
    if is_ternary(ring, residues):
        raise MessageError(
            "the message holds a secret key; it was discarded. Make new keys, and send only "
            "what public_material() and encrypt() return"
        )


def open_material(
    message: bytes, plan: Plan, digest: bytes, *, binding: bytes = b""
) -> tuple[bytes, Reader]:
    """Check public material; its session key, and a reader of the rest."""

    def session_key(body: memoryview) -> bytes:
        return bytes(body[:SESSION_KEY_BYTES])

    _, body = open_message(message, Tag.MATERIAL, plan, digest, session_key, binding=binding)
    reader = Reader(body)
    return reader.raw(SESSION_KEY_BYTES), reader


def public_key(message: bytes, ring: Ring, plan: Plan) -> tuple[bytes, PublicKey]:
    """The session key and the public key of public material."""
    session_key, reader = open_material(message, plan, plan.digest)
    return session_key, _read_public_key(reader, ring)


def _read_public_key(reader: Reader, ring: Ring) -> PublicKey:
    residues = reader.residues(ring.primes, ring.degree)
    refuse_secret(ring, residues)
    return PublicKey(ring, residues, reader.raw(SEED_BYTES))


def read_keys(reader: Reader, ring: Ring, plan: Plan) -> Keys:
    """Read the keys that the plan names."""
    public, relinearisation, rotation = _read_public_key(reader, ring), None, None
    if plan.relin_level:
        parts = _read_switching_key(reader, ring, plan.relin_level)
        relinearisation = ring.relinearisation_keys(parts)
    if plan.rotation_levels:
        rotation = ring.rotation_keys(
            {
                element: _read_switching_key(reader, ring, level)
                for element, level in plan.rotation_levels
            }
        )
    return Keys(public, relinearisation, rotation)


def _read_switching_key(reader: Reader, ring: Ring, level: int) -> Parts:
    """A switching key that is used up to ``level``; parts above are zero, and unused."""
    primes = (*ring.primes[:level], ring.primes[-1])
    parts = []
    for index in range(ring.levels):
        whole = np.zeros((len(ring.primes), ring.degree), dtype=np.uint64)
        seed = bytes(SEED_BYTES)
        if index < level:
            residues = reader.residues(primes, ring.degree)
            refuse_secret(ring, residues)
            whole[[*range(level), len(ring.primes) - 1]] = residues
            seed = reader.raw(SEED_BYTES)
        parts.append((whole, seed))
    return parts
