"""A client's records, whatever they come as."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

# Of inputs and targets of one record: the shape, the precision and where it is.
Kind = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]


class Records(Protocol):
    """Records by row: inputs, then targets, with the examples on the first axis."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The given rows, each at most once and in order."""

    def kinds(self) -> Iterator[Kind]:
        """The kinds of record that there are, each once; no number in a record has a part."""


class _Tensors:
    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        if len(rows) == len(self):  # each once and in order: nothing need be copied
            return self._tensors
        return tuple(tensor[rows] for tensor in self._tensors)

    def kinds(self) -> Iterator[Kind]:
        yield _kind_of(self._tensors)  # also of no record


class _Mapped:
    def __init__(self, dataset: Dataset[tuple[Tensor, ...]]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        records = [self._dataset[row] for row in rows.tolist()]
        with torch.device("cpu"):  # numbers become tensors there, whatever the default device is
            return tuple(default_collate(records))

    def kinds(self) -> Iterator[Kind]:
        told: set[Kind] = set()
        for row in range(len(self)):
            try:
                kind = _kind_of(self.take(torch.tensor([row], device="cpu")))
            except Exception:  # noqa: S112
                continue  # malformed, of whatever kind it is
            if kind not in told:
                told.add(kind)
                yield kind


class _Moved:
    def __init__(self, records: Records, device: torch.device) -> None:
        self._records, self._device = records, device

    def __len__(self) -> int:
        return len(self._records)

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device) for tensor in self._records.take(rows))

    def kinds(self) -> Iterator[Kind]:
        for kind in self._records.kinds():
            yield tuple((shape, dtype, self._device) for shape, dtype, _ in kind)


def on_device_of(model: nn.Module, records: Records) -> Records:
    """``records``, each batch moved to where the model's parameters are, if that is one device."""
    devices = {parameter.device for parameter in model.parameters()}
    return _Moved(records, *devices) if len(devices) == 1 else records


def _kind_of(tensors: tuple[Tensor, ...]) -> Kind:
    return tuple((tuple(each.shape[1:]), each.dtype, each.device) for each in tensors)


def records_of(data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]]) -> Records:
    """See ``data`` as records.

    Raises
    ------
    TypeError, ValueError
        If it is neither tensors of one length nor a map-style Dataset of tuples; it says what to
        give in its place.
    """
    if isinstance(data, DataLoader):
        raise TypeError(
            "data is a DataLoader, whose batches are not those that privacy is accounted for: "
            "give its dataset, loader.dataset"
        )
    if isinstance(data, Dataset):
        if isinstance(data, IterableDataset) or not hasattr(data, "__len__"):
            raise TypeError(
                f"data is a {type(data).__name__} without a length: give a map-style Dataset"
            )
        _check_records(data)
        return _Mapped(data)
    given: object = data
    if isinstance(given, Tensor):
        raise TypeError("data is one tensor: give inputs and targets, (inputs, targets)")
    if isinstance(given, (Mapping, str)) or not isinstance(given, Sequence):
        raise TypeError(
            f"data is a {_kind(given)}: give (inputs, targets) as tensors, or a "
            "torch.utils.data.Dataset that returns (input, target)"
        )
    return _Tensors(_tensors(given))


def _tensors(data: Sequence[object]) -> tuple[Tensor, ...]:
    found: list[Tensor] = []
    for place, each in enumerate(data):
        if isinstance(each, (tuple, list)):
            raise TypeError(
                "data is a list of records: give inputs and targets each as one tensor, "
                "(torch.stack(inputs), torch.tensor(targets)), or a torch.utils.data.Dataset"
            )
        if not isinstance(each, Tensor):
            raise TypeError(
                f"data[{place}] is a {_kind(each)}: give a tensor, for an array torch.from_numpy(…)"
            )
        found.append(each)
    shapes = [tuple(each.shape) for each in found]
    if len(found) < 2 or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"data holds tensors of shapes {shapes}: give inputs and targets, tensors of one "
            "length with a row for each record"
        )
    return tuple(found)


def _check_records(dataset: Dataset[tuple[Tensor, ...]]) -> None:
    """Refuse a dataset whose records are no tuples of tensors and numbers.

    That is, if none is: one that is something else is malformed and adds nothing, wherever it is.
    """
    first = ""
    for row in range(len(dataset)):  # type: ignore[arg-type]
        wrong = _wrong_at(dataset, row)
        if wrong is None:
            return
        first = first or wrong
    if first:
        raise TypeError(first)


def _wrong_at(dataset: Dataset[tuple[Tensor, ...]], row: int) -> str | None:
    try:
        return _wrong(dataset[row])
    except Exception:
        return ""  # malformed, of whatever kind it is


def _wrong(record: object) -> str | None:
    """What is wrong with the kind of a record, and what to do."""
    if not isinstance(record, (tuple, list)) or len(record) < 2:
        kind = f"a {_kind(record)}"
        if isinstance(record, Mapping):
            kind += f" with the keys {sorted(map(str, record))}"
        return (
            f"a record of data is {kind}: wrap it in a Dataset that returns (input, target), each "
            "a tensor or a number"
        )
    for place, each in enumerate(record):
        if not isinstance(each, (Tensor, np.ndarray, np.generic, int, float)):
            return (
                f"place {place} of a record of data is a {_kind(each)}: return a tensor or a "
                "number (a transform, such as torchvision's ToTensor, makes one)"
            )
    return None


def _kind(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
