"""A client's records by row: tensors, or a map-style Dataset."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

# Shape, precision and device of each of a record's inputs and targets.
RecordFormat = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]


class Records(Protocol):
    """Records by row: inputs, then targets, with the examples on the first axis."""

    @property
    def one_format(self) -> bool:
        """Whether all have one format, which is no single record's: that of tensors."""

    def __len__(self) -> int: ...

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The given rows, each at most once and in order."""

    def formats(self) -> Iterator[RecordFormat]:
        """The different formats of records, each once; they depend on no number in a record."""


class _Tensors:
    one_format = True

    def __init__(self, tensors: tuple[Tensor, ...]) -> None:
        self._tensors = tensors

    def __len__(self) -> int:
        return len(self._tensors[0])

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        if len(rows) == len(self):  # each once and in order: nothing need be copied
            return self._tensors
        return tuple(tensor[rows] for tensor in self._tensors)

    def formats(self) -> Iterator[RecordFormat]:
        yield format_of(self._tensors)  # also of no record


class _Mapped:
    one_format = False

    def __init__(self, dataset: Dataset[tuple[Tensor, ...]]) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)  # type: ignore[arg-type]

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        records = [self._dataset[row] for row in rows.tolist()]
        with torch.device("cpu"):  # numbers become tensors there, whatever the default device is
            return tuple(default_collate(records))

    def formats(self) -> Iterator[RecordFormat]:
        yielded: set[RecordFormat] = set()
        for row in range(len(self)):
            try:
                record_format = format_of(self.take(torch.tensor([row], device="cpu")))
            except Exception:  # noqa: S112
                continue  # malformed
            if record_format not in yielded:
                yielded.add(record_format)
                yield record_format


class _Moved:
    def __init__(self, records: Records, device: torch.device) -> None:
        self._records, self._device = records, device
        self.one_format = records.one_format

    def __len__(self) -> int:
        return len(self._records)

    def take(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self._device) for tensor in self._records.take(rows))

    def formats(self) -> Iterator[RecordFormat]:
        for record_format in self._records.formats():
            yield tuple((shape, dtype, self._device) for shape, dtype, _ in record_format)


def on_device_of(model: nn.Module, records: Records) -> Records:
    """``records``, each batch moved to where the model's parameters are, if that is one device."""
    devices = {parameter.device for parameter in model.parameters()}
    return _Moved(records, *devices) if len(devices) == 1 else records


def format_of(tensors: Sequence[Tensor]) -> RecordFormat:
    """The format of records: shapes without the first axis."""
    return tuple((tuple(each.shape[1:]), each.dtype, each.device) for each in tensors)


def records_of(data: Sequence[Tensor] | Dataset[tuple[Tensor, ...]]) -> Records:
    """``data`` as records.

    Raises
    ------
    TypeError, ValueError
        If it is neither tensors of one length nor a map-style Dataset of tuples.
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
        _check_dataset(data)
        return _Mapped(data)
    given: object = data
    if isinstance(given, Tensor):
        raise TypeError("data is one tensor: give inputs and targets, (inputs, targets)")
    if isinstance(given, (Mapping, str)) or not isinstance(given, Sequence):
        raise TypeError(
            f"data is a {_type_name(given)}: give (inputs, targets) as tensors, or a "
            "torch.utils.data.Dataset that returns (input, target)"
        )
    return _Tensors(_tensors(given))


def _tensors(data: Sequence[object]) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    for place, each in enumerate(data):
        if isinstance(each, (tuple, list)):
            raise TypeError(
                "data is a list of records: give inputs and targets each as one tensor, "
                "(torch.stack(inputs), torch.tensor(targets)), or a torch.utils.data.Dataset"
            )
        if not isinstance(each, Tensor):
            raise TypeError(
                f"data[{place}] is a {_type_name(each)}: give a tensor, for an array "
                "torch.from_numpy(…)"
            )
        tensors.append(each)
    shapes = [tuple(each.shape) for each in tensors]
    if len(tensors) < 2 or not all(shapes) or len({shape[0] for shape in shapes}) != 1:
        raise ValueError(
            f"data holds tensors of shapes {shapes}: give inputs and targets, tensors of one "
            "length with a row for each record"
        )
    return tuple(tensors)


def _check_dataset(dataset: Dataset[tuple[Tensor, ...]]) -> None:
    """Refuse a dataset in which no record is a tuple of tensors and numbers.

    Among others that are, one that is not is malformed and adds nothing.
    """
    first_problem = ""
    for row in range(len(dataset)):  # type: ignore[arg-type]
        try:
            problem = _problem(dataset[row])
        except Exception:
            problem = ""  # malformed
        if problem is None:
            return
        first_problem = first_problem or problem
    if first_problem:
        raise TypeError(first_problem)


def _problem(record: object) -> str | None:
    """Why a record is of the wrong type, and the remedy."""
    if not isinstance(record, (tuple, list)) or len(record) < 2:
        kind = f"a {_type_name(record)}"
        if isinstance(record, Mapping):
            kind += f" with the keys {sorted(map(str, record))}"
        return (
            f"a record of data is {kind}: wrap it in a Dataset that returns (input, target), each "
            "a tensor or a number"
        )
    for place, each in enumerate(record):
        if not isinstance(each, (Tensor, np.ndarray, np.generic, int, float)):
            return (
                f"place {place} of a record of data is a {_type_name(each)}: return a tensor or a "
                "number (a transform, such as torchvision's ToTensor, makes one)"
            )
    return None


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
