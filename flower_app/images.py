"""Images from a data owner's disk: a file, an array, or a folder of both."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from flower_app.data import DataError

_PICTURES = (".png", ".jpg", ".jpeg")
_ARRAYS = (".npy", ".npz")
_SIDE = 28


def find_images(path: Path) -> list[Path]:
    """The files at a path, in order of their names.

    Raises
    ------
    DataError
        If there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path} is not there; give an image, a .npy or .npz file, or a folder")
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES + _ARRAYS)
    if not found:
        raise DataError(f"{path} holds no images; they end in {', '.join(_PICTURES + _ARRAYS)}")
    return found


def read_images(path: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """The images in a file, each uint8 (28, 28), with a name.

    Raises
    ------
    DataError
        If it cannot be read, or holds something else.
    """
    suffix = path.suffix.lower()
    try:
        if suffix in _ARRAYS:
            images = np.load(path, allow_pickle=False)
            if suffix == ".npz":
                images = images["images"]
        elif suffix in _PICTURES:
            images = _picture(path)
        else:
            raise DataError(f"{path} is no image; give {', '.join(_PICTURES + _ARRAYS)}")
    except (OSError, ValueError, KeyError, EOFError, UnidentifiedImageError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read: {error}") from error
    several = images.ndim == 3
    if images.dtype != np.uint8 or images.shape[several:] != (_SIDE, _SIDE):
        raise DataError(
            f"{path} holds {images.dtype} of shape {images.shape}; images are 28 by 28, 0 to 255 "
            "(uint8), light on dark as MNIST's"
        )
    for index, image in enumerate(images if several else images[None]):
        yield (f"{path.name}[{index}]" if several else path.name), image


def _picture(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        # Looked at before anything is decompressed.
        if picture.size != (_SIDE, _SIDE):
            width, height = picture.size
            raise DataError(f"{path} has {width} by {height} pixels; make it 28 by 28")
        return np.asarray(picture.convert("L"), dtype=np.uint8)
