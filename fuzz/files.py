"""Files that another may have written, or damaged: ledgers, policies, checkpoints, tokens."""

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fuzz.edits import EDITS, edited
from fuzz.target import Target
from privacy.accounting import GaussianRelease, Poisson, Position
from privacy.accounting.errors import LedgerError
from privacy.accounting.ledger_text import LedgerText, _digest
from privacy.array_files import ArrayFile
from privacy.audit.__main__ import read_scores
from privacy.correlated_noise.errors import NoiseSecretError
from privacy.correlated_noise.factors import BandedFactor, BLTFactor
from privacy.correlated_noise.instance import NoiseInstance, _checksum
from privacy.inference_service import key_file as key_file_module
from privacy.inference_service.errors import KeyFileError, ServiceError, TokenFileError
from privacy.inference_service.key_file import KeyFile, StoredKeys
from privacy.inference_service.questions import Questions
from privacy.inference_service.tokens import Caller, TokenFile
from privacy.mechanisms import SystemRandomness
from privacy.training import DataPolicy
from privacy.training.errors import PolicyError
from strategies.checkpoint import Checkpoint
from strategies.errors import CheckpointError
from strategies.population import Population


def _file() -> Path:
    """A path that is the target's alone."""
    return Path(tempfile.mkdtemp(prefix="fuzz-")) / "file"


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o600)
    return path


def ledger() -> Target:
    """A ledger's lines; where the first byte is odd with digests that fit."""
    text = LedgerText.start("population, 1000 clients", unit="person")
    event = GaussianRelease(1.1, Poisson(0.1))
    for number in range(3):
        text = text.plus(event, run="run", round=number, released=5 if number else None)
    lines = [json.loads(line) for line in text.content.splitlines()]
    plain = b"\n".join(
        json.dumps({k: v for k, v in line.items() if k != "digest"}).encode() for line in lines
    )

    def read(content: bytes) -> None:
        given = content[1:]
        if content[:1] and content[0] & 1:
            given = _sealed(given)
        contents = LedgerText.parse(given, "of a stranger").contents
        for record in contents.records:
            assert isinstance(record.run, str) and isinstance(record.time, str)
            assert type(record.round) is int and type(record.released) in (int, type(None))
        _ = contents.clients, contents.has_silo_sums

    return Target(read, (LedgerError,), (b"\0" + text.content, b"\1" + plain + b"\n", b"\0", b""))


def _sealed(lines: bytes) -> bytes:
    """Lines of JSON with digests that chain them, as far as they are JSON."""
    before, sealed = "", []
    for line in lines.split(b"\n"):
        try:
            fields = json.loads(line)
            before = _digest(fields, before)
            sealed.append(json.dumps({**fields, "digest": before}, allow_nan=False).encode())
        except (ValueError, TypeError, RecursionError):
            sealed.append(line)
    return b"\n".join(sealed)


def policy() -> Target:
    """A data owner's policy."""
    path = _file()
    good = b'dataset = "ward-7"\nmax-epsilon = 3.0\nmax-delta = 1e-5\nunit = "person"\n'
    more = b"min-silos = 3\ncolluders = 1\nanswer-seconds = 5.0\n"
    more += f'ledger = "{path.parent / "ledger"}"\n'.encode()

    def read(content: bytes) -> None:
        DataPolicy.load(_written(path, content))

    return Target(read, (PolicyError,), (good, good + more, b"[a]\n", b"\xef\xbb\xbf" + good))


def array_file() -> Target:
    """A safetensors file."""
    path = _file()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array([True]), "c": np.zeros(0, np.int8)}
    ArrayFile("kind-1", "text", arrays).save(path)
    good = path.read_bytes()

    def read(content: bytes) -> None:
        file = ArrayFile.load(_written(path, content))
        _ = file.is_whole

    seeds = (good, *(edited(good, edits) for edits in EDITS[1:]))
    return Target(read, (ValueError,), seeds)


def checkpoint() -> Target:
    """A run's checkpoint; a text with a digest that fits, or a file with changes."""
    path = _file()
    arrays: dict[str, Any] = {"model/0": np.zeros(3, np.float32), "privacy/rounds": np.arange(2)}
    arrays |= {"privacy/aborted": np.zeros(0, np.int64), "privacy/epsilon": np.ones(2)}
    Checkpoint("run", 2, 1.0, Position(2, "ab"), "{}", arrays).save(path)
    good, file = path.read_bytes(), ArrayFile.load(path)

    def read(content: bytes) -> None:
        if content[:1] and content[0] & 1:
            ArrayFile(file.format, content[1:].decode(errors="replace"), file.arrays).save(path)
        else:
            _written(path, edited(good, content[1:]))
        loaded = Checkpoint.load(path)
        assert isinstance(loaded.run, str) and type(loaded.round) is int
        assert isinstance(loaded.settings, str) and isinstance(loaded.position.digest, str)
        _ = loaded.has_learned

    texts = (file.text, "{}", "[]", file.text.replace('"round": 2', '"round": "2"'))
    seeds = [*(b"\0" + edits for edits in EDITS), *(b"\1" + text.encode() for text in texts)]
    return Target(read, (CheckpointError,), tuple(seeds))


def audit_scores() -> Target:
    """The coins and scores of canaries."""
    path = _file()
    good = b'{"included": [true, false, 1], "scores": [0.5, -2, 1e3]}'

    def read(content: bytes) -> None:
        included, scores = read_scores(_written(path, content))
        assert included.shape == scores.shape and included.size and scores.dtype == np.float64

    wrong = good.replace(b"0.5", b"{}"), good.replace(b"-2", b"1" + 400 * b"0")
    return Target(read, (ValueError,), (good, *wrong, b'{"included": [], "scores": []}', b"[]"))


def population() -> Target:
    """A list of clients."""
    path = _file()
    Population(("key:a", "key:b"), name="wards").save(path)
    good = path.read_bytes()

    def read(content: bytes) -> None:
        len(Population.load(_written(path, content)))

    return Target(read, (ValueError,), (good, b"{}", b"[]", b"5"))


def noise_rows() -> Target:
    """The keys of a run's correlated noise; where the first byte is odd with a fitting checksum."""
    path = _file()
    texts = []
    for factor in (BandedFactor((1 << 16, 1 << 15)), BLTFactor((1 << 15,), (1 << 14,), 10, 2)):
        instance = NoiseInstance.new("ab", factor, sigma=1.0, size=4, randomness=SystemRandomness())
        instance.save(path)
        texts.append(path.read_bytes())

    def read(content: bytes) -> None:
        given = content[1:]
        if content[:1] and content[0] & 1:
            given = _changed(given, lambda d: {**d, "checksum": _checksum(_without(d, "checksum"))})
        loaded = NoiseInstance.load(_written(path, given))
        _ = loaded.rows, loaded.tag(1)

    seeds = (*(bytes([n]) + text for n in (0, 1) for text in texts), b"\1{}", b"\0[]")
    return Target(read, (NoiseSecretError,), seeds)


def _without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def _changed(content: bytes, change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    """A JSON object after a change; anything else as it is."""
    try:
        document = json.loads(content)
        return json.dumps(change(document)).encode() if isinstance(document, dict) else content
    except (ValueError, TypeError, RecursionError):
        return content


def tokens() -> Target:
    """A service's file of tokens."""
    path = _file()
    token = TokenFile(path).add("ada", hours=1.0, questions=5)
    good = path.read_bytes()

    def read(content: bytes) -> None:
        _written(path, content)
        file = TokenFile(path)
        file.caller(token)
        file.callers()

    entry = {"name": 5, "role": "x", "sha256": hashlib.sha256().hexdigest()}
    hashed = json.dumps({"tokens": [entry]})
    other = good.replace(b'"sha256": "', b'"sha256": "\xc3\xa4')
    seeds = (good, hashed.encode(), other, b'{"tokens": 5}', b"[]")
    return Target(read, (TokenFileError,), seeds)


class _SameKey(KeyFile):
    """A file of keys under a key that takes no half second to derive."""

    def _derived(self) -> AESGCM:
        return AESGCM(bytes(32))


def key_file() -> Target:
    """A file of keys, under the right passphrase; where the first byte is odd sealed anew."""
    path = _file()
    file = _SameKey(path, "a passphrase")
    file.save(StoredKeys("ab" * 16, "cd" * 32, b"state"))
    good, cipher = path.read_bytes(), file._derived()
    head = good[: key_file_module._HEAD.size]
    nonce, plain = head[-12:], cipher.decrypt(head[-12:], good[len(head) :], head)

    def read(content: bytes) -> None:
        if content[:1] and content[0] & 1:
            _written(path, head + cipher.encrypt(nonce, content[1:], head))
        else:
            _written(path, edited(good, content[1:]))
        stored = _SameKey(path, "a passphrase").load()
        assert stored is not None
        assert isinstance(stored.key_id, str) and isinstance(stored.plan, str)
        assert isinstance(stored.state, bytes)

    texts = (plain, b"{}", b"[]", plain.replace(b'"state": "', b'"state": "!'))
    seeds = (*(b"\0" + edits for edits in EDITS), *(b"\1" + text for text in texts))
    return Target(read, (KeyFileError,), seeds)


def questions() -> Target:
    """A service's counts of questions."""
    path = _file()
    caller = Caller("ada", "owner", "ab", questions=5)

    def read(content: bytes) -> None:
        Questions(_written(path, content)).asked(caller)

    return Target(read, (TokenFileError, ServiceError), (b'{"ab": 3}', b"{}", b"[]", b'{"ab": -1}'))
