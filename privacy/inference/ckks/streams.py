"""SEAL's documented stream format, through which its objects come and go.

A stream that SEAL loads is always written here, around residues that were checked against their
primes: no byte of a stranger's message reaches SEAL's own parser (version 4.3.3, before the
hardening of 4.4).
"""

import os
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray

Residues = NDArray[np.uint64]
SEED_BYTES = 64
Parts = Sequence[tuple[Residues, bytes]]
"""Of a switching key: one ciphertext a data prime, its second polynomial as a seed."""

_HEADER = struct.Struct("<2sBBBBHQ")
_MAGIC = b"\x5e\xa1"
_IDENTITY = struct.Struct("<4Q")
_CIPHERTEXT = struct.Struct("<BQQQdQ")
_COUNT = struct.Struct("<Q")
_ZSTD = 2
IN_MEMORY = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
_Buffer = bytes | memoryview


class _Scratch:
    """A file that lives in memory where the system allows it, and that only we can read."""

    def __enter__(self) -> "_Scratch":
        if IN_MEMORY:
            self._descriptor = os.memfd_create("residues")
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._descriptor, self.path = tempfile.mkstemp()
        return self

    def __exit__(self, *_: object) -> None:
        if not IN_MEMORY:
            os.ftruncate(self._descriptor, 0)
            Path(self.path).unlink()
        os.close(self._descriptor)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def read(self) -> bytes:
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)


class ThreadFile:
    """A thread's own file in memory, whose pages are used again for the next ciphertext.

    For ciphertexts only: their bytes stay there until the next one.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.descriptor = os.memfd_create("ciphertext")
        self._size = 0

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)

    @classmethod
    def of_this_thread(cls) -> "ThreadFile":
        """The file of this thread; a forked child has its own, not its parent's."""
        file = getattr(_threads, "file", None)
        if not isinstance(file, cls) or file.process != os.getpid():
            file = _threads.file = cls()
        return file

    def write(self, parts: Sequence[_Buffer]) -> str:
        """Write the parts; the file's path."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size != self._size:
            os.ftruncate(self.descriptor, size)
            self._size = size
        if os.pwritev(self.descriptor, parts, 0) != size:
            raise OSError(f"memory for {size} bytes of a ciphertext could not be written")
        return f"/proc/self/fd/{self.descriptor}"


_threads = threading.local()


def _header(content: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, 4, 3, 0, 0, _HEADER.size + content)


def _wrapped(content: bytes) -> bytes:
    return _header(len(content)) + content


def save(thing: Any) -> bytes:
    """The stream of one of our own objects, without header and compression."""
    with _Scratch() as scratch:
        thing.save(scratch.path)
        stream = scratch.read()
    magic, _, major, _, compression, _, size = _HEADER.unpack_from(stream)
    if magic != _MAGIC or major != 4 or size != len(stream):
        raise RuntimeError("SEAL wrote a stream of another format; install TenSEAL 0.3")
    content = stream[_HEADER.size :]
    return _decompressed(content) if compression == _ZSTD else content


def _decompressed(content: bytes) -> bytes:
    # Residues hardly compress; reading into a buffer that is large enough is three times quicker
    # than letting it grow.
    buffer = memoryview(bytearray(2 * len(content) + 1024))
    filled = 0
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as plain:
        while filled < len(buffer) and (count := plain.readinto(buffer[filled:])):
            filled += count
        return bytes(buffer[:filled]) + bytes(plain.read())


def _load(thing: Any, context: Any, stream: bytes) -> Any:
    with _Scratch() as scratch:
        scratch.write(stream)
        thing.load(context, scratch.path)
    return thing


# --- residues out of saved objects ---------------------------------------------------------


def ciphertext_residues(ciphertext: Any) -> Residues:
    """The polynomials of a ciphertext or public key, shape (size, level, N)."""
    content = save(ciphertext)
    _, size, degree, level, _, _ = _CIPHERTEXT.unpack_from(content, _IDENTITY.size)
    start = _IDENTITY.size + _CIPHERTEXT.size + _HEADER.size + _COUNT.size
    data = np.frombuffer(content, dtype="<u8", offset=start, count=size * degree * level)
    return data.reshape(size, level, degree)


def seeded_residues(content: bytes, offset: int = 0) -> tuple[Residues, bytes, int]:
    """First polynomial (level, N), seed of the second, and where a seeded ciphertext ends."""
    _, _, degree, level, _, _ = _CIPHERTEXT.unpack_from(content, offset + _IDENTITY.size)
    start = offset + _IDENTITY.size + _CIPHERTEXT.size + _HEADER.size
    (count,) = _COUNT.unpack_from(content, start)
    if count != degree * level:
        raise RuntimeError("SEAL wrote a ciphertext without a seed where one was asked for")
    data = np.frombuffer(content, dtype="<u8", offset=start + _COUNT.size, count=count)
    seed_at = start + _COUNT.size + 8 * count + _HEADER.size + 1
    end = seed_at + SEED_BYTES
    return data.reshape(level, degree), content[seed_at:end], end


def switching_key_parts(serializable: Any) -> Parts:
    """The parts of the only key in seeded relinearisation or Galois keys."""
    content = save(serializable)
    (rows,) = _COUNT.unpack_from(content, _IDENTITY.size)
    offset, parts = _IDENTITY.size + _COUNT.size, []
    for _ in range(rows):
        (count,) = _COUNT.unpack_from(content, offset)
        offset += _COUNT.size
        for _ in range(count):
            residues, seed, offset = seeded_residues(content, offset + _HEADER.size)
            parts.append((residues, seed))
    return parts


def secret_residues(secret_key: Any, shape: tuple[int, int]) -> Residues:
    """The secret key modulo every prime, in the number-theoretic domain, (primes, N)."""
    start = _IDENTITY.size + 2 * _COUNT.size + _HEADER.size + _COUNT.size
    return np.frombuffer(save(secret_key), dtype="<u8", offset=start).reshape(shape)


# --- our own streams for SEAL to load ------------------------------------------------------


def _ciphertext(
    identity: Any, residues: Residues, *, size: int, scale: float = 1.0, seed: bytes | None = None
) -> list[_Buffer]:
    level, degree = residues.shape[-2:]
    data = np.ascontiguousarray(residues, dtype="<u8").reshape(-1)
    content = _IDENTITY.pack(*identity) + _CIPHERTEXT.pack(True, size, degree, level, scale, 1)
    content += _header(_COUNT.size + data.nbytes) + _COUNT.pack(data.size)
    tail = b"" if seed is None else _wrapped(b"\x01" + seed)
    return [_header(len(content) + data.nbytes + len(tail)), content, data.data, tail]


def load_ciphertext(
    empty: Any, context: Any, identity: Any, residues: Residues, scale: float
) -> Any:
    """``empty`` with these polynomials, shape (size, level, N)."""
    parts = _ciphertext(identity, residues, size=len(residues), scale=scale)
    if not IN_MEMORY:
        return _load(empty, context, b"".join(parts))
    empty.load(context, ThreadFile.of_this_thread().write(parts))
    return empty


def load_public_key(
    empty: Any, context: Any, identity: Any, residues: Residues, seed: bytes | None
) -> Any:
    """``empty`` with a first polynomial (primes, N) and a seed, or with both, (2, primes, N)."""
    return _load(empty, context, b"".join(_ciphertext(identity, residues, size=2, seed=seed)))


def _switching_key(identity: Any, parts: Parts) -> bytes:
    streams = (_ciphertext(identity, residues, size=2, seed=seed) for residues, seed in parts)
    return _COUNT.pack(len(parts)) + b"".join(b"".join(stream) for stream in streams)


def load_switching_keys(
    empty: Any, context: Any, identity: Any, keys: dict[int, Parts], rows: int
) -> Any:
    """``empty`` with ``rows`` places, of which those that ``keys`` names hold a key's parts."""
    content = _IDENTITY.pack(*identity) + _COUNT.pack(rows)
    content += b"".join(
        _switching_key(identity, keys[row]) if row in keys else _COUNT.pack(0)
        for row in range(rows)
    )
    return _load(empty, context, _wrapped(content))


def load_secret_key(empty: Any, context: Any, identity: Any, residues: Residues) -> Any:
    """``empty`` with the secret key of its residues modulo every prime, (primes, N)."""
    data = np.ascontiguousarray(residues, dtype="<u8").tobytes()
    count = len(data) // 8
    content = _IDENTITY.pack(*identity) + struct.pack("<Qd", count, 1.0)
    return _load(empty, context, _wrapped(content + _wrapped(_COUNT.pack(count) + data)))
