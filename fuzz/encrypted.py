"""Encrypted inference: plans, keys, questions, answers, and files of models."""

import contextlib
import hashlib
import hmac
import io
import json
import struct
import tempfile
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fuzz.edits import EDITS, edited
from fuzz.target import Target
from privacy.array_files import ArrayFile
from privacy.inference import (
    CompiledModel,
    DataOwner,
    Evaluator,
    InputContract,
    PackedModel,
    Plan,
    Square,
    accept_plan,
    compile_model,
)
from privacy.inference.errors import (
    MessageError,
    ModelFileError,
    PlanRefusedError,
    SecretsError,
)
from privacy.inference.evaluator import process
from privacy.inference.messages import MAC_BYTES
from privacy.inference.plan import MESSAGE_OVERHEAD, SESSION_KEY_BYTES

_RANGE = (0.0, 1.0)
_X = [0.0, 1.0, 0.5, 0.25]
_CONTRACT = InputContract((4,), _RANGE, classes=2)
_KEY = slice(MESSAGE_OVERHEAD - MAC_BYTES, MESSAGE_OVERHEAD - MAC_BYTES + SESSION_KEY_BYTES)
_QUERY_ID = struct.Struct("<Q")
_QUERY_ID_AT = 4 + 1 + 1 + 32 + 16  # after magic, version, tag, digest and model version


@cache
def compiled(kind: str) -> CompiledModel:
    """A small model: ``slots`` with a square, ``coefficients`` without, or a ``batch``."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), Square()] if kind != "coefficients" else []
    model = nn.Sequential(*layers, nn.Linear(4, 2))
    size = 3 if kind == "batch" else 1
    return compile_model(
        model, input_shape=(4,), input_range=_RANGE, tolerance=1.0, batch_size=size
    )


@cache
def _owner(kind: str) -> DataOwner:
    return DataOwner(compiled(kind).plan)


@cache
def _material(kind: str) -> bytes:
    return _owner(kind).public_material()


@cache
def _evaluator(kind: str) -> Evaluator:
    return Evaluator(compiled(kind), _material(kind))


_KINDS = ("coefficients", "slots")


def _chosen(content: bytes) -> tuple[str, bool, bytes]:
    """Which model, whether the message is authenticated anew, and the edits."""
    first = content[0] if content else 0
    return _KINDS[first & 1], bool(first & 2), content[1:]


def _authenticated(message: bytes, key: bytes) -> bytes:
    """With a code that fits: what whoever has the session key could send."""
    signed = message[:-MAC_BYTES]
    return signed + hmac.digest(key, signed, hashlib.sha256)


_SEEDS = tuple(bytes([first]) + edits for first in range(4) for edits in EDITS)


def plan() -> Target:
    """A plan that a service sends to a data owner."""
    texts = [compiled(kind).plan.to_json().encode() for kind in ("coefficients", "slots", "batch")]

    def read(content: bytes) -> None:
        text = content.decode(errors="replace")
        with contextlib.suppress(ValueError):
            str(Plan.from_json(text))
        accepted = accept_plan(text, _CONTRACT)
        assert accepted.query_bytes > 0 and accepted.answer_bytes > 0 and len(accepted.digest) == 32

    return Target(read, (PlanRefusedError,), (*texts, b"{}", b"[[1]]"))


def material() -> Target:
    """Public keys that a data owner sends to an evaluator."""

    def read(content: bytes) -> None:
        kind, anew, edits = _chosen(content)
        message = edited(_material(kind), edits)
        if anew and len(message) > MESSAGE_OVERHEAD:
            message = _authenticated(message, message[_KEY])
        Evaluator(compiled(kind), message)

    return Target(read, (MessageError,), _SEEDS)


def query() -> Target:
    """A question that a data owner sends to an evaluator."""

    def read(content: bytes) -> None:
        kind, anew, edits = _chosen(content)
        message = edited(_owner(kind).encrypt(_X), edits)
        if anew:
            message = _authenticated(message, _material(kind)[_KEY])
        _evaluator(kind).evaluate(message)

    return Target(read, (MessageError,), _SEEDS)


def answer() -> Target:
    """An answer that an evaluator sends to a data owner."""
    answers = {kind: _evaluator(kind).evaluate(_owner(kind).encrypt(_X)) for kind in _KINDS}

    def read(content: bytes) -> None:
        kind, anew, edits = _chosen(content)
        message = bytearray(answers[kind])
        asked = _owner(kind).encrypt(_X)
        message[_QUERY_ID_AT : _QUERY_ID_AT + 8] = asked[_QUERY_ID_AT : _QUERY_ID_AT + 8]
        changed = edited(_authenticated(bytes(message), _material(kind)[_KEY]), edits)
        if anew:
            changed = _authenticated(changed, _material(kind)[_KEY])
        _owner(kind).decrypt(changed)

    return Target(read, (MessageError,), _SEEDS)


def evaluator_replies() -> Target:
    """What the process of an evaluator, which strangers' messages may have taken over, sends."""
    plan = compiled("coefficients").plan.to_json().encode()
    answer = _evaluator("coefficients").evaluate(_owner("coefficients").encrypt(_X))
    frames = (plan, b"+", b"+" + struct.pack(">d", 0.01) + answer, b"-the message was altered")

    def read(content: bytes) -> None:
        first, stream = content[:1], io.BytesIO(content[1:])
        frame = process._read_frame(stream)
        if frame is None:
            return  # it ended
        if first == b"p":
            assert len(process._plan(frame).digest) == 32
            return
        _, seconds = process._answer(process._content(frame))
        assert 0 <= seconds < inf

    framed = [struct.pack(">I", len(frame)) + frame for frame in frames]
    seeds = (b"p" + framed[0], *(b"a" + each for each in framed), b"a\xff\xff\xff\xff")
    return Target(read, (MessageError, process._WrongFrameError), seeds)


def secret_state() -> Target:
    """A data owner's own secrets, of a file; with a checksum that fits."""
    states = {kind: _owner(kind).secret_state() for kind in _KINDS}

    def read(content: bytes) -> None:
        kind, anew, edits = _chosen(content)
        state = edited(states[kind], edits)
        if anew:
            state = state[:-32] + hashlib.sha256(state[:-32]).digest()
        DataOwner.from_secret_state(compiled(kind).plan, state)

    return Target(read, (SecretsError,), _SEEDS)


def model_file() -> Target:
    """A compiled model's file, as it was made or with a digest that fits."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    good, changed = folder / "good", folder / "changed"
    files: list[tuple[bytes, ArrayFile]] = []
    for kind in ("coefficients", "slots", "batch"):
        compiled(kind).save(good)
        files.append((good.read_bytes(), ArrayFile.load(good)))

    def read(content: bytes) -> None:
        first = content[0] if content else 0
        whole, file = files[first % len(files)]
        if first < 128:
            changed.write_bytes(edited(whole, content[1:]))
        else:
            _with_text(file, content[1:]).save(changed)
        loaded = PackedModel.load(changed)
        _ = loaded.encoded

    seeds = [bytes([first]) + edits for first in range(3) for edits in EDITS]
    for number, (_, file) in enumerate(files):
        state = json.loads(file.text)
        parts = (file.text, json.dumps({**state, "program": {}}), json.dumps({"plan": "{}"}))
        seeds += [bytes([129 + number - 129 % 3]) + part.encode() for part in parts]
    return Target(read, (ModelFileError,), tuple(seeds))


def _with_text(file: ArrayFile, content: bytes) -> ArrayFile:
    """Arrays of a good file with another text; after a zero byte follow the array to change.

    It is cast, or cut, as the byte after that says.
    """
    text, _, change = content.partition(b"\0")
    arrays = dict(file.arrays)
    if len(change) >= 2 and arrays:
        name = sorted(arrays)[change[0] % len(arrays)]
        arrays[name] = _changed(arrays[name], change[1])
    return ArrayFile(file.format, text.decode(errors="replace"), arrays)


def _changed(array: NDArray[Any], how: int) -> NDArray[Any]:
    """An array of another type, length, value or shape."""
    kinds = ("int32", "int64", "float32", "float64", "uint8", "bool")
    with np.errstate(all="ignore"):
        if how % 4 == 0:
            return array.astype(kinds[how // 4 % len(kinds)])
        if how % 4 == 1:
            return array[: len(array) // 2] if array.ndim else array
        return np.asarray(array * 2 if how % 4 == 2 else array.ravel())
