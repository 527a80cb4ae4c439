"""AES-128 under a key that is no secret: the random permutation of which comparisons are made.

On x86 it is the processor's own instruction, in kernels; elsewhere the one of ``cryptography``, for
arrays. Both are the same permutation, and neither takes time that depends on the data.
"""

import platform
import struct
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from privacy.arguments import exact_bytes
from privacy.kernels import intrinsic

KEY_BYTES = 16
_ROUNDS = 10
_WORD = ir.IntType(64)
_BLOCK = ir.VectorType(_WORD, 2)
_REDUCTION = 0x11B


@cache
def in_hardware() -> bool:
    """Whether this processor has AES instructions that kernels can use."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and bool(binding.get_host_cpu_features().get("aes"))


class PublicPermutation:
    """AES-128 under a known key.

    Parameters
    ----------
    key : bytes
        16 of them.
    """

    def __init__(self, key: bytes) -> None:
        # ECB is the permutation itself.
        mode = modes.ECB()  # noqa: S305
        self._cipher = Cipher(algorithms.AES(exact_bytes("key", key, KEY_BYTES)), mode)
        self.round_keys = round_keys(key)
        """Shape (22,), uint64: what kernels take."""

    def hashed(self, blocks: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """π(x) XOR x of each block x, shape (blocks, 2): low word first."""
        given = np.ascontiguousarray(blocks)
        permuted = self._cipher.encryptor().update(given.astype("<u8").tobytes())
        return np.frombuffer(permuted, dtype="<u8").reshape(given.shape).astype(np.uint64) ^ given


def round_keys(key: bytes) -> NDArray[np.uint64]:
    """The key's schedule (FIPS 197, section 5.2), shape (22,): two words a round."""
    box, constant = _substitution(), 1
    words = [*struct.unpack("<4I", key)]
    for index in range(4, 4 * (_ROUNDS + 1)):
        word = words[-1]
        if index % 4 == 0:
            low, high = box[word >> 8 & 0xFF] | box[word >> 16 & 0xFF] << 8, box[word >> 24]
            word = low | high << 16 | box[word & 0xFF] << 24
            word ^= constant
            constant = _doubled(constant)
        words.append(words[-4] ^ word)
    return np.frombuffer(struct.pack(f"<{len(words)}I", *words), "<u8").astype(np.uint64)


@cache
def _substitution() -> tuple[int, ...]:
    """The S-box (FIPS 197, section 5.1.1)."""
    # Powers of 3 run through the field, so that inverses are found without a division.
    powers = [1]
    for _ in range(254):
        powers.append(powers[-1] ^ _doubled(powers[-1]))
    inverse = {value: powers[-place % 255] for place, value in enumerate(powers)}
    table = []
    for value in range(256):
        bits = inverse.get(value, 0)
        turned = bits
        for _ in range(4):
            bits = (bits << 1 | bits >> 7) & 0xFF
            turned ^= bits
        table.append(turned ^ 0x63)
    return tuple(table)


def _doubled(value: int) -> int:
    doubled = value << 1
    return doubled ^ _REDUCTION if doubled > 0xFF else doubled


@intrinsic
def permuted(context: Any, low: Any, high: Any, keys: Any) -> Any:
    """AES-128 of one block: two words, as two words. ``keys`` are :func:`round_keys`."""

    def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
        low, high, keys = given
        schedule = context.make_array(signature.args[2])(context, builder, keys).data
        kind = ir.FunctionType(_BLOCK, [_BLOCK, _BLOCK])
        steps = [
            cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.aesni.{name}")
            for name in ("aesenc", "aesenclast")
        ]

        def key(number: int) -> Any:
            place = builder.gep(schedule, [_WORD(2 * number)])
            return builder.load(builder.bitcast(place, _BLOCK.as_pointer()), align=8)

        block = ir.Constant(_BLOCK, ir.Undefined)
        for place, word in enumerate((low, high)):
            block = builder.insert_element(block, word, ir.IntType(32)(place))
        block = builder.xor(block, key(0))
        for number in range(1, _ROUNDS + 1):
            block = builder.call(steps[number == _ROUNDS], [block, key(number)])
        words = [builder.extract_element(block, ir.IntType(32)(place)) for place in (0, 1)]
        return context.make_tuple(builder, signature.return_type, words)

    word = types.uint64
    return types.UniTuple(word, 2)(word, word, types.Array(word, 1, "C")), generate
