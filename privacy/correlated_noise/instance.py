"""An instance of correlated noise: its secrets, in a file that only its owner may read."""

import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from privacy.arguments import exact_bytes, number, text, whole
from privacy.correlated_noise.errors import NoiseSecretError
from privacy.correlated_noise.factors import Factor, factor_from_dict
from privacy.correlated_noise.rows import CorrelatedNoise
from privacy.files import write_durably
from privacy.json_text import read_json
from privacy.mechanisms import Randomness

_FORMAT = "bloomseal-correlated-noise-2"
_FORMER = "bloomseal-correlated-noise-1"  # from the same keys it drew other noise


@dataclass(frozen=True)
class NoiseInstance:
    """The rows of noise that a run has begun, by their keys: enough to draw them all again.

    Parameters
    ----------
    name : str
        As the ledger calls it; public.
    group_key : bytes
        32, by which clients are put into groups.
    factor : Factor
    sigma : float
    size : int
        As for :class:`CorrelatedNoise`.
    keys : tuple of bytes or None
        Of each row that was begun; None for one that no model holds.
    digests : tuple of int
        ``CorrelatedNoise.digest`` before each of them.
    clients : bytes
        By which whoever goes on from it knows whether clients are the same; its own business.

    Notes
    -----
    **Guarantee.** A row is in the file before it is drawn. A number is never used twice by those
    who go on from the file, and the key of a row is new each time.

    **Assumptions.** Nobody but the run's owner reads the file while the run lasts: with it and the
    models, sums show without noise. Whoever goes on from it first makes sure, by the ledger, that
    no later row was released (``rows``): an old copy would take back the same noise again.

    **Not covered.** Backups and snapshots that hold the file: it is deleted, not shredded.
    """

    name: str
    group_key: bytes = field(repr=False)
    factor: Factor
    sigma: float
    size: int
    keys: tuple[bytes | None, ...] = field(default=(), repr=False)
    digests: tuple[int, ...] = field(default=(), repr=False)
    clients: bytes = field(default=b"", repr=False)

    @classmethod
    def new(
        cls, name: str, factor: Factor, *, sigma: float, size: int, randomness: Randomness
    ) -> "NoiseInstance":
        """One without rows."""
        return cls(name, randomness.bytes(32), factor, sigma, size)

    @property
    def rows(self) -> int:
        """How many were begun."""
        return len(self.keys)

    def begin_row(self, noise: CorrelatedNoise, randomness: Randomness) -> "NoiseInstance":
        """With one more row, whose key is new."""
        return replace(
            self,
            keys=(*self.keys, randomness.bytes(32)),
            digests=(*self.digests, noise.digest()),
        )

    def without(self, first: int) -> "NoiseInstance":
        """With the rows from this number on taken for such as no model holds."""
        keys = self.keys[:first] + (None,) * max(0, self.rows - first)
        return replace(self, keys=keys)

    def tag(self, count: int) -> str:
        """By which the first ``count`` rows are known again; nothing follows from it."""
        keys = [None if key is None else key.hex() for key in self.keys[:count]]
        return hmac.digest(self.group_key, json.dumps(["rows", *keys]).encode(), "sha256").hex()

    def noise(self) -> CorrelatedNoise:
        """The noise after all rows that were begun, drawn again.

        Raises
        ------
        NoiseSecretError
            If it is not what it was: other code drew it.
        """
        noise = CorrelatedNoise(self.factor, sigma=self.sigma, size=self.size)
        for key, digest in zip(self.keys, self.digests, strict=True):
            if key is None:
                noise.skip()
            elif noise.digest() != digest:
                raise NoiseSecretError("its noise, drawn again, is not the same")
            else:
                noise.draw(key)
        return noise

    def save(self, path: Path) -> None:
        """Write to ``path``, whole and durable, for its owner's eyes only."""
        document = {
            "format": _FORMAT,
            "name": self.name,
            "group_key": self.group_key.hex(),
            "factor": self.factor.as_dict(),
            "sigma": self.sigma.hex(),
            "size": self.size,
            "keys": [None if key is None else key.hex() for key in self.keys],
            "digests": list(self.digests),
            "clients": self.clients.hex(),
        }
        document["checksum"] = _checksum(document)
        write_durably(path, json.dumps(document).encode(), mode=0o600)

    @classmethod
    def load(cls, path: Path) -> "NoiseInstance":
        """Read what ``save`` wrote; a ``NoiseSecretError`` says why that cannot be."""
        try:
            document = read_json(path.read_bytes())
            if document["format"] == _FORMER:
                raise NoiseSecretError(
                    "it is of an earlier version, which drew noise otherwise: go on with that one"
                )
            if document["format"] != _FORMAT:
                raise ValueError("it is of another version")
            instance = cls(
                name=text("name", document["name"]),
                group_key=exact_bytes("group_key", bytes.fromhex(document["group_key"]), 32),
                factor=factor_from_dict(document["factor"]),
                sigma=number("sigma", float.fromhex(document["sigma"]), least=0),
                size=whole("size", document["size"], least=1),
                keys=tuple(
                    None if key is None else exact_bytes("a key", bytes.fromhex(key), 32)
                    for key in document["keys"]
                ),
                digests=tuple(whole("a digest", n, least=0) for n in document["digests"]),
                clients=bytes.fromhex(document["clients"]),
            )
            if len(instance.keys) != len(instance.digests):
                raise ValueError("it has not one digest a row")
            if document.pop("checksum") != _checksum(document):
                raise ValueError("it was altered")
            return instance
        except OSError as error:
            raise NoiseSecretError(f"it cannot be read: {error.strerror}") from error
        except NoiseSecretError:
            raise
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            # Not the error's own words: they may hold a key.
            raise NoiseSecretError("it is damaged, or of another version") from error


def _checksum(document: dict[str, Any]) -> str:
    """Against accidents: a last key that is damaged shows in no digest of a row."""
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def new_name() -> str:
    """A name for an instance, which no other has."""
    return secrets.token_hex(8)
