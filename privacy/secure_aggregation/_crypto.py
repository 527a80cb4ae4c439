"""Agreement, encryption and signatures, all of them from ``cryptography``.

X25519 (RFC 7748), HKDF with SHA-256 (RFC 5869), AES-256-GCM (NIST SP 800-38D), Ed25519
(RFC 8032).
"""

import hashlib
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from privacy.mechanisms import Randomness
from privacy.secure_aggregation._masking import MASK_KEY_BYTES
from privacy.secure_aggregation.errors import ForgedSignatureError, WeakKeyError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
NONCE_BYTES = 12
SEAL_BYTES = NONCE_BYTES + 16  # what encryption adds
COMMITMENT_BYTES = 16
COORDINATES = 2**255 - 19  # the field over which Curve25519 is drawn


def digest(label: bytes, *parts: bytes) -> bytes:
    """SHA-256 of a label and parts, each with its length, so that no two lists collide."""
    state = hashlib.sha256()
    for part in (label, *parts):
        state.update(len(part).to_bytes(8, "little") + part)
    return state.digest()


def commitment(label: bytes, secret: bytes) -> bytes:
    """Bind to a secret of high entropy without showing it."""
    return digest(b"commitment " + label, secret)[:COMMITMENT_BYTES]


def derive(secret: bytes, label: bytes, session: bytes) -> bytes:
    """A key of 32 bytes for one purpose in one round: HKDF-SHA256."""
    return HKDF(SHA256(), KEY_BYTES, salt=session, info=label).derive(secret)


def self_mask_key(seed: bytes, session: bytes) -> bytes:
    """The key of the mask that only its own client, or a threshold of neighbours, knows."""
    return derive(seed, b"self mask", session)[:MASK_KEY_BYTES]


def pair_mask_key(secret: bytes, one: int, other: int, session: bytes) -> bytes:
    """The key of the mask that the lower of two neighbours adds and the higher takes away."""
    label = b"pair mask %d %d" % (min(one, other), max(one, other))
    return derive(secret, label, session)[:MASK_KEY_BYTES]


def public_key(private: bytes) -> bytes:
    """The X25519 public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def agree(private: bytes, publics: Sequence[bytes]) -> list[bytes]:
    """The X25519 secrets of one party with others, to be put through ``derive``.

    Raises
    ------
    WeakKeyError
        If a public key has small order, so that all know the secret, or another form than X25519
        gives it: one key in two forms would pass for two.
    """
    if any(int.from_bytes(public, "little") >= COORDINATES for public in publics):
        raise WeakKeyError("a public key was advertised in another form than its own")
    own = X25519PrivateKey.from_private_bytes(private)
    try:
        return [own.exchange(X25519PublicKey.from_public_bytes(public)) for public in publics]
    except ValueError as error:
        raise WeakKeyError("a public key of small order was advertised") from error


def seal(key: bytes, plaintext: bytes, bound_to: bytes, randomness: Randomness) -> bytes:
    """Encrypt and authenticate, bound to a context that is not sent."""
    nonce = randomness.bytes(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plaintext, bound_to)


def unseal(key: bytes, sealed: bytes, bound_to: bytes) -> bytes | None:
    """Decrypt what ``seal`` made; None if it was altered or made for another channel or round."""
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound_to)
    except (InvalidTag, ValueError):
        return None


def sign(private: bytes, message: bytes) -> bytes:
    """An Ed25519 signature."""
    return Ed25519PrivateKey.from_private_bytes(private).sign(message)


def verifying_key(private: bytes) -> bytes:
    """The Ed25519 public key of a private one."""
    return Ed25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def verify(public: bytes, signature: bytes, message: bytes, name: str) -> None:
    """Check an Ed25519 signature; ``ForgedSignatureError`` if it is not ``public``'s."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as error:
        raise ForgedSignatureError(f"{name} is not signed by the identity that it names") from error
