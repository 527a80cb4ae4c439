"""Mask streams: AES-128 in counter mode, added to or taken from ring elements in place."""

from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

MASK_KEY_BYTES = 16
_CHUNK = 1 << 18  # bytes; the stream, its source and the target stay in the second-level cache
_ZEROS = bytes(_CHUNK)

Elements = npt.NDArray[Any]


def add_mask(target: Elements, key: bytes, *, subtract: bool = False) -> None:
    """Add the stream of a key to ring elements, in place.

    The stream is AES-128-CTR (NIST SP 800-38A), as in Bonawitz et al. (CCS 2017), section 7. It
    runs from counter zero: a key serves one vector only. It is read as little-endian words of
    the target's width. Sums wrap around modulo the width, which any smaller power of two
    divides, so that reducing them later is exact.

    Parameters
    ----------
    target : ndarray of uint32 or uint64, shape (size,)
    key : bytes
        16 bytes.
    subtract : bool
        Take the stream away instead.
    """
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    step = min(_CHUNK // target.itemsize, len(target))
    room = bytearray(step * target.itemsize + 15)  # OpenSSL asks for a block of slack
    words = np.frombuffer(room, dtype=target.dtype.newbyteorder("<"), count=step)
    operation = np.subtract if subtract else np.add
    for start in range(0, len(target), step):
        part = target[start : start + step]
        count = part.nbytes
        stream.update_into(_ZEROS if count == _CHUNK else _ZEROS[:count], room)
        operation(part, words[: len(part)], out=part)
