"""Picture files of any depth and colours, turned or transparent.

Messages of errors continue the picture's name.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from flower_app.errors import DataError

Grey = NDArray[np.float64]
"""Shape (height, width), from 0 (black) to 255 (white)."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = 1
_SHAPE_IN_COLOURS = 64  # levels between colours that show a shape by themselves
_SAMPLED_SIDE = 256  # pixels that suffice to decide on the ground
_FAINT = 32  # of 255: below it nothing is seen
_SOLID = 0.95  # of the most opaque pixel
_FILLED = 0.75  # of the edge: a sheet may have round corners
_WIDER_THAN_STROKES = 0.3  # half the width, of the length; MNIST's digits have at most a quarter
_FEWER_BITS = 14


class NoPictureError(DataError):
    """Bytes that are no picture of a supported kind."""


@dataclass(frozen=True)
class Opened:
    """One picture, upright.

    Attributes
    ----------
    image : Image
    numbers : ndarray or None
        From 0 to 65535, where it has 16 bits a pixel.
    notes : list of str
        What was changed, in words.
    """

    image: Image.Image
    numbers: Grey | None
    notes: list[str]


@contextmanager
def opened(content: bytes) -> Iterator[Opened]:
    """Open one picture for the block.

    Raises
    ------
    NoPictureError
        If it is none.
    DataError
        If it is damaged, has 32 bits a pixel, or is several.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                yield _upright(picture)
        except UnidentifiedImageError as error:
            raise NoPictureError("is no picture") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(
                f"has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels; make it smaller"
            ) from error
        except DataError:
            raise
        except Exception as error:  # decoders raise errors of all kinds
            raise DataError(f"cannot be read as a picture, it is damaged: {error}") from error


def read_picture(content: bytes) -> tuple[Grey, list[str]]:
    """Decode one picture: grey (height, width) from 0 to 255, and notes of changes.

    Raises
    ------
    NoPictureError
        If it is none.
    DataError
        If it is damaged, or cannot be seen as one grey picture.
    """
    with opened(content) as picture:
        return _grey(picture)


def _upright(picture: Image.Image) -> Opened:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # of which a camera's further pictures are previews
        raise DataError(f"holds {frames} pictures; save the one to ask about by itself")
    notes = []
    if picture.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        notes.append("turned as its camera held it")
    upright = ImageOps.exif_transpose(picture)
    numbers = None
    if upright.mode.startswith("I;16") or (upright.mode == "I" and picture.format == "PPM"):
        numbers = np.asarray(upright).astype(np.float64)
    elif upright.mode in ("I", "F"):
        raise DataError("has 32 bits a pixel; save it with 8 or 16")
    return Opened(upright, numbers, notes)


def _grey(picture: Opened) -> tuple[Grey, list[str]]:
    alpha, notes, image = None, [*picture.notes], picture.image
    if picture.numbers is not None:
        alpha = transparency(picture)
        grey, note = from_16_bits(picture.numbers)
        notes.append(note)
    elif image.has_transparency_data:
        layers = image.convert("RGBA")
        alpha = np.asarray(layers.getchannel("A"), dtype=np.float64)
        grey = np.asarray(layers.convert("RGB").convert("L"), dtype=np.float64)
    else:
        opaque = image if image.mode in ("1", "L") else image.convert("RGB")
        grey = np.asarray(opaque.convert("L"), dtype=np.float64)
    if alpha is not None and alpha.min() < 255:
        grey, note = on_visible_ground(grey, alpha)
        notes.append(note)
    return grey, notes


def transparency(picture: Opened) -> Grey | None:
    """How opaque each pixel of 16 bits is, 0 or 255; None where all are."""
    transparent = picture.image.info.get("transparency")
    return None if transparent is None else np.where(picture.numbers == transparent, 0.0, 255.0)


def from_16_bits(values: Grey) -> tuple[Grey, str]:
    """Numbers from 0 to 65535 as grey from 0 to 255, and a note.

    Raises
    ------
    DataError
        If they have fewer bits: 8, 10, 12 or 14 of a scanner or a camera, which would look black.
    """
    low, high = float(values.min()), float(values.max())
    bits = max(8, int(high).bit_length())
    if bits <= _FEWER_BITS and low < high:
        raise DataError(
            f"has 16 bits a pixel and numbers from {low:g} to {high:g} only, which are nearly "
            f"black; multiply them by {1 << (16 - bits)} if they have {bits} bits, or save it "
            "with 8 bits a pixel"
        )
    return values // 257, "its 16 bits a pixel brought to 8"


def on_visible_ground(grey: Grey, alpha: Grey) -> tuple[Grey, str]:
    """A transparent picture on a ground on which it is visible, and a note which one.

    Opaque pixels that make up a sheet, with a shape in their colours, are laid on the sheet's own
    background. Everything else is ink: it is opaque in its shape, whatever its colours, and is
    laid on black or white, from which it differs.

    Raises
    ------
    DataError
        If all of it is transparent.
    """
    from scipy import ndimage  # takes as long to load as an answer

    step = max(1, max(grey.shape) // _SAMPLED_SIDE)
    levels, cover = grey[::step, ::step], alpha[::step, ::step]
    top = float(cover.max())
    if top < _FAINT:
        raise DataError("is blank: all of it is transparent")
    opaque = cover >= top / 2
    # At the rim of a stroke colours and transparency fade together: only solid pixels count.
    solid = opaque if opaque.all() else cover >= _SOLID * top
    colourful = np.ptp(levels[solid]) >= _SHAPE_IN_COLOURS
    if colourful and _is_a_sheet(opaque):
        inwards = ndimage.distance_transform_edt(np.pad(opaque, 1))[1:-1, 1:-1]
        rim = solid & (inwards <= max(1.5, inwards.max() / 8))
        ground = float(np.median(levels[rim if rim.any() else solid]))
        note = "its transparent parts laid on its own background"
        return ground + (grey - ground) * alpha / 255, note
    ink = float(np.median(levels[solid]))
    ground, name = (255.0, "white") if ink < 128 else (0.0, "black")
    note = f"its transparent parts laid on {name}"
    if colourful:
        note += ", its shape taken from them and not from its colours"
    return ground + (ink - ground) * alpha / 255, note


def _is_a_sheet(opaque: NDArray[np.bool_]) -> bool:
    """Whether opaque pixels are a sheet (a card, a round badge) rather than a drawing.

    A sheet fills the picture's edge, or is wider than any stroke.
    """
    from scipy import ndimage

    edge = np.concatenate([opaque[0], opaque[-1], opaque[:, 0], opaque[:, -1]])
    if edge.mean() >= _FILLED:
        return True
    rows, columns = (np.flatnonzero(opaque.any(axis=axis)) for axis in (1, 0))
    length = 1 + max(np.ptp(rows), np.ptp(columns))
    half_width = float(ndimage.distance_transform_edt(np.pad(opaque, 1)).max())
    return bool(half_width >= _WIDER_THAN_STROKES * length)
