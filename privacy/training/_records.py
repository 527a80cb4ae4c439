"""A client's records, whatever they come as."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate


class Records(Protocol):
    """Records by row: inputs, then targets, with the examples on the first axis."""

    def __len__(self) -> int: ...

    def everything(self) -> tuple[Tensor, ...]:
        """All rows."""

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The given rows."""


class _Tensors:
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def everything(self) -> tuple[Tensor, ...]:
        return self._tensors

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[rows] for tensor in self._tensors)


class _Mapped:
    def __init__(self, dataset: Dataset[tuple[Tensor, ...]]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def everything(self) -> tuple[Tensor, ...]:
        return self.take(torch.arange(len(self)))

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(default_collate([self._dataset[row] for row in rows.tolist()]))


def records_of(data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]]) -> Records:
    """See ``data`` as records.

    Raises
    ------
    ValueError
        If it holds no record, or tensors of different lengths.
    """
    if isinstance(data, Dataset):
        if not hasattr(data, "__len__"):
            raise ValueError("data is a Dataset without a length: take a map-style one")
        records: Records = _Mapped(data)
    else:
        tensors = tuple(data)
        if len(tensors) < 2 or len({len(tensor) for tensor in tensors}) != 1:
            raise ValueError("data must be inputs and targets, tensors of one length")
        records = _Tensors(tensors)
    if not len(records):
        raise ValueError("data holds no record: a client without records has nothing to train on")
    return records


def fingerprint(*tensors: Tensor) -> str:
    """A name for a data set by its content: SHA-256 over the tensors, in order.

    One changed record gives another name, so a data set that grows had better be named by where
    it comes from. Local only: it tells whether two parties hold the same data.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape};".encode())
        digest.update(array.data)
    return f"sha256:{digest.hexdigest()}"
