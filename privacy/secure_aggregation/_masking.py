"""The ring that sums live in, its elements as bytes, and the streams that mask them.

n clients whose entries lie in [-B, B] add up to something in [-nB, nB]. Modulo 2^b these
2nB + 1 values stay apart exactly if 2^b >= 2nB + 1: the smallest such b is used, and no sum
overflows, whatever the inputs.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

LARGEST_BITS = 62
MASK_KEY_BYTES = 16
_CHUNK = 1 << 18  # bytes; the stream, its source and the target stay in the second-level cache
_ZEROS = bytes(_CHUNK)
_GROUP = 64  # elements that fill a whole number of words at any width
_ROW = 1 << 12  # elements of each of the 64 rows that are packed at a time


def ring_bits(clients: int, bound: int) -> int:
    """The smallest b for which ``clients`` entries in [-bound, bound] cannot overflow 2^b.

    Raises
    ------
    ValueError
        If that is more than 62 bits.
    """
    bits = (2 * clients * bound).bit_length()
    if bits > LARGEST_BITS:
        raise ValueError(
            f"{clients} clients with entries up to {bound} need a ring of {bits} bits; at most "
            f"{LARGEST_BITS} are supported: lower the bound"
        )
    return bits


def element_type(bits: int) -> type[np.unsignedinteger[Any]]:
    """The machine word that elements are worked on in."""
    return np.uint32 if bits <= 32 else np.uint64


def centred(elements: npt.NDArray[Any], bits: int) -> npt.NDArray[np.int64]:
    """The integers in [-2^(b-1), 2^(b-1)) that the elements stand for."""
    shift = np.int64(64 - bits)
    wide = elements.astype(np.int64)
    return (wide << shift) >> shift


def packed_size(size: int, bits: int) -> int:
    """How many bytes ``size`` elements take: b bits each, in groups of 64."""
    return -(-size // _GROUP) * bits * 8


def pack(elements: npt.NDArray[Any], bits: int) -> bytes:
    """Write the low b bits of each element, and nothing else.

    The vector is laid out as 64 rows, the last padded with zeros; word w of column c holds bits
    64w to 64w + 63 of the b x 64 bits of that column.
    """
    columns = -(-len(elements) // _GROUP)
    out = np.zeros((bits, columns), dtype="<u8")
    mask = np.uint64((1 << bits) - 1)
    for first in range(0, columns, _ROW):
        last = min(first + _ROW, columns)
        for row in range(_GROUP):
            source = elements[row * columns + first : row * columns + last]
            if not len(source):
                break
            values = source.astype(np.uint64) & mask
            word, shift = divmod(row * bits, 64)
            part = out[:, first : first + len(source)]
            part[word] |= values << np.uint64(shift)
            if shift + bits > 64:
                part[word + 1] |= values >> np.uint64(64 - shift)
    return out.tobytes()


def add_packed(target: npt.NDArray[Any], data: bytes, bits: int) -> None:
    """Add packed elements to a vector of ``element_type(bits)``, in place.

    Raises
    ------
    ValueError
        If ``data`` is not as long as the vector needs.
    """
    if len(data) != packed_size(len(target), bits):
        raise ValueError(f"{len(data)} bytes for {len(target)} elements of {bits} bits")
    columns = -(-len(target) // _GROUP)
    words = np.frombuffer(data, dtype="<u8").reshape(bits, columns)
    mask = np.uint64((1 << bits) - 1)
    for first in range(0, columns, _ROW):
        last = min(first + _ROW, columns)
        for row in range(_GROUP):
            part = target[row * columns + first : row * columns + last]
            if not len(part):
                break
            word, shift = divmod(row * bits, 64)
            source = words[:, first : first + len(part)]
            values = source[word] >> np.uint64(shift)
            if shift + bits > 64:
                values |= source[word + 1] << np.uint64(64 - shift)
            np.add(part, values & mask, out=part, casting="unsafe")


def add_mask(target: npt.NDArray[Any], key: bytes, *, subtract: bool = False) -> None:
    """Add the stream of a key of 16 bytes to ring elements (or subtract it), in place.

    The stream is AES-128-CTR (NIST SP 800-38A), as in Bonawitz et al. (CCS 2017), section 7, read
    as little-endian words of the target's width (uint32 or uint64). It runs from counter zero: a
    key serves one vector only. Sums wrap around modulo the width, which any smaller power of two
    divides, so reducing them later is exact.
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
