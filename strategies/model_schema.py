"""Reads replies into arrays that can be summed, or refuses them. Nothing is unpickled."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from strategies.errors import Fault, ReplyError
from strategies.replies import only_metrics, refuse_error

Vector = npt.NDArray[Any]

_HEADER_READERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_AVERAGED = (np.float16, np.float32, np.float64)
_BFLOAT16 = np.dtype("V2")  # as numpy writes an array of a dtype that it does not know
_LONGEST_HEADER = 1 << 16
_MOST_HEADERS = 8  # spellings of one array's header that are remembered


@dataclass(frozen=True)
class TrainReply:
    """The content of a training reply, checked against the model that was sent.

    Arrays of another floating-point width than the model's are converted before they are clipped.
    """

    arrays: list[Vector]
    metrics: MetricRecord | None


class _Place:
    """One array of the model, and the headers, already checked, under which replies carry it."""

    def __init__(self, name: str, reference: Vector) -> None:
        self._name = name
        self._shape, self._size = reference.shape, reference.size
        self._seen: dict[bytes, tuple[np.dtype[Any], str]] = {}

    def view(self, array: Array) -> Vector:
        """The array that ``array.data``, in numpy's format, holds; without a copy."""
        data = array.data
        if not isinstance(data, bytes):
            raise ReplyError(f"array {self._name!r} is not bytes", Fault.ENCODING)
        header = data[: _header_length(data)]
        seen = self._seen.get(header)
        if seen is None:
            seen = self._read_header(header)
            if len(self._seen) < _MOST_HEADERS:
                self._seen[header] = seen
        dtype, order = seen
        if dtype == _BFLOAT16 and array.dtype != "bfloat16":
            raise ReplyError(f"array {self._name!r} has another dtype", Fault.DTYPE)
        if len(data) - len(header) != self._size * dtype.itemsize:
            raise ReplyError(f"array {self._name!r} is cut short or too long", Fault.ENCODING)
        flat: Vector = np.frombuffer(data, dtype=dtype, offset=len(header))
        if dtype == _BFLOAT16:  # the upper half of a float32
            flat = (flat.view("<u2").astype(np.uint32) << 16).view(np.float32)
        return flat.reshape(self._shape, order="F" if order == "F" else "C")

    def _read_header(self, header: bytes) -> tuple[np.dtype[Any], str]:
        stream = io.BytesIO(header)
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = _HEADER_READERS[version](stream)
        except Exception as error:  # numpy's reader lets out whatever Python's parser raises
            raise ReplyError(
                f"array {self._name!r} is not a numpy array", Fault.ENCODING
            ) from error
        if dtype.kind != "f" and dtype != _BFLOAT16:
            raise ReplyError(f"array {self._name!r} has another dtype", Fault.DTYPE)
        if shape != self._shape:
            raise ReplyError(f"array {self._name!r} has another shape", Fault.SHAPE)
        return dtype, "F" if fortran else "C"


def _header_length(data: bytes) -> int:
    """The header's length, magic and version included; it may exceed that of malformed data."""
    digits = 2 if data[6:7] == b"\x01" else 4
    length = 8 + digits + int.from_bytes(data[8 : 8 + digits], "little")
    return min(length, _LONGEST_HEADER)


class ModelSchema:
    """The model that was sent, and what a reply to it must look like.

    Floating-point arrays take part in the average, and a reply may carry them in any
    floating-point width. The others (BatchNorm's counters) keep the server's values: a reply
    must carry them, and their values in it are not read.

    Raises
    ------
    ValueError
        If the model has no floating-point array, or one that is not finite, or arrays that are
        neither floating-point nor integers.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record
        arrays = {name: _load(array) for name, array in record.items()}
        self.names = [name for name, array in arrays.items() if array.dtype.kind == "f"]
        self.arrays: list[Vector] = [arrays[name] for name in self.names]
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub" or (
                array.dtype.kind == "f" and array.dtype not in _AVERAGED
            ):
                raise ValueError(
                    f"the model's array {name!r} has dtype {array.dtype}; give float16, float32 "
                    "or float64, or integers, which are not averaged"
                )
            if array.dtype.kind == "f" and not _all_finite(array):
                raise ValueError(
                    f"the model's array {name!r} holds NaN or infinite values; lower the "
                    "server's learning rate, or start from another model"
                )
        if not self.arrays:
            raise ValueError("the model has no floating-point array to average")
        self._places = {
            name: _Place(name, array) for name, array in zip(self.names, self.arrays, strict=True)
        }

    @property
    def size(self) -> int:
        """How many floating-point parameters the model has."""
        return sum(array.size for array in self.arrays)

    def record(self, arrays: Sequence[Vector]) -> ArrayRecord:
        """A record like the schema's, with new floating-point arrays."""
        fresh = dict(zip(self.names, arrays, strict=True))
        return ArrayRecord(
            {
                name: _serialised(np.asarray(fresh[name], order="C")) if name in fresh else array
                for name, array in self._record.items()
            }
        )

    def read(self, reply: Message) -> TrainReply:
        """Read a training reply. Its arrays are views, in the schema's order."""
        record, metrics = _content(reply)
        if record.keys() != self._record.keys():
            raise ReplyError("arrays are missing or extra", Fault.NAMES)
        views = [place.view(record[name]) for name, place in self._places.items()]
        return TrainReply(views, metrics)


def _content(reply: Message) -> tuple[ArrayRecord, MetricRecord | None]:
    refuse_error(reply)
    if not reply.has_content():
        raise ReplyError("the reply is empty", Fault.RECORDS)
    records = list(reply.content.values())
    arrays = [record for record in records if isinstance(record, ArrayRecord)]
    if len(arrays) != 1:
        raise ReplyError(f"{len(arrays)} array records instead of one", Fault.RECORDS)
    return arrays[0], only_metrics(reply)


def _serialised(values: Vector) -> Array:
    """``Array(values)``, in one copy of its memory and not in three."""
    stream = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(values)
    np.lib.format.write_array_header_1_0(stream, header)
    data = b"".join((stream.getvalue(), values.reshape(-1).view(np.uint8).data))
    return Array(str(values.dtype), values.shape, "numpy.ndarray", data)


def _load(array: Array) -> Vector:
    """The server's own array; a view of its bytes where numpy stored it in C order."""
    loaded = array.numpy()
    if not loaded.flags.c_contiguous or not loaded.nbytes:
        return loaded
    flat = np.frombuffer(array.data, loaded.dtype, offset=len(array.data) - loaded.nbytes)
    return flat.reshape(loaded.shape)


def _all_finite(array: Vector) -> bool:
    """Without an array of answers: NaN is both the least and the greatest."""
    return bool(np.isfinite(array.min(initial=0)) and np.isfinite(array.max(initial=0)))
