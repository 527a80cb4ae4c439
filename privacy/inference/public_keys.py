"""A data owner's public and evaluation keys, read from a message."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from privacy.inference.ckks.ring import SEED_BYTES, Residues, Ring
from privacy.inference.errors import MessageError
from privacy.inference.messages import Reader, Tag, open_message
from privacy.inference.plan import SESSION_KEY_BYTES, Plan


@dataclass(frozen=True)
class Keys:
    """What a data owner lets an evaluator compute with; none of it decrypts.

    Attributes
    ----------
    public : SEAL public key
        Of the ring at the last level, where answers are re-randomised.
    relin, galois : SEAL keys, or None where the plan needs none
    """

    public: Any
    relin: Any
    galois: Any


def refuse_secret(ring: Ring, residues: Residues) -> None:
    """Refuse a polynomial that is a secret key: all coefficients -1, 0 or 1.

    Public keys, evaluation keys and ciphertexts are uniform, so that this refuses nobody else:
    four residues are all that small once in 2^85 at the shortest prime. It catches a client that
    sends the wrong key; no check can see a secret that someone hides.

    Raises
    ------
    MessageError
        If the polynomial, as it is or out of the number-theoretic domain, is ternary.
    """
    small = (0, 1, ring.primes[0] - 1)
    for values in (residues[0, :4].tolist(), _four_coefficients(ring, residues[0])):
        if all(value in small for value in values):
            raise MessageError(
                "the message holds a secret key; it was discarded. Make new keys, and send only "
                "what public_material() and encrypt() return"
            )


def _four_coefficients(ring: Ring, transformed: Residues) -> list[int]:
    """Coefficients 0, N/4, N/2 and 3N/4 of a transformed polynomial, up to their signs.

    The transform is in bit-reversed order, where the powers of ζ that the first two bits of an
    index leave are 1, 5, 3 and 7: the inverse transform at these four is one of sums of quarters.
    """
    prime = ring.primes[0]
    low = (transformed & np.uint64(0xFFFFFFFF)).reshape(4, -1).sum(axis=1).tolist()
    high = (transformed >> np.uint64(32)).reshape(4, -1).sum(axis=1).tolist()
    sums = [(a + (b << 32)) % prime for a, b in zip(low, high, strict=True)]
    back, scale = pow(ring.eighth_root, -1, prime), pow(ring.degree, -1, prime)
    return [
        sum(s * pow(back, power * k, prime) for s, power in zip(sums, (1, 5, 3, 7), strict=True))
        * scale
        % prime
        for k in range(4)
    ]


def open_material(
    message: bytes, plan: Plan, digest: bytes, *, binding: bytes = b""
) -> tuple[bytes, Reader]:
    """Check public material; its session key, and the rest of it.

    Raises
    ------
    MessageError
        If it is not exactly what the plan says.
    """
    _, body = open_message(
        message,
        Tag.MATERIAL,
        plan,
        digest,
        lambda body: bytes(body[:SESSION_KEY_BYTES]),
        binding=binding,
    )
    reader = Reader(body)
    return reader.raw(SESSION_KEY_BYTES), reader


def public_key(message: bytes, ring: Ring, plan: Plan) -> tuple[bytes, Any]:
    """The session key and the public key of public material.

    Raises
    ------
    MessageError
        If it is not exactly what the plan says.
    """
    session_key, reader = open_material(message, plan, plan.digest)
    return session_key, _read_public_key(reader, ring)


def _read_public_key(reader: Reader, ring: Ring) -> Any:
    residues = reader.residues(ring.primes, ring.degree)
    refuse_secret(ring, residues)
    return ring.public_key(residues, reader.raw(SEED_BYTES))


def read_keys(reader: Reader, ring: Ring, plan: Plan) -> Keys:
    """Read the keys that the plan names.

    Raises
    ------
    MessageError
        If a residue is not below its prime, or a polynomial is a secret key.
    """
    public = ring.last_public_key(_read_public_key(reader, ring))
    relin = None
    if plan.relin_level:
        relin = ring.relin_keys(_read_switching_key(reader, ring, plan.relin_level))
    galois = None
    if plan.rotation_levels:
        galois = ring.galois_keys(
            {
                element: _read_switching_key(reader, ring, level)
                for element, level in plan.rotation_levels
            }
        )
    return Keys(public, relin, galois)


def _read_switching_key(reader: Reader, ring: Ring, level: int) -> list[tuple[Residues, bytes]]:
    """A switching key that is used up to ``level``; what it lacks above is zero, and unused."""
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
