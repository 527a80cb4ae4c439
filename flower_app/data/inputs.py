"""What a model sees of an image: its pixels or its features."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from flower_app.data import features
from flower_app.data.cache import cache_folder, shared_array
from flower_app.data.dataset import Dataset
from flower_app.data.features import hog_features

InputKind = Literal["hog", "pixels"]

PIXEL_LOW = -0.5
PIXEL_HIGH = 0.5

_CHUNK = 1000
# Features are computed again when the code that computes them changes.
_CODE = hashlib.sha256(Path(features.__file__).read_bytes()).hexdigest()[:12]


def encode(images: NDArray[np.uint8], kind: InputKind) -> NDArray[np.float32]:
    """Return what a model sees of images.

    Parameters
    ----------
    images
        uint8, (n, 28, 28).
    kind
        ``"hog"``: fixed features, (n, 392). ``"pixels"``: (n, 1, 28, 28), from -0.5 for black
        to 0.5 for white.

    Raises
    ------
    ValueError
        If ``images`` has another shape or type.
    """
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(
            f"images has shape {images.shape} and type {images.dtype}; make it (n, 28, 28) of uint8"
        )
    if kind == "hog":
        return hog_features(images)
    return (images[:, None] / np.float32(255) + np.float32(PIXEL_LOW)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Inputs:
    """A whole data set as a model sees it, row by row in the data set's order.

    Attributes
    ----------
    dataset
        The images.
    kind
        What the model sees of them.
    table
        float32, (70,000, 392), memory-mapped: the features of train, validation and test; none
        for pixels, which cost nothing to make.
    """

    dataset: Dataset
    kind: InputKind
    table: NDArray[np.float32] | None

    def train(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return some rows of the training images, float32 (len(rows), ...)."""
        if self.table is None:
            return encode(self.dataset.train.images[rows], self.kind)
        return np.array(self.table[rows])

    def validation(self) -> NDArray[np.float32]:
        """Return the validation images, float32 (10,000, ...)."""
        first = len(self.dataset.train)
        if self.table is None:
            return encode(self.dataset.validation.images, self.kind)
        return np.array(self.table[first : first + len(self.dataset.validation)])

    def test(self) -> NDArray[np.float32]:
        """Return the test images, float32 (10,000, ...)."""
        if self.table is None:
            return encode(self.dataset.test.images, self.kind)
        return np.array(self.table[-len(self.dataset.test) :])


def load_inputs(
    dataset: Dataset,
    kind: InputKind,
    *,
    cache_dir: Path | None = None,
    say: Callable[[str], None] | None = None,
) -> Inputs:
    """Return a data set as a model sees it.

    The first call anywhere computes the features of all images, in some seconds on all cores, and
    keeps them in the cache folder; later ones open the file.

    Parameters
    ----------
    dataset
        From ``load_dataset``.
    kind
        As for ``encode``.
    cache_dir
        Another cache folder than the user's.
    say
        Given a line of progress now and then.
    """
    if kind == "pixels":
        return Inputs(dataset, kind, None)
    path = cache_folder(cache_dir) / "features" / f"{dataset.fingerprint}-{kind}-{_CODE}.npy"
    table = shared_array(path, lambda: _features_of_all(dataset, say or _keep_quiet))
    return Inputs(dataset, kind, cast(NDArray[np.float32], table))


def _features_of_all(dataset: Dataset, say: Callable[[str], None]) -> NDArray[np.float32]:
    images = np.concatenate([dataset.train.images, dataset.validation.images, dataset.test.images])
    chunks = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
    say(f"Computing the features of {len(images):,} images, once")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = []
        for part in pool.map(hog_features, chunks):
            done.append(part)
            if len(done) % 10 == 0:
                say(f"Features: {min(len(done) * _CHUNK, len(images)):,} of {len(images):,} images")
    return np.concatenate(done)


def _keep_quiet(line: str) -> None:
    """Say nothing."""
