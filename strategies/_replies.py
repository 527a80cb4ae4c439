"""From a reply to arrays that can be summed, or to a reason why not. Nothing is unpickled."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, Message, MetricRecord

Vector = npt.NDArray[Any]

_HEADER_READERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class RejectedReply(ValueError):
    """A reply that is dropped; the message says why, for the operator's log only."""


class Template:
    """The model that was sent, and what a reply to it must look like.

    Floating-point arrays take part in the average. The others (BatchNorm's counters) keep the
    server's values: a reply must carry them, and what it says of them is not read.

    Raises
    ------
    ValueError
        If the model has no floating-point array, or one that is not finite.
    """

    def __init__(self, record: ArrayRecord) -> None:
        self._record = record
        arrays = {name: array.numpy() for name, array in record.items()}
        self.kept = {name: a for name, a in arrays.items() if not _is_floating(a.dtype)}
        self.names = [name for name in arrays if name not in self.kept]
        self.arrays: list[Vector] = [arrays[name] for name in self.names]
        if not self.arrays:
            raise ValueError("the model has no floating-point array to average")
        for name, array in zip(self.names, self.arrays, strict=True):
            if not np.isfinite(array).all():
                raise ValueError(f"the model's array {name!r} holds NaN or infinite values")
        # What numpy.save writes before the data, so that a well-formed reply needs no parsing.
        self._expected = {
            name: (record[name].data[: len(record[name].data) - array.nbytes], array)
            for name, array in zip(self.names, self.arrays, strict=True)
        }

    def record(self, arrays: Sequence[Vector]) -> ArrayRecord:
        """A record like the template's, with new floating-point arrays."""
        fresh = dict(zip(self.names, arrays, strict=True))
        return ArrayRecord(
            {
                name: Array(np.ascontiguousarray(fresh[name])) if name in fresh else array
                for name, array in self._record.items()
            }
        )

    def read(self, record: ArrayRecord) -> list[Vector]:
        """View the floating-point arrays of a reply, in the template's order, without a copy.

        Raises
        ------
        RejectedReply
            If arrays are missing or extra, or of another shape, dtype or encoding.
        """
        if record.keys() != self._record.keys():
            raise RejectedReply("arrays are missing or extra")
        return [self._view(name, record[name]) for name in self.names]

    def _view(self, name: str, array: Array) -> Vector:
        header, reference = self._expected[name]
        data = array.data
        if len(data) == len(header) + reference.nbytes and data.startswith(header):
            flat = np.frombuffer(data, dtype=reference.dtype, offset=len(header))
            return flat.reshape(reference.shape)
        stream = io.BytesIO(data)
        try:
            version = np.lib.format.read_magic(stream)
            shape, fortran, dtype = _HEADER_READERS[version](stream)
        except (ValueError, OSError, EOFError, SyntaxError, KeyError, TypeError) as error:
            raise RejectedReply(f"array {name!r} is not a numpy array") from error
        if dtype != reference.dtype:
            raise RejectedReply(f"array {name!r} has another dtype")
        if shape != reference.shape:
            raise RejectedReply(f"array {name!r} has another shape")
        if len(data) - stream.tell() != reference.nbytes:
            raise RejectedReply(f"array {name!r} is cut short or too long")
        flat = np.frombuffer(data, dtype=dtype, offset=stream.tell())
        return flat.reshape(shape, order="F" if fortran else "C")


def _is_floating(dtype: np.dtype[Any]) -> bool:
    return bool(np.issubdtype(dtype, np.floating))


def content_of(reply: Message) -> tuple[ArrayRecord, MetricRecord | None]:
    """The one ArrayRecord of a reply, and its MetricRecord if it has one.

    Raises
    ------
    RejectedReply
        If the reply is an error, or has several records of a kind.
    """
    if reply.has_error():
        raise RejectedReply("the client answered with an error")
    arrays = list(reply.content.array_records.values())
    metrics = list(reply.content.metric_records.values())
    if len(arrays) != 1:
        raise RejectedReply(f"{len(arrays)} array records instead of one")
    if len(metrics) > 1:
        raise RejectedReply(f"{len(metrics)} metric records instead of one")
    return arrays[0], metrics[0] if metrics else None
