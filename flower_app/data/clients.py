"""The data of one client: its share in a simulation, or a deployed SuperNode's own folder."""

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.data.dataset import Split
from flower_app.data.idx import from_idx, plain_or_packed, read_plain
from flower_app.data.inputs import InputKind, Inputs, encode
from flower_app.data.partitions import Partitions
from flower_app.data.sources import TRAIN_IMAGES, TRAIN_LABELS
from flower_app.errors import DataError
from flower_app.paths import is_folder, listed

CLASSES = 10

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClientData:
    """A client's examples as its model sees them: float32 (n, ...), and int64 labels (n,)."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def no_data(kind: InputKind) -> ClientData:
    """Return the data of a client without examples."""
    return ClientData(encode(np.zeros((0, 28, 28), np.uint8), kind), np.zeros(0, np.int64))


def simulated_client(inputs: Inputs, partitions: Partitions, client: int) -> ClientData:
    """Return the data of a simulated client; ``IndexError`` if there is no such client."""
    rows = partitions.rows(client)
    return ClientData(inputs.train(rows), inputs.dataset.train.labels[rows])


@cache
def load_client_folder(folder: Path, kind: InputKind) -> ClientData:
    """The examples in a SuperNode's own folder; see :func:`load_node_folder`."""
    split = load_node_folder(folder)
    return ClientData(encode(split.images, kind), np.array(split.labels))


def load_node_folder(folder: Path) -> Split:
    """Return the images in a SuperNode's own folder.

    The folder holds either one ``.npz`` file with ``images``, uint8 (n, 28, 28), and ``labels``,
    integers (n,) from 0 to 9, or the IDX files ``train-images-idx3-ubyte`` and
    ``train-labels-idx1-ubyte`` (also compressed, ``.gz``; also below it in ``MNIST/raw`` or
    ``FashionMNIST/raw``, where torchvision puts them).

    An example whose label is no digit is left out, with an error in the log.

    Raises
    ------
    DataError
        If nothing can be used, with every file's fault and the remedy.
    """
    split, faults = _read(folder.expanduser())
    if split is None:
        raise DataError("; ".join(faults))
    for fault in faults:
        _log.error("Left out: %s", fault)
    return split


def check_node_folder(folder: Path) -> list[str]:
    """Return the faults of the files in a SuperNode's own folder."""
    return _read(folder.expanduser())[1]


def _read(folder: Path) -> tuple[Split | None, list[str]]:
    if not is_folder(folder):
        return None, [f"{folder} is not a folder; set data-dir to the one with this node's images"]
    try:
        archives = [path for path in listed(folder) if path.suffix == ".npz"]
    except DataError as error:
        return None, [str(error)]
    if len(archives) > 1:
        names = ", ".join(path.name for path in archives)
        return None, [f"{folder} holds several .npz files ({names}); leave one"]
    try:
        images, labels, where = _from_npz(archives[0]) if archives else _from_idx_files(folder)
    except DataError as error:
        return None, [str(error)]
    faults = _faults(images, labels, where)
    if faults:
        return None, faults
    good = (labels >= 0) & (labels < CLASSES)
    bad = np.flatnonzero(~good)
    if len(bad):
        some = ", ".join(f"{labels[row]} of image {row}" for row in bad[:5])
        more = f" and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        faults = [f"{where}: not every label is from 0 to {CLASSES - 1} ({some}{more})"]
    if not good.any():
        return None, [*faults, f"{where}: there are no images that can be used; add some"]
    return Split(images[good], labels[good].astype(np.int64)), faults


def _from_npz(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64], str]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            missing = {"images", "labels"} - set(archive.files)
            if missing:
                raise DataError(f"{path} has no {' and no '.join(sorted(missing))}; add it")
            images, labels = archive["images"], archive["labels"]
            if not (isinstance(images, np.ndarray) and isinstance(labels, np.ndarray)):
                raise DataError(f"{path} holds something else than arrays; write it with np.savez")
            return images, labels, str(path)
    except DataError:
        raise
    except Exception as error:  # archives and headers fail in many ways
        raise DataError(f"{path} cannot be read ({error}); replace it") from error


def _from_idx_files(folder: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], str]:
    places = (folder, folder / "MNIST" / "raw", folder / "FashionMNIST" / "raw")
    arrays = []
    for name in (TRAIN_IMAGES, TRAIN_LABELS):
        path = plain_or_packed(places, name)
        if path is None:
            raise DataError(
                f"{folder} has neither a .npz file nor {name}; put this node's images there"
            )
        arrays.append(from_idx(read_plain(path), str(path)))
        where = str(path.parent)
    return arrays[0], arrays[1], where


def _faults(images: NDArray[np.generic], labels: NDArray[np.generic], where: str) -> list[str]:
    faults = []
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        faults.append(
            f"{where}: images are {images.dtype} of shape {images.shape}; "
            "make them uint8 of shape (n, 28, 28)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.ndim != 1:
        faults.append(
            f"{where}: labels are {labels.dtype} of shape {labels.shape}; "
            "make them integers of shape (n,)"
        )
    if not faults and len(images) != len(labels):
        faults.append(
            f"{where}: {len(images):,} images and {len(labels):,} labels; make them as many"
        )
    return faults
