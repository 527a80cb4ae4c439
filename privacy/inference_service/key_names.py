"""The names of sets of keys, which both sides work out."""

import hashlib


def key_id(material: bytes) -> str:
    """The name of a set of keys: the start of its SHA-256, 32 hexadecimal digits."""
    return hashlib.sha256(material).hexdigest()[:32]
