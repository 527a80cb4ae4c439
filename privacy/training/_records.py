"""A client's records, whatever they come as."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor
from torch.utils.data import Dataset, default_collate


class Records(Protocol):
    """Records by row: inputs, then targets, with the examples on the first axis."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The given rows, each at most once and in order."""


class _Tensors:
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        if len(rows) == len(self):  # each once and in order: nothing need be copied
            return self._tensors
        return tuple(tensor[rows] for tensor in self._tensors)


class _Mapped:
    def __init__(self, dataset: Dataset[tuple[Tensor, ...]]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(default_collate([self._dataset[row] for row in rows.tolist()]))


def records_of(data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]]) -> Records:
    """See ``data`` as records.

    Raises
    ------
    ValueError
        If it is neither tensors of one length nor a map-style Dataset.
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
    return records
