"""Pictures of a task: a folder for each class, each picture scaled to one size."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError, counted
from flower_app.tasks.pictures import Pictures
from flower_app.tasks.tables import Examples
from privacy.imports import needing

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_MOST_PIXELS = 50_000_000


def read_class_folders(place: Path, classes: tuple[str, ...], form: Pictures) -> Examples:
    """The pictures in the folders of a client's classes.

    Raises
    ------
    DataError
        If none can be used; the message has the reason and the remedy.
    """
    if not place.is_dir():
        raise DataError(f"{place} is not a folder; put a folder for each class there")
    folders = [path for path in sorted(place.iterdir()) if path.is_dir()]
    faults = [
        f"{path}: left out, it is none of the classes {', '.join(classes)}"
        for path in folders
        if path.name not in classes
    ]
    values, labels, keys = [], [], []
    sizes: set[tuple[int, int]] = set()
    unreadable: list[str] = []
    for label, name in enumerate(classes):
        for file in picture_files(place / name) if (place / name).is_dir() else []:
            try:
                value, size = read_picture(file, form)
            except DataError as error:
                unreadable.append(str(error))
                continue
            values.append(value)
            labels.append(label)
            keys.append(hashlib.sha256(value.tobytes() + name.encode()).hexdigest())
            sizes.add(size)
    if unreadable:
        faults.append(f"{counted(len(unreadable), 'picture')} left out ({unreadable[0]})")
    if not values:
        raise DataError(
            "; ".join([*faults, f"{place}: there is no picture in a folder of a class; add some"])
        )
    scaled = [size for size in sorted(sizes) if size != (form.side, form.side)]
    notes: tuple[str, ...] = ()
    if scaled:
        width, height = scaled[0]
        notes = (
            f"{place}: pictures of other sizes (such as {width} by {height}) scaled to "
            f"{form.side} by {form.side}",
        )
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return Examples(
        inputs=np.stack([values[i] for i in order]),
        labels=np.array([labels[i] for i in order], dtype=np.int64),
        keys=tuple(keys[i] for i in order),
        notes=notes,
        faults=tuple(faults),
    )


def picture_files(folder: Path) -> list[Path]:
    """The pictures in a folder, by their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_ENDINGS)


def read_picture(path: Path, form: Pictures) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """A picture as a model sees it, float32 of ``form.shape`` from 0 (black) to 1; and its size.

    Raises
    ------
    DataError
        If it cannot be read.
    """
    with needing("a picture", extra="owner"):
        from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            size = picture.size
            if size[0] * size[1] > _MOST_PIXELS:
                raise DataError(f"{path} has more than {_MOST_PIXELS:,} pixels; make it smaller")
            plain = picture.convert("RGB" if form.colours else "L")
            scaled = plain.resize((form.side, form.side), Image.Resampling.BILINEAR)
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} cannot be read as a picture; replace it") from error
    array = np.asarray(scaled, dtype=np.float32) / np.float32(255)
    return np.moveaxis(array, 2, 0) if form.colours else array[None], size
