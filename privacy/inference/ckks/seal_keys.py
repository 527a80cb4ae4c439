"""The data owner's keys in SEAL, through TenSEAL: made, read out, and used to decrypt.

The only module that loads TenSEAL. Residues come out of SEAL's documented stream format, and go in
by it: version 4.3.3, before the hardening of 4.4. Only the data owner's own bytes are loaded: its
key, and answers whose residues were checked against their primes.
"""

import os
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray
from tenseal import sealapi as seal

from privacy.inference.ckks.ciphertexts import Residues

_HEADER = struct.Struct("<2sBBBBHQ")
_MAGIC = b"\x5e\xa1"
_IDENTITY = struct.Struct("<4Q")
_CIPHERTEXT = struct.Struct("<BQQQdQ")
_COUNT = struct.Struct("<Q")
_ZSTD = 2
_IN_MEMORY = hasattr(os, "memfd_create") and Path("/proc/self/fd").is_dir()


class SealKeys:
    """A secret key of a ring, in SEAL.

    Parameters
    ----------
    degree : int
    primes : sequence of int
    residues : ndarray, optional
        The key, as :meth:`secret` gives it; a fresh one without.

    Raises
    ------
    ValueError
        If SEAL refuses the parameters, as it does where they do not hold 128 bits of security.
    """

    def __init__(
        self, degree: int, primes: Sequence[int], residues: Residues | None = None
    ) -> None:
        self._shape = (len(primes), degree)
        parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
        parameters.set_poly_modulus_degree(degree)
        parameters.set_coeff_modulus([seal.Modulus(prime) for prime in primes])
        self.context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
        if not self.context.parameters_set():
            raise ValueError(
                f"SEAL refuses degree {degree} with the primes {list(primes)}: "
                f"{self.context.parameters_error_message()}"
            )
        self._key_id = self.context.key_parms_id()
        if residues is None:
            self.generator = seal.KeyGenerator(self.context)
        else:
            self.generator = seal.KeyGenerator(self.context, self._load_secret(residues))
        self.key = self.generator.secret_key()
        self._decryptor = seal.Decryptor(self.context, self.key)
        self._encoder = seal.CKKSEncoder(self.context)

    def identity(self, level: int) -> Any:
        """What SEAL calls the parameters of ciphertexts with so many primes left."""
        data = self.context.first_context_data()
        while data.chain_index() >= level:
            data = data.next_context_data()
        return data.parms_id()

    def secret(self) -> Residues:
        """The key modulo every prime, in the number-theoretic domain, (primes, N)."""
        start = _IDENTITY.size + 2 * _COUNT.size + _HEADER.size + _COUNT.size
        return np.frombuffer(save(self.key), dtype="<u8", offset=start).reshape(self._shape)

    def zero(self) -> Residues:
        """An encryption of zero modulo every prime, (2, primes, N)."""
        zero = seal.Ciphertext()
        seal.Encryptor(self.context, self.key).encrypt_zero_symmetric(self._key_id, zero)
        return ciphertext_residues(zero)

    def relinearisation(self) -> Residues:
        """A relinearisation key, (parts, 2, primes, N)."""
        keys = seal.RelinKeys()
        self.generator.create_relin_keys(keys)
        return switching_key_residues(keys)

    def rotation(self, element: int) -> Residues:
        """A key for one Galois element, (parts, 2, primes, N)."""
        keys = seal.GaloisKeys()
        self.generator.create_galois_keys([element], keys)
        return switching_key_residues(keys)

    def load(self, residues: Residues, scale: float) -> Any:
        """SEAL's ciphertext of polynomials (size, level, N)."""
        size, level, degree = residues.shape
        data = np.ascontiguousarray(residues, dtype="<u8").tobytes()
        content = _IDENTITY.pack(*self.identity(level))
        content += _CIPHERTEXT.pack(True, size, degree, level, scale, 1)
        content += _wrapped(_COUNT.pack(residues.size) + data)
        return _load(seal.Ciphertext(), self.context, content)

    def decrypted(self, residues: Residues, scale: float) -> NDArray[np.complex128]:
        """The slots of a ciphertext of these polynomials (size, level, N), shape (N/2,)."""
        plain = seal.Plaintext()
        self._decryptor.decrypt(self.load(residues, scale), plain)
        return np.array(self._encoder.decode_complex(plain))

    def _load_secret(self, residues: Residues) -> Any:
        data = np.ascontiguousarray(residues, dtype="<u8").tobytes()
        count = len(data) // 8
        content = _IDENTITY.pack(*self._key_id) + struct.pack("<Qd", count, 1.0)
        content += _wrapped(_COUNT.pack(count) + data)
        return _load(seal.SecretKey(), self.context, content)


# --- SEAL's streams -------------------------------------------------------------------------


class _Scratch:
    """A file that lives in memory where the system allows it, and that only we can read."""

    def __enter__(self) -> "_Scratch":
        if _IN_MEMORY:
            self._descriptor = os.memfd_create("residues")
            self.path = f"/proc/self/fd/{self._descriptor}"
        else:
            self._descriptor, self.path = tempfile.mkstemp()
        return self

    def __exit__(self, *_: object) -> None:
        if not _IN_MEMORY:
            os.ftruncate(self._descriptor, 0)
            Path(self.path).unlink()
        os.close(self._descriptor)

    def write(self, content: bytes) -> None:
        view = memoryview(content)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def read(self) -> bytes:
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)


def _wrapped(content: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _HEADER.size, 4, 3, 0, 0, _HEADER.size + len(content)) + content


def _load(thing: Any, context: Any, content: bytes) -> Any:
    with _Scratch() as scratch:
        scratch.write(_wrapped(content))
        thing.load(context, scratch.path)
    return thing


def save(thing: Any) -> bytes:
    """The stream of one of SEAL's objects, without header and compression."""
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
    with zstandard.ZstdDecompressor().stream_reader(content) as plain:
        while filled < len(buffer) and (count := plain.readinto(buffer[filled:])):
            filled += count
        return bytes(buffer[:filled]) + bytes(plain.read())


def ciphertext_residues(ciphertext: Any) -> Residues:
    """The polynomials of a ciphertext, shape (size, level, N)."""
    return _polynomials(save(ciphertext), 0)[0]


def _polynomials(content: bytes, offset: int) -> tuple[Residues, int]:
    """A ciphertext's polynomials in a stream, and where it ends."""
    _, size, degree, level, _, _ = _CIPHERTEXT.unpack_from(content, offset + _IDENTITY.size)
    start = offset + _IDENTITY.size + _CIPHERTEXT.size + _HEADER.size + _COUNT.size
    count = size * degree * level
    data = np.frombuffer(content, dtype="<u8", offset=start, count=count)
    return data.reshape(size, level, degree), start + data.nbytes


def switching_key_residues(keys: Any) -> Residues:
    """The only key in relinearisation or Galois keys, (parts, 2, primes, N)."""
    content = save(keys)
    (rows,) = _COUNT.unpack_from(content, _IDENTITY.size)
    offset, parts = _IDENTITY.size + _COUNT.size, []
    for _ in range(rows):
        (count,) = _COUNT.unpack_from(content, offset)
        offset += _COUNT.size
        for _ in range(count):
            residues, offset = _polynomials(content, offset + _HEADER.size)
            parts.append(residues)
    return np.stack(parts)
