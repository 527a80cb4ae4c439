"""Pictures as people have them: any depth, any colours, turned, transparent."""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from flower_app.data import DataError
from flower_app.digits import Grey

PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
_ORIENTATION = 0x0112  # of EXIF
_UPRIGHT = 1
_SHAPE_IN_COLOURS = 64  # so far apart, colours show something by themselves


class NoPictureError(DataError):
    """Bytes that are no picture of a kind that is read here."""


def read_picture(content: bytes) -> tuple[Grey, list[str]]:
    """Decode one picture.

    Returns
    -------
    grey : ndarray, shape (height, width)
        From 0 to 255.
    notes : list of str
        What was changed, in words.

    Raises
    ------
    NoPictureError
        If it is none.
    DataError
        If it is damaged, or nothing that can be seen as one grey picture; the message continues
        the picture's name.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(content), formats=_FORMATS) as picture:
                return _grey(picture)
        except UnidentifiedImageError as error:
            raise NoPictureError("is no picture") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise DataError(
                f"has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels; make it smaller"
            ) from error
        except DataError:
            raise
        except Exception as error:  # decoders raise whatever they stumble over
            raise DataError(f"cannot be read as a picture, it is damaged: {error}") from error


def _grey(picture: Image.Image) -> tuple[Grey, list[str]]:
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # of which a camera's further pictures are previews
        raise DataError(f"holds {frames} pictures; save the one to ask about by itself")
    notes = []
    if picture.getexif().get(_ORIENTATION, _UPRIGHT) != _UPRIGHT:
        notes.append("turned as its camera held it")
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16"):
        values = np.asarray(upright).astype(np.float64)
        see_through = upright.info.get("transparency")
        alpha = None if see_through is None else np.where(values == see_through, 0.0, 255.0)
        grey = values // 257
        notes.append("its 16 bits a pixel brought to 8")
    elif upright.mode == "I" and picture.format == "PPM":
        alpha, grey = None, np.asarray(upright, dtype=np.float64) // 257
        notes.append("its 16 bits a pixel brought to 8")
    elif upright.mode in ("I", "F"):
        raise DataError("has 32 bits a pixel; save it with 8 or 16")
    elif upright.has_transparency_data:
        layers = upright.convert("RGBA")
        alpha = np.asarray(layers.getchannel("A"), dtype=np.float64)
        grey = np.asarray(layers.convert("RGB").convert("L"), dtype=np.float64)
    else:
        coloured = upright.mode not in ("1", "L")
        whole = upright.convert("RGB") if coloured else upright
        alpha, grey = None, np.asarray(whole.convert("L"), dtype=np.float64)
    if alpha is not None and alpha.min() < 255:
        grey, note = laid(grey, alpha)
        notes.append(note)
    return grey, notes


def laid(grey: Grey, alpha: Grey) -> tuple[Grey, str]:
    """A transparent picture on the ground on which it can be seen, and what that was.

    Raises
    ------
    DataError
        If all of it is transparent.
    """
    seen = grey[alpha >= 128]
    if not seen.size:
        raise DataError("is blank: all of it is transparent")
    low, high = np.percentile(seen, (5, 95))
    if high - low >= _SHAPE_IN_COLOURS:
        ground, named = float(np.median(seen)), "its own background"
    elif seen.mean() < 128:
        ground, named = 255.0, "white"
    else:
        ground, named = 0.0, "black"
    return ground + (grey - ground) * alpha / 255, f"its transparent parts laid on {named}"
