"""From a reply to arrays that can be summed, or to a reason why not. Nothing is unpickled."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord

Vector = npt.NDArray[Any]

_HEADER_READERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_AVERAGED = (np.float16, np.float32, np.float64)
_LONGEST_HEADER = 1 << 16
_MOST_HEADERS = 8  # spellings of one array's header that are remembered


class RejectedReply(ValueError):
    """A reply that is dropped; the message says why, for the operator's log only."""


@dataclass(frozen=True)
class TrainReply:
    """What a training reply says, checked against the model that was sent."""

    arrays: list[Vector]
    metrics: MetricRecord | None


class _Place:
    """What one array of a reply must be, and the headers under which it was seen."""

    def __init__(self, name: str, reference: Vector) -> None:
        self._name = name
        self._dtype, self._shape, self._size = reference.dtype, reference.shape, reference.nbytes
        self._orders: dict[bytes, str] = {}

    def view(self, data: bytes) -> Vector:
        """The array that ``data``, in numpy's format, holds; without a copy."""
        start = len(data) - self._size if isinstance(data, bytes) else -1
        if not 0 <= start <= _LONGEST_HEADER:
            raise RejectedReply(f"array {self._name!r} is cut short or too long")
        header = data[:start]
        order = self._orders.get(header)
        if order is None:
            order = self._read_header(header)
            if len(self._orders) < _MOST_HEADERS:
                self._orders[header] = order
        flat = np.frombuffer(data, dtype=self._dtype, offset=start)
        return flat.reshape(self._shape, order="F" if order == "F" else "C")

    def _read_header(self, header: bytes) -> str:
        stream = io.BytesIO(header)
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = _HEADER_READERS[version](stream)
        except Exception as error:  # numpy's reader lets out whatever Python's parser raises
            raise RejectedReply(f"array {self._name!r} is not a numpy array") from error
        if dtype != self._dtype:
            raise RejectedReply(f"array {self._name!r} has another dtype")
        if shape != self._shape:
            raise RejectedReply(f"array {self._name!r} has another shape")
        if stream.tell() != len(header):
            raise RejectedReply(f"array {self._name!r} is cut short or too long")
        return "F" if fortran else "C"


class Template:
    """The model that was sent, and what a reply to it must look like.

    Floating-point arrays take part in the average. The others (BatchNorm's counters) keep the
    server's values: a reply must carry them, and what it says of them is not read.

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

    def record(self, arrays: Sequence[Vector]) -> ArrayRecord:
        """A record like the template's, with new floating-point arrays."""
        fresh = dict(zip(self.names, arrays, strict=True))
        return ArrayRecord(
            {
                name: Array(np.asarray(fresh[name], order="C")) if name in fresh else array
                for name, array in self._record.items()
            }
        )

    def read(self, reply: Message) -> TrainReply:
        """Read a training reply. Its arrays are views, in the template's order.

        Raises
        ------
        RejectedReply
            If it is an error, has several records of a kind, or its arrays are missing or extra
            or of another shape, dtype or encoding.
        """
        record, metrics = _content(reply)
        if record.keys() != self._record.keys():
            raise RejectedReply("arrays are missing or extra")
        views = [place.view(record[name].data) for name, place in self._places.items()]
        return TrainReply(views, metrics)


def _content(reply: Message) -> tuple[ArrayRecord, MetricRecord | None]:
    _refuse_error(reply)
    if not reply.has_content():
        raise RejectedReply("the reply is empty")
    records = list(reply.content.values())
    arrays = [record for record in records if isinstance(record, ArrayRecord)]
    if len(arrays) != 1:
        raise RejectedReply(f"{len(arrays)} array records instead of one")
    return arrays[0], _only_metrics(reply)


def _refuse_error(reply: Message) -> None:
    if reply.has_error():
        # Its code only: the words are the client's own.
        raise RejectedReply(f"the client answered with an error (code {int(reply.error.code)})")


def _only_metrics(reply: Message) -> MetricRecord | None:
    metrics = [record for record in reply.content.values() if isinstance(record, MetricRecord)]
    if len(metrics) > 1:
        raise RejectedReply(f"{len(metrics)} metric records instead of one")
    return metrics[0] if metrics else None


def read_metrics(reply: Message) -> MetricRecord:
    """The one MetricRecord of an evaluation's reply.

    Raises
    ------
    RejectedReply
        If the reply is an error, or has none or several.
    """
    _refuse_error(reply)
    if not reply.has_content():
        raise RejectedReply("the reply is empty")
    metrics = _only_metrics(reply)
    if metrics is None:
        raise RejectedReply("no metric record")
    return metrics


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
