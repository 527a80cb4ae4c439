"""A data owner's public and evaluation keys, read from a message."""

from dataclasses import dataclass

from privacy.inference.ckks import (
    SEED_BYTES,
    Parts,
    PublicKey,
    Residues,
    Ring,
    RotationKeys,
    SwitchingKey,
    is_ternary,
)
from privacy.inference.errors import MessageError
from privacy.inference.messages import Reader, Tag, open_message
from privacy.inference.plan import SESSION_KEY_BYTES, Plan


@dataclass(frozen=True)
class Keys:
    """A data owner's keys for an evaluator; none of them decrypts.

    Attributes
    ----------
    public : PublicKey
    relinearisation : SwitchingKey, or None where the plan needs none
    rotation : RotationKeys
        By Galois element.
    """

    public: PublicKey
    relinearisation: SwitchingKey | None
    rotation: RotationKeys


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
    public, relinearisation = _read_public_key(reader, ring), None
    if plan.relin_level:
        relinearisation = ring.switching_key(_read_parts(reader, ring, plan.relin_level))
    rotation = {
        element: ring.switching_key(_read_parts(reader, ring, level), element)
        for element, level in plan.rotation_levels
    }
    return Keys(public, relinearisation, rotation)


def _read_parts(reader: Reader, ring: Ring, level: int) -> Parts:
    """The parts of a switching key that is used up to ``level``."""
    primes = (*ring.primes[:level], ring.primes[-1])
    parts = []
    for _ in range(level):
        residues = reader.residues(primes, ring.degree)
        refuse_secret(ring, residues)
        parts.append((residues, reader.raw(SEED_BYTES)))
    return parts
