"""A data owner's public and evaluation keys, read from a message."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from privacy.inference._seal import SEED_BYTES, Residues, Ring, seal
from privacy.inference._wire import MessageError, Reader
from privacy.inference.plan import Plan

_PROBED = 4


@dataclass(frozen=True)
class Keys:
    """What a data owner lets an evaluator compute with; none of it decrypts.

    Attributes
    ----------
    public : SEAL public key
    relin, galois : SEAL keys, or None where the plan needs none
    """

    public: Any
    relin: Any
    galois: Any


def refuse_secret(ring: Ring, residues: Residues) -> None:
    """Refuse a polynomial of a key that is a secret key: all coefficients -1, 0 or 1.

    Public keys, evaluation keys and queries are uniform, so that this refuses nobody else. It
    catches a client that sends the wrong key; no check can see a secret that someone hides.

    Raises
    ------
    MessageError
        If the polynomial, as it is or out of the number-theoretic domain, is ternary.
    """
    first = residues[:1]
    refuse_secret_ciphertext(ring, residues, ring.ciphertext(np.stack([first, first]), 1.0))


def refuse_secret_ciphertext(ring: Ring, residues: Residues, ciphertext: Any) -> None:
    """As :func:`refuse_secret`, for residues that were made into a ciphertext already."""
    copy = seal.Ciphertext()
    ring.evaluator.mod_switch_to(ciphertext, ring.parms_id(1), copy)
    ring.evaluator.transform_from_ntt_inplace(copy)
    data, small = copy.dyn_array(), (0, 1, ring.primes[0] - 1)
    # A uniform polynomial has four such coefficients in a row once in 2^200.
    for values in (residues[0, :_PROBED].tolist(), [data.at(k) for k in range(_PROBED)]):
        if all(value in small for value in values):
            raise MessageError(
                "the message holds a secret key; it was discarded. Make new keys, and send only "
                "what public_material() and encrypt() return"
            )


def read_keys(reader: Reader, ring: Ring, plan: Plan) -> Keys:
    """Read the keys that the plan names.

    Raises
    ------
    MessageError
        If a residue is not below its prime, or a polynomial is a secret key.
    """
    residues = reader.residues(ring.primes, plan.degree)
    refuse_secret(ring, residues)
    public = ring.public_key(residues, reader.raw(SEED_BYTES))
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
