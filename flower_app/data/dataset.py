"""MNIST or Fashion-MNIST, split for the work: clients' images, validation and test."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_app.data import sources
from flower_app.data.cache import cache_folder
from flower_app.data.idx import from_idx
from flower_app.errors import DataError

DATASETS = tuple(sources.ORIGINS)

TRAIN_SIZE = 50_000
"""How many of the 60,000 training images clients may hold.

The rest, 10,000 images from row 50,000 on, belong to no client: every choice of a
hyper-parameter is made on them.
"""


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (n, 28, 28), and their labels, int64 (n,) from 0 to 9; both read-only.

    Of a user's own data: a model's inputs, float32 (n, ...), and classes from 0 on.
    """

    images: NDArray[Any]
    labels: NDArray[np.int64]

    def __post_init__(self) -> None:
        self.images.flags.writeable = False
        self.labels.flags.writeable = False

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in three disjoint parts.

    ``train``, 50,000 images, is divided among the clients; ``validation``, 10,000, belongs to none
    of them; ``test``, 10,000, is used once, at the end. ``fingerprint`` names the content.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    fingerprint: str


def load_dataset(
    name: str = "mnist", *, data_dir: Path | None = None, cache_dir: Path | None = None
) -> Dataset:
    """Return a data set, checked file by file against its official md5.

    ``data_dir`` holds the four files as torchvision lays them out, compressed or not; without it
    they are fetched once, and kept in ``cache_dir`` or the user's cache folder.

    Raises
    ------
    DataError
        If the name is unknown, a file in ``data_dir`` is missing or corrupt, or no source can
        be reached.
    """
    if name not in DATASETS:
        raise DataError(f"dataset = {name!r} is unknown; choose one of {', '.join(DATASETS)}")
    return _load(name, data_dir, cache_folder(cache_dir))


@cache
def _load(name: str, data_dir: Path | None, cache_dir: Path) -> Dataset:
    if data_dir is None:
        files = sources.cached_files(name, cache_dir)
    else:
        files = sources.given_files(name, data_dir.expanduser())
    arrays = {file: from_idx(content, file) for file, content in files.items()}
    images = arrays[sources.TRAIN_IMAGES]
    labels = arrays[sources.TRAIN_LABELS].astype(np.int64)
    return Dataset(
        name,
        train=Split(images[:TRAIN_SIZE], labels[:TRAIN_SIZE]),
        validation=Split(images[TRAIN_SIZE:], labels[TRAIN_SIZE:]),
        test=Split(arrays[sources.TEST_IMAGES], arrays[sources.TEST_LABELS].astype(np.int64)),
        fingerprint=hashlib.sha256(
            "".join(sources.ORIGINS[name].md5.values()).encode()
        ).hexdigest()[:16],
    )
