"""Products modulo 2^64: exact for every shape, against Python's integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from privacy.shared_inference.ring import Stream, Structure, as_ring, as_signed


def exact(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    product = matrix.astype(object) @ values.astype(object)
    return np.array([[int(v) % 2**64 for v in row] for row in product], dtype=np.uint64)


@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 7, 513]), st.integers(0, 2**32))
def test_products_are_exact(rows: int, columns: int, batch: int, seed: int) -> None:
    drawn = np.random.default_rng(seed)
    matrix = drawn.integers(0, 2**64, (rows, columns), dtype=np.uint64)
    values = drawn.integers(0, 2**64, (columns, batch), dtype=np.uint64)
    before = drawn.integers(0, 2**64, (rows, batch), dtype=np.uint64)
    total = before.copy()
    Structure(rows, columns).multiply(matrix.ravel(), values, total)
    assert np.array_equal(total, exact(matrix, values) + before)

    matrix[drawn.random(matrix.shape) < 0.5] = 0
    places = sparse.csr_array(matrix != 0)
    parts = places.indptr.astype(np.int32), places.indices.astype(np.int32)
    structure = Structure(rows, columns, *parts)
    total = before.copy()
    structure.multiply(matrix[matrix != 0], values, total)
    assert np.array_equal(total, exact(matrix, values) + before)
    assert structure.entries == np.count_nonzero(matrix)


def test_a_seed_gives_the_key_stream_of_aes() -> None:
    """NIST's AES-256 of a block of zeros under a key of zeros, however it is taken."""
    stream = Stream(bytes(32))
    words = np.concatenate([stream.take(1), stream.take(1, 1).ravel()])
    assert words.astype("<u8").tobytes() == bytes.fromhex("dc95c078a2408989ad48a21492842087")
    with pytest.raises(ValueError, match="32"):
        Stream(bytes(16))


def test_signs() -> None:
    whole = np.array([-(2.0**62), -1.0, 0.0, 5.0])
    assert as_signed(as_ring(whole)).tolist() == whole.tolist()
