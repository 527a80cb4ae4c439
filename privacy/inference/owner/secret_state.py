"""The data owner's secrets as bytes, with which it reads answers after a restart."""

import hashlib
import struct
from dataclasses import dataclass, field

import numpy as np

from privacy.inference.ckks import Residues
from privacy.inference.errors import SecretsError
from privacy.inference.plan import SESSION_KEY_BYTES

_MAGIC = b"BSHE-SECRET-1\n"  # no message begins so: see messages.MAGIC and the version after it
_HEAD = struct.Struct(f"<32s{SESSION_KEY_BYTES}sQQIII")
_OPEN = struct.Struct("<QI")
_CHECK_BYTES = 32
_OPEN_QUERIES = 1 << 16
"""Queries that may wait for their answers; beyond that the oldest are given up."""


@dataclass
class SecretState:
    """A data owner's secret state.

    Attributes
    ----------
    session_key : bytes
    residues : ndarray
        The secret key modulo every prime, in the number-theoretic domain, (primes, N).
    next_id, released : int
        Counters of queries and of released answers.
    open : dict of int to int
        Query id to number of images, for those that were not answered.
    """

    session_key: bytes
    residues: Residues
    next_id: int = 0
    released: int = 0
    open: dict[int, int] = field(default_factory=dict)

    def open_query(self, images: int) -> int:
        """The id of a new query for so many images."""
        query_id, self.next_id = self.next_id, self.next_id + 1
        self.open[query_id] = images
        if len(self.open) > _OPEN_QUERIES:
            del self.open[next(iter(self.open))]
        return query_id

    def to_bytes(self, digest: bytes) -> bytes:
        """As bytes, with the digest of the plan and a checksum."""
        head = _HEAD.pack(
            digest,
            self.session_key,
            self.next_id,
            self.released,
            *self.residues.shape,
            len(self.open),
        )
        content = _MAGIC + head + b"".join(_OPEN.pack(*item) for item in self.open.items())
        content += np.ascontiguousarray(self.residues, dtype="<u8").tobytes()
        return content + hashlib.sha256(content).digest()

    @classmethod
    def from_bytes(cls, content: bytes, digest: bytes, shape: tuple[int, int]) -> "SecretState":
        """Read the bytes of :meth:`to_bytes` for the plan with this digest and ring.

        Raises
        ------
        SecretsError
            If it is damaged or of another plan.
        """
        body, check = content[:-_CHECK_BYTES], content[-_CHECK_BYTES:]
        start = len(_MAGIC) + _HEAD.size
        intact = hashlib.sha256(body).digest() == check
        if not intact or len(body) < start or not body.startswith(_MAGIC):
            raise SecretsError("the secret state is damaged; make new keys and ask again")
        plan, session_key, next_id, released, primes, degree, count = _HEAD.unpack_from(
            body, len(_MAGIC)
        )
        if plan != digest or (primes, degree) != shape:
            raise SecretsError("the secret state belongs to another plan; make new keys")
        end = start + count * _OPEN.size
        if len(body) != end + 8 * primes * degree:
            raise SecretsError("the secret state has another length; make new keys and ask again")
        opened = dict(_OPEN.iter_unpack(body[start:end]))
        residues = np.frombuffer(body, dtype="<u8", offset=end).reshape(shape)
        return cls(session_key, residues, next_id, released, opened)
