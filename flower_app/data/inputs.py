"""The inputs of a model: an image's features, or its pixels once it stands upright.

Both are fixed and public, and whoever holds the image computes them: a client before training, a
data owner before encrypting.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flower_app.data import features, typical
from flower_app.data.cache import cache_folder, code_version, shared_array
from flower_app.data.dataset import Dataset

InputKind = Literal["hog", "pixels", "own"]

_CHUNK = 1000
_CODE = code_version(features, typical)


def encode(images: NDArray[Any], kind: InputKind) -> NDArray[np.float32]:
    """Return a model's inputs from images, uint8 (n, 28, 28).

    ``"hog"``: fixed features, (n, 392), each from ``FEATURE_LOW`` to ``FEATURE_HIGH``.
    ``"pixels"``: the pixels of the straightened image, (n, 1, 28, 28), in steps of 1/255 from 0 for
    blank to 1 for ink. Other images raise ``ValueError``. ``"own"``: examples of a user's own data,
    which are a model's inputs as they are.
    """
    if kind == "own":
        return _decoded(images)
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"images has shape {images.shape} and type {images.dtype}; make it (n, 28, 28) of uint8"
        )
    return _decoded(_computed(images, kind))


def _computed(images: NDArray[np.uint8], kind: InputKind) -> NDArray[np.generic]:
    """The slow part: float32 (n, 392), or pixels as uint8 (n, 28, 28)."""
    if kind == "hog":
        return features.hog_features(images)
    return np.rint(features.upright(images) * 255).astype(np.uint8)


def _decoded(rows: NDArray[np.generic]) -> NDArray[np.float32]:
    """Return a copy of rows of the cached table, as a model takes them."""
    if rows.dtype == np.uint8:
        return rows[:, None].astype(np.float32) / np.float32(255)
    return np.array(rows, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A whole data set as a model sees it: a ``table``, row by row in its order."""

    dataset: Dataset
    table: NDArray[np.generic]

    def train(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows of the training images, float32 (len(rows), ...)."""
        return _decoded(self.table[: len(self.dataset.train)][rows])

    def validation(self) -> NDArray[np.float32]:
        """Return the validation images, float32 (10,000, ...)."""
        before = len(self.dataset.train)
        return _decoded(self.table[before : before + len(self.dataset.validation)])

    def test(self, rows: slice = slice(None)) -> NDArray[np.float32]:
        """Return the test images, or some of them, float32 (10,000, ...)."""
        before = len(self.dataset.train) + len(self.dataset.validation)
        return _decoded(self.table[before : before + len(self.dataset.test)][rows])


def load_inputs(
    dataset: Dataset,
    kind: InputKind,
    *,
    cache_dir: Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Inputs:
    """Return a data set as a model sees it.

    The first call anywhere computes it for all images, in some seconds on all cores, and keeps it
    in ``cache_dir`` or the user's cache folder; later ones open the file. ``notify`` receives lines
    of progress.
    """
    path = cache_folder(cache_dir) / "inputs" / f"{dataset.fingerprint}-{kind}-{_CODE}.npy"
    return Inputs(
        dataset, shared_array(path, lambda: _all(dataset, kind, notify or (lambda line: None)))
    )


def _all(dataset: Dataset, kind: InputKind, notify: Callable[[str], None]) -> NDArray[np.generic]:
    images = np.concatenate(
        [part.images for part in (dataset.train, dataset.validation, dataset.test)]
    )
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    quantity = {"hog": "the features", "pixels": "the upright pixels"}[kind]
    notify(f"Computing {quantity} of {len(images):,} images, once")
    done: list[NDArray[np.generic]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(lambda chunk: _computed(chunk, kind), chunks):
            done.append(part)
            if len(done) % 20 == 0 and len(done) < len(chunks):
                notify(f"  {len(done) * _CHUNK:,} of {len(images):,} images")
    return np.concatenate(done)
