"""Pictures of any kind scaled to one size, grey or in colours, for a model of a user's own."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flower_app.errors import DataError
from flower_app.pictures.decoding import Opened, from_16_bits, opened, transparency

_MOST_PIXELS = 50_000_000


def read_scaled(
    content: bytes, *, side: int, colours: bool
) -> tuple[NDArray[np.float32], list[str]]:
    """A picture, float32 (1 or 3, side, side) from 0 (black) to 1, and notes of changes.

    Messages of errors continue the picture's name.

    Raises
    ------
    DataError
        If it is none, damaged, too large, of 32 bits a pixel, or several.
    """
    with opened(content) as picture:
        width, height = picture.image.size
        if width * height > _MOST_PIXELS:
            raise DataError(f"has more than {_MOST_PIXELS:,} pixels; make it smaller")
        notes = [*picture.notes]
        plain = _eight_bits(picture, notes).convert("RGB" if colours else "L")
        if (width, height) != (side, side):
            notes.append(f"of another size, scaled to {side} by {side}")
        scaled = plain.resize((side, side), Image.Resampling.BILINEAR)
    array = np.asarray(scaled, dtype=np.float32) / np.float32(255)
    return np.moveaxis(array, 2, 0) if colours else array[None], notes


def _eight_bits(picture: Opened, notes: list[str]) -> Image.Image:
    """The picture with 8 bits a pixel and colour, and nothing transparent."""
    image = picture.image
    if picture.numbers is not None:
        cover = transparency(picture)
        numbers, note = from_16_bits(picture.numbers)
        notes.append(note)
        image = Image.fromarray(numbers.astype(np.uint8))
        if cover is not None:
            image.putalpha(Image.fromarray(cover.astype(np.uint8)))
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        if np.asarray(layers.getchannel("A")).min() < 255:
            white = Image.new("RGBA", layers.size, "white")
            notes.append("its transparent parts laid on white")
            return Image.alpha_composite(white, layers).convert("RGB")
        return layers.convert("RGB")
    return image if image.mode in ("1", "L") else image.convert("RGB")
