"""The one door to SEAL: parameters, residues in and out, encoding.

SEAL's objects travel through its documented stream format only, and a stream that SEAL loads is
always written here, around residues that were checked against their primes: no byte of a
stranger's message reaches SEAL's own parser (version 4.3.3, before the hardening of 4.4).
"""

import os
import struct
import tempfile
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
from numpy.typing import NDArray
from tenseal import sealapi

seal = sealapi
Residues = NDArray[np.uint64]
SEED_BYTES = 64
CONJUGATE = 0
"""Stands for complex conjugation among rotation steps, where 0 has no other use."""

MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Bits of the whole modulus at 128-bit security, by ring degree.

Homomorphic Encryption Standard (2018), table 1: ternary secret, classical attacks.
"""

_HEADER = struct.Struct("<2sBBBBHQ")
_MAGIC = b"\x5e\xa1"
_CIPHERTEXT = struct.Struct("<BQQQdQ")
_ZSTD = 2
_IN_MEMORY = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()
Buffer = bytes | memoryview


def _write_header(content: int) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, 4, 3, 0, 0, _HEADER.size + content)


def _wrap(content: bytes) -> bytes:
    return _write_header(len(content)) + content


class _Scratch:
    """A file that lives in memory where the system allows it, and that only we can read."""

    def __enter__(self) -> "_Scratch":
        if _IN_MEMORY:
            self._descriptor = os.memfd_create("residues")
            self.path = f"/proc/self/fd/{self._descriptor}"
            self._unlink = False
        else:
            self._descriptor, self.path = tempfile.mkstemp()
            self._unlink = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._unlink:
            os.ftruncate(self._descriptor, 0)
            Path(self.path).unlink()
        os.close(self._descriptor)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def read(self) -> bytes:
        size = os.fstat(self._descriptor).st_size
        return os.pread(self._descriptor, size, 0)


class _Kept:
    """A file in memory that a thread keeps, so that its pages need not be made anew.

    For ciphertexts only: what is written stays there until the next one.
    """

    def __init__(self) -> None:
        self.process = os.getpid()
        self.descriptor = os.memfd_create("ciphertext")
        self._size = 0

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)

    @classmethod
    def of_this_thread(cls) -> "_Kept":
        kept = getattr(_threads, "kept", None)
        # A forked child would write into its parent's.
        if not isinstance(kept, cls) or kept.process != os.getpid():
            kept = _threads.kept = cls()
        return kept

    def write(self, parts: Sequence[Buffer]) -> str:
        """Write, and say under which path it is found."""
        size = sum(memoryview(part).nbytes for part in parts)
        if size != self._size:
            os.ftruncate(self.descriptor, size)
            self._size = size
        if os.pwritev(self.descriptor, parts, 0) != size:
            raise OSError(f"memory for {size} bytes of a ciphertext could not be written")
        return f"/proc/self/fd/{self.descriptor}"


_threads = threading.local()


def _save(thing: Any) -> bytes:
    """SEAL's stream of one of *our own* objects, without header and compression."""
    with _Scratch() as scratch:
        thing.save(scratch.path)
        stream = scratch.read()
    magic, _, major, _, compression, _, size = _HEADER.unpack_from(stream)
    if magic != _MAGIC or major != 4 or size != len(stream):
        raise RuntimeError("SEAL wrote a stream of another format; install TenSEAL 0.3")
    content = stream[_HEADER.size :]
    if compression == _ZSTD:
        content = _decompress(content)
    return content


def _decompress(content: bytes) -> bytes:
    # Residues hardly compress; reading into a buffer that is large enough is three times quicker
    # than letting it grow.
    buffer = memoryview(bytearray(2 * len(content) + 1024))
    filled = 0
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as plain:
        while filled < len(buffer) and (count := plain.readinto(buffer[filled:])):
            filled += count
        return bytes(buffer[:filled]) + bytes(plain.read())


class Ring:
    """SEAL's context for one set of parameters, with the small vocabulary this package needs.

    Parameters
    ----------
    degree : int
        N, the ring degree; a ciphertext has N/2 slots.
    prime_bits : sequence of int
        Bits of each prime, in SEAL's order: the prime that is left at the end comes first, and
        the special prime of key switching, if there is more than one, last.

    Raises
    ------
    ValueError
        If the parameters do not hold 128 bits of security or SEAL refuses them.
    """

    def __init__(self, degree: int, prime_bits: Sequence[int]) -> None:
        if degree not in MAX_MODULUS_BITS:
            raise ValueError(f"degree is {degree}; choose one of {sorted(MAX_MODULUS_BITS)}")
        allowed = MAX_MODULUS_BITS[degree]
        if sum(prime_bits) > allowed:
            raise ValueError(
                f"prime_bits sum to {sum(prime_bits)}, but a ring of degree {degree} holds 128 "
                f"bits of security up to {allowed}; use fewer bits or a larger degree"
            )
        self._prepare(degree, seal.CoeffModulus.Create(degree, list(prime_bits)))

    def _prepare(self, degree: int, modulus: Sequence[Any]) -> None:
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus(list(modulus))
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            bits = [prime.bit_count() for prime in modulus]
            raise ValueError(
                f"SEAL refuses degree {degree} with primes of {bits} bits: "
                f"{self.context.parameters_error_message()}"
            )
        self.degree = degree
        self.slots = degree // 2
        self.primes: tuple[int, ...] = tuple(m.value() for m in parameters.coeff_modulus())
        self.levels = max(1, len(self.primes) - 1)
        self.key_id = self.context.key_parms_id()
        self._ids: dict[int, Any] = {}
        data = self.context.first_context_data()
        for level in range(self.levels, 0, -1):
            self._ids[level] = data.parms_id()
            data = data.next_context_data()
        self.evaluator = seal.Evaluator(self.context)
        self.encoder = seal.CKKSEncoder(self.context)

    @cached_property
    def last(self) -> "Ring":
        """The ring with the first prime alone, in which ciphertexts at level 1 lie too."""
        if len(self.primes) == 1:
            return self
        ring = Ring.__new__(Ring)
        ring._prepare(self.degree, [seal.Modulus(self.primes[0])])
        return ring

    @cached_property
    def eighth_root(self) -> int:
        """An element of order eight modulo the first prime."""
        prime = self.primes[0]
        powers = (pow(base, (prime - 1) // 8, prime) for base in range(2, prime))
        return next(root for root in powers if pow(root, 4, prime) == prime - 1)

    def parms_id(self, level: int) -> Any:
        """SEAL's name for the ring with ``level`` data primes left."""
        return self._ids[level]

    @cached_property
    def roots(self) -> NDArray[np.complex128]:
        """ζ^(3^j) for slot j: where the slots evaluate a plaintext polynomial, (N/2,)."""
        return np.asarray(np.exp(1j * np.pi * self._slot_powers / self.degree))

    @cached_property
    def _slot_powers(self) -> NDArray[np.int64]:
        powers = np.empty(self.slots, dtype=np.int64)
        power = 1
        for slot in range(self.slots):
            powers[slot] = power
            power = power * 3 % (2 * self.degree)
        return powers

    def galois_element(self, step: int) -> int:
        """The Galois element that rotates the slots left by ``step``, or conjugates them."""
        if step == CONJUGATE:
            return 2 * self.degree - 1
        return pow(3, step % self.slots, 2 * self.degree)

    def encode(self, slots: NDArray[Any], scale: float, level: int) -> Any:
        """A plaintext with these slot values, shape (N/2,), real or complex."""
        plain = seal.Plaintext()
        self.encoder.encode(slots.tolist(), self.parms_id(level), scale, plain)
        return plain

    def encode_constant(self, value: float, scale: float, level: int) -> Any:
        """A plaintext with ``value`` in every slot."""
        plain = seal.Plaintext()
        self.encoder.encode(value, self.parms_id(level), scale, plain)
        return plain

    def encode_coefficients(self, values: NDArray[np.float64], scale: float, level: int) -> Any:
        """A plaintext polynomial with these real coefficients, shape (N,)."""
        twisted = values * np.exp(1j * np.pi * np.arange(self.degree) / self.degree)
        # The polynomial at every odd power of ζ; the slots are those at powers of three.
        points = np.fft.ifft(twisted) * self.degree
        return self.encode(points[(self._slot_powers - 1) // 2], scale, level)

    def coefficients(self, slots: NDArray[np.complex128]) -> NDArray[np.float64]:
        """The real polynomial with these slot values, shape (N,)."""
        points = np.empty(self.degree, dtype=np.complex128)
        places = (self._slot_powers - 1) // 2
        points[places] = slots
        points[self.degree - 1 - places] = slots.conj()
        twisted = np.fft.fft(points) / self.degree
        turned = twisted * np.exp(-1j * np.pi * np.arange(self.degree) / self.degree)
        return np.asarray(turned.real, dtype=np.float64)

    # --- residues out of our own objects ---------------------------------------------------

    def ciphertext_residues(self, ciphertext: Any) -> Residues:
        """The polynomials of a ciphertext, shape (size, level, N)."""
        content = _save(ciphertext)
        _, size, degree, level, _, _ = _CIPHERTEXT.unpack_from(content, 32)
        start = 32 + _CIPHERTEXT.size + _HEADER.size + 8
        data = np.frombuffer(content, dtype="<u8", offset=start, count=size * degree * level)
        return data.reshape(size, level, degree)

    def seeded_residues(self, serializable: Any) -> tuple[Residues, bytes]:
        """First polynomial (level, N) and the seed of the second, of a seeded ciphertext."""
        return self._split_seeded(_save(serializable), 0)[:2]

    def _split_seeded(self, content: bytes, offset: int) -> tuple[Residues, bytes, int]:
        _, _, degree, level, _, _ = _CIPHERTEXT.unpack_from(content, offset + 32)
        start = offset + 32 + _CIPHERTEXT.size + _HEADER.size
        (count,) = struct.unpack_from("<Q", content, start)
        if count != degree * level:
            raise RuntimeError("SEAL wrote a ciphertext without a seed where one was asked for")
        data = np.frombuffer(content, dtype="<u8", offset=start + 8, count=count)
        seed_at = start + 8 + 8 * count + _HEADER.size + 1
        seed = content[seed_at : seed_at + SEED_BYTES]
        return data.reshape(level, degree), seed, seed_at + SEED_BYTES

    def switching_key_residues(self, serializable: Any) -> list[tuple[Residues, bytes]]:
        """The parts of the only key in seeded relinearisation or Galois keys."""
        content = _save(serializable)
        (rows,) = struct.unpack_from("<Q", content, 32)
        offset, parts = 40, []
        for _ in range(rows):
            (count,) = struct.unpack_from("<Q", content, offset)
            offset += 8
            for _ in range(count):
                residues, seed, offset = self._split_seeded(content, offset + _HEADER.size)
                parts.append((residues, seed))
        return parts

    def secret_residues(self, secret_key: Any) -> Residues:
        """The secret key modulo every prime, in the number-theoretic domain, (primes, N)."""
        content = _save(secret_key)
        start = 32 + 8 + 8 + _HEADER.size + 8
        data = np.frombuffer(content, dtype="<u8", offset=start)
        return data.reshape(len(self.primes), self.degree)

    # --- our own streams for SEAL to load --------------------------------------------------

    def _ciphertext_stream(
        self,
        parms_id: Any,
        residues: Residues,
        *,
        size: int,
        scale: float,
        seed: bytes | None,
        transformed: bool = True,
    ) -> list[Buffer]:
        """The stream of a ciphertext, in parts."""
        level, degree = residues.shape[-2:]
        data = np.ascontiguousarray(residues, dtype="<u8").reshape(-1)
        content = struct.pack("<4Q", *parms_id)
        content += _CIPHERTEXT.pack(transformed, size, degree, level, scale, 1)
        content += _write_header(8 + data.nbytes) + struct.pack("<Q", data.size)
        tail = b"" if seed is None else _wrap(b"\x01" + seed)
        return [_write_header(len(content) + data.nbytes + len(tail)), content, data.data, tail]

    def _load(self, thing: Any, stream: bytes) -> Any:
        with _Scratch() as scratch:
            scratch.write(stream)
            thing.load(self.context, scratch.path)
        return thing

    def ciphertext(self, residues: Residues, scale: float, *, transformed: bool = True) -> Any:
        """The ciphertext of the residues of its polynomials, shape (size, level, N)."""
        parts = self._ciphertext_stream(
            self.parms_id(residues.shape[1]),
            residues,
            size=residues.shape[0],
            scale=scale,
            seed=None,
            transformed=transformed,
        )
        ciphertext = seal.Ciphertext()
        if _IN_MEMORY:
            ciphertext.load(self.context, _Kept.of_this_thread().write(parts))
            return ciphertext
        return self._load(ciphertext, b"".join(parts))

    def public_key(self, residues: Residues, seed: bytes) -> Any:
        """The public key of a first polynomial (primes, N) and the seed of the second."""
        parts = self._ciphertext_stream(self.key_id, residues, size=2, scale=1.0, seed=seed)
        return self._load(seal.PublicKey(), b"".join(parts))

    def last_public_key(self, public: Any) -> Any:
        """A public key of this ring as one of :attr:`last`: the same, modulo its first prime."""
        content = _save(public)
        start = 32 + _CIPHERTEXT.size + _HEADER.size + 8
        whole = np.frombuffer(content, dtype="<u8", offset=start).reshape(2, -1, self.degree)
        parts = self._ciphertext_stream(
            self.last.key_id, whole[:, :1], size=2, scale=1.0, seed=None
        )
        return self.last._load(seal.PublicKey(), b"".join(parts))

    def _switching_key(self, parts: Sequence[tuple[Residues, bytes]]) -> bytes:
        count = struct.pack("<Q", len(parts))
        return count + b"".join(
            part
            for residues, seed in parts
            for part in self._ciphertext_stream(self.key_id, residues, size=2, scale=1.0, seed=seed)
        )

    def relin_keys(self, parts: Sequence[tuple[Residues, bytes]]) -> Any:
        """Relinearisation keys of their parts, one a data prime."""
        content = struct.pack("<4QQ", *self.key_id, 1) + self._switching_key(parts)
        return self._load(seal.RelinKeys(), _wrap(content))

    def galois_keys(self, keys: dict[int, Sequence[tuple[Residues, bytes]]]) -> Any:
        """Galois keys of their parts, by Galois element."""
        rows = [struct.pack("<Q", 0)] * self.degree
        for element, parts in keys.items():
            rows[(element - 1) // 2] = self._switching_key(parts)
        content = struct.pack("<4QQ", *self.key_id, self.degree) + b"".join(rows)
        return self._load(seal.GaloisKeys(), _wrap(content))

    def secret_key(self, residues: Residues) -> Any:
        """The secret key of its residues modulo every prime, (primes, N)."""
        data = np.ascontiguousarray(residues, dtype="<u8").tobytes()
        content = struct.pack("<4QQd", *self.key_id, len(data) // 8, 1.0)
        content += _wrap(struct.pack("<Q", len(data) // 8) + data)
        return self._load(seal.SecretKey(), _wrap(content))
