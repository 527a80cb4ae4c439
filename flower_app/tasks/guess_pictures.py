"""A first ``task.toml`` from somebody's pictures, with each guess in words for them to check."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flower_app.errors import DataError, counted
from flower_app.paths import is_folder, listed
from flower_app.tasks.guess import TEST_SHARE, Guess, guessed_mode, quoted, silos_lines, task_text
from flower_app.tasks.images import picture_files
from flower_app.tasks.pictures import Pictures
from privacy.imports import needing

if TYPE_CHECKING:
    from PIL import Image

_SIDE, _LEAST_SIDE = 28, 8
_FORM = "a folder for each client, and in that a folder for each class with its pictures"
_LOOKED_AT = 200
"""Pictures that are opened: whether any has colours, and how large they are."""


def guess_pictures(folder: Path, *, written_as: str, mode: str | None = None) -> Guess:
    """Guess a task from a folder of clients' folders of classes' folders of pictures.

    Parameters
    ----------
    folder : Path
    written_as : str
        Its path as ``task.toml`` is to name it.
    mode : str, optional
        "clients" or "silos"; by default silos where there are few.

    Raises
    ------
    DataError
        If there are none, or fewer than two classes.
    """
    if not is_folder(folder):
        raise DataError(f"{folder} is not a folder; give one with {_FORM}")
    clients = list(_folders(folder))
    counts: Counter[str] = Counter()
    files: list[Path] = []
    for client in clients:
        for place in _folders(client):
            pictures = picture_files(place)
            if pictures:
                counts[place.name] += len(pictures)
                files += pictures
    if not files:
        lies = next((place for place in (folder, *clients) if picture_files(place)), None)
        where = f": pictures lie in {lies} itself" if lies else ""
        raise DataError(f"{folder} does not hold {_FORM}{where}; order them so")
    classes = sorted(counts)
    if len(classes) < 2:
        raise DataError(
            f"{folder} has pictures of one class, {classes[0]}; a model tells two apart"
        )
    form, seen = _form(files)
    many, why = guessed_mode(mode, len(clients))
    lines = [
        f"clients: {len(clients):,} folders, such as {clients[0].name}",
        "classes: " + ", ".join(f"{name} ({counts[name]:,} pictures)" for name in classes),
        seen,
        why if many else f"{why}: each picture is hidden by itself, for pictures name no persons",
    ]
    privacy = 'mode = "clients"\n' if many else silos_lines(len(clients), len(files))
    data = (
        f"clients = {quoted(written_as)}\n"
        f"test-share = {TEST_SHARE}\n"
        "# The classes below were read from the folders' names. If it is known without looking\n"
        "# that there are these, write true: until then run refuses.\n"
        "ranges-are-public = false\n"
    )
    return Guess(
        task_text(name=folder.name, data=data, pictures=form, classes=classes, privacy=privacy),
        tuple(lines),
        "The classes were read from the data: if they are known without looking, write "
        "ranges-are-public = true in task.toml. Until then run refuses.",
    )


def _form(files: list[Path]) -> tuple[Pictures, str]:
    """The form of some of the pictures, and how it came about, in words."""
    with needing("a picture", extra="owner"):
        from PIL import Image

    sides: list[int] = []
    coloured = False
    step = max(1, len(files) // _LOOKED_AT)
    for file in files[::step]:
        try:
            with Image.open(file) as picture:
                sides.append(min(picture.size))
                coloured = coloured or not _is_grey(picture)
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # check-data names them
    if not sides:
        raise DataError(f"{files[0]} and the others cannot be read as pictures; replace them")
    side = max(_LEAST_SIDE, min(_SIDE, min(sides)))
    kind = "in colours" if coloured else "grey"
    return Pictures(side, coloured), (
        f"pictures: {kind}, the shorter side {_from_to(sides)} pixels, in "
        f"{counted(len(sides), 'picture')} looked at; each is scaled to {side} by {side}"
    )


def _from_to(sides: list[int]) -> str:
    least, most = min(sides), max(sides)
    return f"{least}" if least == most else f"{least} to {most}"


def _is_grey(picture: "Image.Image") -> bool:
    if picture.mode in ("1", "L", "LA", "I", "I;16", "F"):
        return True
    small = picture.convert("RGB").resize((16, 16))
    red, green, blue = small.split()
    return bool(red.tobytes() == green.tobytes() == blue.tobytes())


def _folders(place: Path) -> Iterator[Path]:
    for path in listed(place):
        if is_folder(path) and not path.name.startswith("."):
            yield path
