"""Where randomness comes from: the operating system, or a seed in tests."""

import hashlib
import math
import os
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from privacy.arguments import exact_bytes, number, whole

# Bytes from which the cipher is faster than the operating system (measured).
_STRETCHED = 2048

_ZEROS = bytes(1 << 16)  # what the cipher turns into its stream, so many at a time


def _check_bytes(out: NDArray[np.uint8]) -> None:
    if out.dtype != np.uint8 or out.ndim != 1 or not out.flags.c_contiguous:
        raise ValueError(f"out is {out.dtype} {out.shape}; it must be contiguous uint8, one row")


class KeyStream:
    """Bytes that a key determines: AES-256 in counter mode, from zero (NIST SP 800-38A, 6.5).

    To whoever lacks the key they are as random ones, as :class:`SystemRandomness` says. The same
    key gives the same bytes, so that each serves one purpose, once.

    Parameters
    ----------
    key : bytes
        32 of them.

    Notes
    -----
    A stream is for one thread at a time: where a second one draws meanwhile, it raises.
    """

    def __init__(self, key: bytes) -> None:
        counter = Cipher(algorithms.AES(exact_bytes("key", key, 32)), modes.CTR(bytes(16)))
        self._encryptor = counter.encryptor()

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        return self._encryptor.update(bytes(count))

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Write the next bytes, as many as ``out`` has, without memory of their own."""
        _check_bytes(out)
        for start in range(0, len(out), len(_ZEROS)):
            part = out[start : start + len(_ZEROS)]
            self._encryptor.update_into(memoryview(_ZEROS)[: len(part)], part.data)


class Randomness(ABC):
    """A source of independent, uniformly distributed bits, and exact draws made from them."""

    private: ClassVar[bool]
    """Whether noise and cohorts from this source may be relied on for privacy."""

    @abstractmethod
    def bytes(self, count: int) -> bytes:
        """``count`` fresh random bytes."""

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Write to ``out``, contiguous uint8 of shape ``(n,)``, what ``bytes(n)`` would be."""
        _check_bytes(out)
        out[:] = np.frombuffer(self.bytes(len(out)), dtype=np.uint8)

    def uint64(self, size: int) -> NDArray[np.uint64]:
        """Uniform 64-bit integers, shape ``(size,)``."""
        return np.frombuffer(self.bytes(8 * size), dtype=np.uint64)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Multiples of 2⁻⁵³ in [0, 1), uniform, shape ``(size,)``."""
        return (self.uint64(size) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def bernoulli(self, rate: float, size: int) -> NDArray[np.bool_]:
        """Independent bits, each True with exactly the probability that the double ``rate`` is.

        Parameters
        ----------
        rate : float
            In [0, 1].
        size : int
            How many.

        Returns
        -------
        array of bool, shape ``(size,)``

        Raises
        ------
        ValueError
            If ``rate`` is not in [0, 1].
        """
        rate = number("rate", rate, least=0, most=1)
        if rate == 1:
            return np.ones(size, dtype=np.bool_)
        # A uniform real lies below the rate if its first 64 bits do; if they are equal to the
        # rate's own, what follows decides. Scaling a double by 2⁶⁴ is exact.
        rest, whole = math.modf(math.ldexp(rate, 64))
        draws = self.uint64(size)
        below: NDArray[np.bool_] = draws < np.uint64(int(whole))
        for index in np.flatnonzero(draws == np.uint64(int(whole))):
            below[index] = self.bernoulli(rest, 1)[0]
        return below


class SystemRandomness(Randomness):
    """The operating system's cryptographically secure generator, stretched for large draws.

    Notes
    -----
    **Guarantee.** Every draw is fresh. Small ones are the operating system's bytes. A larger one is
    the key stream of AES-256 in counter mode (NIST SP 800-38A, section 6.5) under a key that the
    operating system draws for it alone and that is forgotten with it. No state is kept: nothing
    repeats in a forked process, and no draw tells of another.

    **Assumptions.** The operating system's generator is seeded and secure, and AES-256 is a
    pseudorandom permutation: nobody tells b blocks of a draw from uniform ones with an advantage
    of more than b²/2¹²⁹ beyond that. Privacy from such noise is computational, as it is with the
    operating system's own generator, itself a stream cipher.

    **Not covered.** An adversary who reads this process's memory.
    """

    private = True

    def bytes(self, count: int) -> bytes:
        """``count`` fresh random bytes."""
        if count < _STRETCHED:
            return os.urandom(count)
        return KeyStream(os.urandom(32)).bytes(count)

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Write as many fresh random bytes as ``out`` has."""
        if len(out) < _STRETCHED:
            super().fill(out)
        else:
            KeyStream(os.urandom(32)).fill(out)


class KeyedRandomness(Randomness):
    """The stream of one key, of :class:`KeyStream`: the same draws whenever they are made again.

    As private as its key: drawn by the operating system, known to nobody, and used for one purpose.

    Parameters
    ----------
    key : bytes
        32 of them.
    """

    private = True

    def __init__(self, key: bytes) -> None:
        self._stream = KeyStream(key)

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes of the stream."""
        return self._stream.bytes(count)

    def fill(self, out: NDArray[np.uint8]) -> None:
        """Write the next bytes of the stream, as many as ``out`` has."""
        self._stream.fill(out)


class SeededRandomness(Randomness):
    """A stream that a seed determines: for tests only, never private.

    Parameters
    ----------
    seed : int
        At least 0. The same seed and the same calls give the same draws.

    Raises
    ------
    ValueError
        If the seed is negative.
    """

    private = False

    def __init__(self, seed: int) -> None:
        self._seed = str(whole("seed", seed, least=0))
        self._calls = 0

    def bytes(self, count: int) -> bytes:
        """``count`` bytes of SHAKE-256 of the seed and the number of this call."""
        self._calls += 1
        return hashlib.shake_256(f"{self._seed}/{self._calls}".encode()).digest(count)
