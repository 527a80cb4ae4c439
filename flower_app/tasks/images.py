"""Pictures of a task: a folder for each class, each picture scaled to one size."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_app.errors import DataError, counted
from flower_app.paths import is_folder, listed
from flower_app.pictures.endings import PICTURES
from flower_app.tasks.pictures import Pictures
from flower_app.tasks.tables import Examples
from privacy.imports import needing

_MOST_BYTES = 1 << 28
_OF_SYSTEMS = frozenset({"thumbs.db", "desktop.ini"})


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as a model sees it.

    Attributes
    ----------
    values : ndarray of float32
        Of the form's shape, from 0 (black) to 1.
    notes : tuple of str
        What was converted, in words.
    """

    values: NDArray[np.float32]
    notes: tuple[str, ...]


def read_class_folders(place: Path, classes: tuple[str, ...], form: Pictures) -> Examples:
    """The pictures in the folders of a client's classes.

    Raises
    ------
    DataError
        If none can be used; the message has the reason and the remedy.
    """
    if not is_folder(place):
        raise DataError(f"{place} is not a folder; put a folder for each class there")
    folders = [path for path in listed(place) if is_folder(path)]
    faults = [
        f"{path}: left out, it is none of the classes {', '.join(classes)}"
        for path in folders
        if path.name not in classes
    ]
    faults += left_out(place, visible_files(place), "lie in no class's folder")
    values, labels, keys = [], [], []
    converted: dict[str, list[str]] = {}
    unreadable: list[str] = []
    for label, name in enumerate(classes):
        folder = place / name
        if not is_folder(folder):
            continue
        files = picture_files(folder)
        others = [file for file in visible_files(folder) if file not in files]
        faults += left_out(folder, others, f"end in none of {', '.join(PICTURES)}")
        for file in files:
            try:
                picture = read_picture(file, form)
            except DataError as error:
                unreadable.append(str(error))
                continue
            values.append(picture.values)
            labels.append(label)
            keys.append(hashlib.sha256(picture.values.tobytes() + name.encode()).hexdigest())
            for note in picture.notes:
                converted.setdefault(note, []).append(f"{name}/{file.name}")
    if unreadable:
        faults.append(f"{counted(len(unreadable), 'picture')} left out ({unreadable[0]})")
    if not values:
        raise DataError(
            "; ".join([*faults, f"{place}: there is no picture in a folder of a class; add some"])
        )
    notes = tuple(
        f"{place}: {counted(len(names), 'picture')} (such as {names[0]}): {note}"
        for note, names in converted.items()
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
    return [path for path in listed(folder) if path.suffix.lower() in PICTURES]


def visible_files(folder: Path) -> list[Path]:
    """The files in a folder, by their names, but for those that systems put there."""
    return [
        path
        for path in listed(folder)
        if not is_folder(path)
        and not path.name.startswith(".")
        and path.name.lower() not in _OF_SYSTEMS
    ]


def left_out(place: Path, files: Sequence[Path], why: str) -> list[str]:
    """A fault in words, if there are such files: they ``why``."""
    several = f"{counted(len(files), 'file')} left out that {why}"
    return [f"{place}: {several} (such as {files[0].name})"] if files else []


def read_picture(path: Path, form: Pictures) -> Picture:
    """A picture as a model sees it.

    Turned as its camera held it, 16 bits a pixel brought to 8, transparent parts laid on white: the
    same whoever reads it, with a note.

    Raises
    ------
    DataError
        If it cannot be read, has 32 bits a pixel, or is several.
    """
    with needing("a picture", extra="owner"):
        from flower_app.pictures.scaled import read_scaled

    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"has more than {_MOST_BYTES >> 20} MB; make it smaller")
        values, notes = read_scaled(content, side=form.side, colours=form.colours)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path} {error}") from error
    return Picture(values, tuple(notes))
