"""What a round is about, whom it must withstand, and what a client insists on."""

import math
import struct
from collections.abc import Iterable
from dataclasses import astuple, dataclass, field
from enum import Enum
from typing import Any

from privacy import arguments
from privacy.mechanisms import (
    DistributedGaussian,
    MaskedGaussian,
    MaskedMechanism,
    Randomness,
    SystemRandomness,
)
from privacy.secure_aggregation._crypto import KEY_BYTES, digest, verifying_key
from privacy.secure_aggregation._masking import ring_bits
from privacy.secure_aggregation.errors import MalformedMessageError

RUN_BYTES = 16
_LARGEST_SIZE = 1 << 32
LARGEST_COHORT = 1 << 20
REQUEST_BYTES = 32
_FORM = struct.Struct("<16sQQQIB32s")


class ServerModel(Enum):
    """What the server may do."""

    HONEST_BUT_CURIOUS = "honest-but-curious"
    """It follows the protocol, and reads all that passes through it."""

    MALICIOUS = "malicious"
    """It sends whatever it likes to whomever it likes."""


@arguments.renamed(corrupt="max_corrupt_fraction")
@dataclass(frozen=True)
class Adversary:
    """Whom a round must withstand: the server together with some clients.

    Parameters
    ----------
    server : ServerModel
    max_corrupt_fraction : float
        The largest share of a round's clients that may collude with it, in [0, 0.5).
    """

    server: ServerModel = ServerModel.HONEST_BUT_CURIOUS
    max_corrupt_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_server("server", self.server)
        arguments.convert(self, "max_corrupt_fraction", arguments.number, least=0, below=0.5)

    def max_corrupt(self, clients: int) -> int:
        """How many of so many clients may collude with the server, rounded up."""
        return math.ceil(self.max_corrupt_fraction * clients)


def check_server(name: str, value: object) -> None:
    """Refuse a value that is no ``ServerModel`` (``TypeError``)."""
    give = "ServerModel.HONEST_BUT_CURIOUS or ServerModel.MALICIOUS"
    arguments.of_kind(name, value, ServerModel, give)


def check_adversary(name: str, value: object) -> None:
    """Refuse a value that is no ``Adversary`` (``TypeError``)."""
    arguments.of_kind(name, value, Adversary, "Adversary(server, max_corrupt_fraction)")


def pinned_keys(keys: Any) -> frozenset[bytes]:
    """Ed25519 public keys, 32 bytes each, from an iterable; text and bytes are no lists of keys."""
    give = f"a list of Ed25519 public keys, each {KEY_BYTES} bytes"
    if isinstance(keys, str | bytes | bytearray) or not isinstance(keys, Iterable):
        raise TypeError(f"client_public_keys is {arguments.shown(keys)}; give {give}")
    listed = list(keys)
    for key in listed:
        arguments.of_kind("one of client_public_keys", key, bytes, give)
        arguments.exact_bytes("one of client_public_keys", key, KEY_BYTES)
    return frozenset(listed)


@arguments.renamed(minimum="min_clients")
@dataclass(frozen=True)
class RoundTerms:
    """The public terms of one round; every key and signature of the round is bound to them.

    Parameters
    ----------
    run : bytes
        16 bytes that name the run.
    number : int
        The round, at least 1; it only ever grows within a run.
    size : int
        How many entries a vector has.
    bound : int
        B, at least 1: an entry of n clients' sum has an absolute value of at most nB. Without noise
        at the clients: the largest absolute value of a client's entry.
    min_clients : int
        The fewest clients whose sum may be opened, at least 3.
    server : ServerModel
        Which of the two protocols is followed.
    request : bytes
        A digest, 32 bytes, of all that is sent beside the protocol to make the vector from; a
        client that receives anything else refuses. Default: zeros, where nothing is sent.
    """

    run: bytes
    number: int
    size: int
    bound: int
    min_clients: int
    server: ServerModel = ServerModel.HONEST_BUT_CURIOUS
    request: bytes = bytes(REQUEST_BYTES)

    def __post_init__(self) -> None:
        arguments.exact_bytes("run", self.run, RUN_BYTES)
        arguments.exact_bytes("request", self.request, REQUEST_BYTES)
        check_server("server", self.server)
        for name, least, most in (
            ("number", 1, 1 << 62),
            ("size", 1, _LARGEST_SIZE),
            ("bound", 1, 1 << 60),
            ("min_clients", 3, LARGEST_COHORT),
        ):
            arguments.convert(self, name, arguments.whole, least=least, most=most)
        ring_bits(self.min_clients, self.bound)

    @property
    def malicious(self) -> bool:
        """Whether the protocol that withstands a malicious server is followed."""
        return self.server is ServerModel.MALICIOUS

    def to_bytes(self) -> bytes:
        """The terms as they are sent."""
        *numbers, _, request = astuple(self)
        return _FORM.pack(*numbers, self.malicious, request)

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "RoundTerms":
        """Read what ``to_bytes`` wrote; ``MalformedMessageError`` if it is not that."""
        try:
            run, number, size, bound, min_clients, malicious, request = _FORM.unpack(encoded)
            server = (ServerModel.HONEST_BUT_CURIOUS, ServerModel.MALICIOUS)[malicious]
            return cls(run, number, size, bound, min_clients, server, request)
        except (struct.error, ValueError, IndexError) as error:
            raise MalformedMessageError(f"not the terms of a round: {error}") from error

    @property
    def digest(self) -> bytes:
        """What keys and signatures are bound to."""
        return digest(b"terms", self.to_bytes())


@dataclass(frozen=True)
class Identity:
    """A client's lasting Ed25519 identity, which others pin.

    Parameters
    ----------
    private : bytes
        The private key, 32 bytes; never shown.
    """

    private: bytes = field(repr=False)

    def __post_init__(self) -> None:
        arguments.exact_bytes("private", self.private, KEY_BYTES)

    @classmethod
    def draw(cls, randomness: Randomness | None = None) -> "Identity":
        """A new identity, from the operating system's randomness."""
        return cls((randomness or SystemRandomness()).bytes(KEY_BYTES))

    @property
    def public(self) -> bytes:
        """The public key that others pin, 32 bytes."""
        return verifying_key(self.private)


@arguments.renamed(minimum_cohort="min_clients", identities="client_public_keys")
@dataclass(frozen=True)
class ClientPolicy:
    """What a client insists on, whatever the server asks.

    Parameters
    ----------
    min_clients : int
        The fewest clients, itself included, in whose sum its update may be opened; at least 3.
    adversary : Adversary
        Whom it wants to be protected from.
    client_public_keys : iterable of bytes, optional
        The pinned Ed25519 public keys of all who may take part; needed, and only used, against a
        malicious server.
    clipping_norm : float, optional
        The pinned clipping norm S of the whole update: with another one the client does not
        train. Default: whatever all clients of a round are sent alike.
    weight_cap : float, optional
        The pinned cap ŵ of weights; 0: every client counts the same. Default: as above.
    mechanism : MaskedMechanism, optional
        The pinned mechanism, with its settings, that rounds the update and adds this client's
        share of the noise. Default: as above.

    Raises
    ------
    TypeError, ValueError
        If one is of the wrong kind or out of range, or public keys are missing against a
        malicious server.
    """

    min_clients: int
    adversary: Adversary = Adversary()
    client_public_keys: Iterable[bytes] = frozenset()
    clipping_norm: float | None = None
    weight_cap: float | None = None
    mechanism: MaskedMechanism | None = None

    def __post_init__(self) -> None:
        arguments.convert(self, "min_clients", arguments.whole, least=3)
        if self.clipping_norm is not None:
            arguments.convert(self, "clipping_norm", arguments.number, above=0)
        if self.weight_cap is not None:
            arguments.convert(self, "weight_cap", arguments.number, least=0)
        check_adversary("adversary", self.adversary)
        if self.mechanism is not None:
            masked = (MaskedGaussian, DistributedGaussian)
            give = "MaskedGaussian(...) or DistributedGaussian(...), or leave it out"
            arguments.of_kind("mechanism", self.mechanism, masked, give)
        client_public_keys = pinned_keys(self.client_public_keys)
        object.__setattr__(self, "client_public_keys", client_public_keys)
        if self.adversary.server is ServerModel.MALICIOUS and not self.client_public_keys:
            raise ValueError(
                "client_public_keys is empty; without them a malicious server can play all "
                "other clients itself"
            )
