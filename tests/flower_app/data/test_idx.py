"""The IDX format: what is written is read, and what is not IDX is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from flower_app.data.idx import from_idx, to_idx
from flower_app.errors import DataError

ARRAYS = arrays(np.uint8, array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=6))


@given(ARRAYS)
def test_what_is_written_is_read(array: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(from_idx(to_idx(array), "file"), array)


@given(ARRAYS, st.integers(-20, 20).filter(bool))
def test_another_length_is_refused(array: NDArray[np.uint8], change: int) -> None:
    content = to_idx(array)
    other = content + b"x" * change if change > 0 else content[:change]
    with pytest.raises(DataError, match=r"^file "):
        from_idx(other, "file")


@given(st.binary(max_size=64))
def test_anything_else_is_refused_with_the_name_of_the_file(content: bytes) -> None:
    try:
        array = from_idx(content, "file")
    except DataError as error:
        assert str(error).startswith("file ")  # noqa: PT017 - most bytes are not IDX, a few are
    else:
        assert to_idx(array) == content


def test_a_header_that_promises_too_much_takes_no_memory() -> None:
    with pytest.raises(DataError, match="promises"):
        from_idx(b"\0\0\x08\x03" + b"\xff" * 12, "file")


def test_other_types_are_refused() -> None:
    with pytest.raises(DataError, match="type 0x0d"):
        from_idx(b"\0\0\x0d\x01\0\0\0\0", "file")
