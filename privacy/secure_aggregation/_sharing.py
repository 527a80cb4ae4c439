"""Sharing two secrets so that nobody can share wrongly and pass.

A client shares its mask key a and the seed s of its own mask by the polynomials f and g. It also
draws blinding polynomials b and c and commits to each holder's values: H(f(i), b(i)) and
H(g(i), c(i)). A challenge h that follows from the commitments fixes, for all to see, the responses
u = b + h·f and v = c + h·g. They are uniform, so they tell nothing; and all holders whose shares
fit (H(f(i), u(i) - h·f(i)) is the commitment) hold values of *one* polynomial of the right degree,
except for one value of h among 2^252. (Atapoor, Baghery, Cozzo, Pedersen, "VSS from distributed ZK
proofs and applications", ASIACRYPT 2023, section 4.)

That f(0) is the private key of the advertised mask key is an Ed25519 signature (RFC 8032): its
nonce is b(0), its challenge h and its response u(0). So one verification ties the polynomial to
the key. Nothing ties g(0) to the mask that a client really uses: another mask is another vector,
which a lying client may choose anyway.
"""

import hashlib
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation._messages import pieces
from privacy.secure_aggregation._shamir import (
    PRIME,
    SHARE_BYTES,
    decode_element,
    draw_elements,
    draw_polynomial,
    encode_element,
    value_at,
    values,
)
from privacy.secure_aggregation.errors import MalformedMessageError

SHARES_BYTES = 2 * SHARE_BYTES  # of the self-mask's seed, and of the mask key
EVIDENCE_BYTES = 3 * SHARE_BYTES + 2 * keys.COMMITMENT_BYTES
SEED, KEY = 0, 1  # which of the two


def sharing_context(session: bytes, own: int) -> bytes:
    """The proof of a client's sharing is bound to the round, and to its place in the roster."""
    return session + own.to_bytes(4, "little")


def mask_private(root: bytes) -> bytes:
    """The X25519 private key whose Ed25519 seed is ``root`` (RFC 8032, 5.1.5)."""
    digest = bytearray(hashlib.sha512(root).digest()[: keys.KEY_BYTES])
    digest[0] &= 248
    digest[31] = digest[31] & 127 | 64
    return bytes(digest)


@dataclass(frozen=True)
class Evidence:
    """What a holder needs to check its two shares; nothing of it is secret.

    ``challenge`` is h, ``responses`` are v(i) and u(i), ``commitments`` are to the shares of the
    seed and of the key.
    """

    challenge: int
    responses: tuple[int, int]
    commitments: tuple[bytes, bytes]

    def fits(self, which: int, share: bytes) -> bool:
        """Whether this is the share of the seed, or of the key, that was committed to."""
        blinding = (self.responses[which] - self.challenge * decode_element(share)) % PRIME
        return _commitment(which, share, blinding) == self.commitments[which]

    def fit(self, shares: bytes) -> bool:
        """Whether these are the two shares."""
        return len(shares) == SHARES_BYTES and all(
            self.fits(which, share) for which, share in enumerate(pieces(shares, SHARE_BYTES))
        )

    def to_bytes(self) -> bytes:
        """128 bytes."""
        numbers = [encode_element(number) for number in (self.challenge, *self.responses)]
        return b"".join([*numbers, *self.commitments])

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "Evidence":
        """Read the 128 bytes that ``to_bytes`` wrote."""
        numbers = pieces(encoded[: 3 * SHARE_BYTES], SHARE_BYTES)
        challenge, *responses = map(decode_element, numbers)
        seed, key = pieces(encoded[3 * SHARE_BYTES :], keys.COMMITMENT_BYTES)
        return cls(challenge, (responses[SEED], responses[KEY]), (seed, key))


@dataclass(frozen=True)
class Dealing:
    """What a client deals out to its holders.

    ``shares`` has each holder's two, and is secret; ``commitments`` are to the shares of the seed,
    and of the key; ``proof`` shows that they are shares of one secret each.
    """

    shares: list[bytes]
    commitments: tuple[list[bytes], list[bytes]]
    proof: bytes
    evidence: list[Evidence]


def deal(
    root: bytes, seed: int, *, threshold: int, holders: int, context: bytes, randomness: Randomness
) -> Dealing:
    """Share the mask key of ``root`` and a seed, t of k, with the proof that it was done rightly.

    ``root`` is the Ed25519 seed of the mask key; ``seed``, of the self-mask, an element of the
    field. The proof is bound to ``context``, which names the round and the client.
    """
    signer = Ed25519PrivateKey.from_private_bytes(root)
    point = signer.public_key().public_bytes_raw()
    private = decode_element(mask_private(root)) % PRIME
    # A signature that nobody ever sees: its nonce is uniform, and its point comes with it.
    unseen = randomness.bytes(keys.KEY_BYTES)
    signature = signer.sign(unseen)
    nonce_point, response = signature[:32], decode_element(signature[32:])
    nonce = (response - _challenge(nonce_point, point, unseen) * private) % PRIME

    draw = partial(draw_polynomial, threshold=threshold, randomness=randomness)
    polynomials = [draw(seed), draw(private)]
    blindings = [draw(draw_elements(randomness, 1)[0]), draw(nonce)]
    shares = [
        [encode_element(share) for share in values(polynomial, holders)]
        for polynomial in polynomials
    ]
    seeds, privates = (
        [
            _commitment(which, share, blind)
            for share, blind in zip(shares[which], values(blindings[which], holders), strict=True)
        ]
        for which in (SEED, KEY)
    )
    challenge = _challenge(nonce_point, point, _statement(context, seeds, privates))
    responses = [
        [(blind + challenge * own) % PRIME for own, blind in zip(secret, blinding, strict=True)]
        for secret, blinding in zip(polynomials, blindings, strict=True)
    ]
    return Dealing(
        shares=[of_seed + of_key for of_seed, of_key in zip(*shares, strict=True)],
        commitments=(seeds, privates),
        proof=point + nonce_point + b"".join(map(encode_element, responses[SEED] + responses[KEY])),
        evidence=_evidence(challenge, responses, (seeds, privates)),
    )


def proof_size(threshold: int) -> int:
    """Of a proof, in bytes."""
    return 2 * keys.KEY_BYTES + 2 * SHARE_BYTES * threshold


def check_proof(
    proof: bytes, seeds: list[bytes], privates: list[bytes], *, mask_key: bytes, context: bytes
) -> list[Evidence]:
    """Check a proof as far as it goes without a share, and make each holder's evidence.

    Parameters
    ----------
    proof : bytes
        ``proof_size`` bytes.
    seeds, privates : list of bytes
        The commitments to the shares.
    mask_key : bytes
        The X25519 public key that was advertised.
    context : bytes
        As in ``deal``.

    Raises
    ------
    MalformedMessageError, ForgedSignatureError
        If the proof is not in its form or about another key, or proves nothing.
    """
    point, nonce_point, *rest = pieces(proof, SHARE_BYTES)
    if not _same_key(point, mask_key):
        raise MalformedMessageError("the shares are of another key than the one advertised")
    numbers = [decode_element(number) for number in rest]
    if max(numbers) >= PRIME:
        raise MalformedMessageError("a response lies outside the field")
    half = len(numbers) // 2
    responses = [numbers[:half], numbers[half:]]
    statement = _statement(context, seeds, privates)
    signature = nonce_point + encode_element(responses[KEY][0])
    keys.verify(point, signature, statement, "the sharing of a mask key")
    return _evidence(_challenge(nonce_point, point, statement), responses, (seeds, privates))


def agree_with(private: int, publics: list[bytes]) -> list[bytes]:
    """The X25519 secrets of a private key that is given as an element of the field.

    X25519 takes multiples of 8 in [2^254, 2^255) only. Its own keys are such; another, which a
    cheat may take, is applied in two steps, a random key first.
    """
    direct = _as_private(private)
    if direct is not None:
        return keys.agree(direct, publics)
    while True:
        first = mask_private(SystemRandomness().bytes(keys.KEY_BYTES))
        second = _as_private(private * pow(decode_element(first), -1, PRIME) % PRIME)
        if second is not None:
            return keys.agree(second, keys.agree(first, publics))


def _as_private(element: int) -> bytes | None:
    multiple = 8 * (element * pow(8, -1, PRIME) % PRIME)
    # The negative of a key has the same secrets: X25519 sees no sign.
    for scalar in (multiple, 8 * PRIME - multiple):
        if 2**254 <= scalar < 2**255:
            return encode_element(scalar)
    return None


def _evidence(
    challenge: int, responses: list[list[int]], commitments: tuple[list[bytes], list[bytes]]
) -> list[Evidence]:
    return [
        Evidence(
            challenge,
            (value_at(responses[SEED], point), value_at(responses[KEY], point)),
            (seed, private),
        )
        for point, (seed, private) in enumerate(zip(*commitments, strict=True), start=1)
    ]


def _commitment(which: int, share: bytes, blinding: int) -> bytes:
    return keys.commitment((b"seed share", b"key share")[which], share + encode_element(blinding))


def _statement(context: bytes, seeds: list[bytes], privates: list[bytes]) -> bytes:
    return keys.digest(b"sharing", context, b"".join(seeds), b"".join(privates))


def _challenge(nonce_point: bytes, point: bytes, statement: bytes) -> int:
    """Ed25519's own challenge (RFC 8032, 5.1.6)."""
    digest = hashlib.sha512(nonce_point + point + statement).digest()
    return int.from_bytes(digest, "little") % PRIME


def _same_key(point: bytes, mask_key: bytes) -> bool:
    """Whether a point of Ed25519 is this one of X25519 (RFC 7748, 4.1: u = (1 + y)/(1 - y))."""
    y, u = int.from_bytes(point, "little") & (2**255 - 1), int.from_bytes(mask_key, "little")
    return y < keys.COORDINATES and (u * (1 - y) - (1 + y)) % keys.COORDINATES == 0
