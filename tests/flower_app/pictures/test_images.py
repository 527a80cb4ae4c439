"""Pictures, arrays and tables as people have them, and what a model is shown of them."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from flower_app.data import load_dataset
from flower_app.errors import DataError
from flower_app.pictures.decoding import read_picture
from flower_app.pictures.digits import prepare
from flower_app.pictures.files import find_images, read_images

# A seven: light on dark, and not the same when it is turned or mirrored.
SEVEN = np.zeros((28, 28), dtype=np.uint8)
SEVEN[5:8, 6:22], SEVEN[8:24, 15:18] = 200, 180


def read(path: Path, **settings: str) -> tuple[list[np.ndarray], list[str]]:
    notes: list[str] = []
    images = [image for _, image in read_images(path, notify=notes.append, **settings)]  # type: ignore[arg-type]
    for image in images:
        if isinstance(image, DataError):
            raise image
        assert (image.dtype, image.shape) == (np.uint8, (28, 28))
    return images, notes  # type: ignore[return-value]


def picture(path: Path, image: Image.Image, **settings: object) -> Path:
    image.save(path, **settings)
    return path


def alike(read_pixels: np.ndarray, wanted: np.ndarray, *, within: int = 0) -> float:
    """The correlation of two images, one of them moved by so many pixels at most."""
    steps = range(-within, within + 1)
    moved = [np.roll(read_pixels, (down, right), (0, 1)) for down in steps for right in steps]
    return max(float(np.corrcoef(each.ravel(), wanted.ravel())[0, 1]) for each in moved)


def in_colour(values: np.ndarray, alpha: np.ndarray | int = 255) -> Image.Image:
    layers = [values, values, values, np.broadcast_to(alpha, values.shape)]
    return Image.fromarray(np.stack(layers, axis=2).astype(np.uint8), "RGBA")


def palette(image: Image.Image) -> Image.Image:
    return image.convert("P", palette=Image.Palette.ADAPTIVE)


def grey_with_colour_key(values: np.ndarray, key: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", transparency=key)
    return file.getvalue()


def turned(values: np.ndarray) -> tuple[Image.Image, Image.Exif]:
    """As a camera saves it that was held on its side: turned, and a note to turn it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return Image.fromarray(np.rot90(values)), exif


# A picture, what is seen of it, and what is said of the change.
WITHOUT_LOSS: dict[str, tuple[Callable[[], Image.Image], str | None]] = {
    "grey.png": (lambda: Image.fromarray(SEVEN), None),
    "grey.PNG": (lambda: Image.fromarray(SEVEN), None),
    "colour.png": (lambda: Image.fromarray(SEVEN).convert("RGB"), None),
    "palette.png": (lambda: palette(Image.fromarray(SEVEN).convert("RGB")), None),
    "grey.bmp": (lambda: Image.fromarray(SEVEN), None),
    "grey.tif": (lambda: Image.fromarray(SEVEN), None),
    "grey.gif": (lambda: Image.fromarray(SEVEN), None),
    "grey.pgm": (lambda: Image.fromarray(SEVEN), None),
    "opaque.png": (lambda: in_colour(SEVEN), None),
    "opaque-grey.png": (lambda: in_colour(SEVEN).convert("LA"), None),
    "deep.png": (lambda: Image.fromarray(SEVEN.astype(np.uint16) * 257), "16 bits"),
    "deep.tif": (lambda: Image.fromarray(SEVEN.astype(np.uint16) * 257), "16 bits"),
    "deep.pgm": (lambda: Image.fromarray(SEVEN.astype(np.uint16) * 257), "16 bits"),
    "inverted.png": (lambda: Image.fromarray(255 - SEVEN), "inverted"),
    "deep-inverted.png": (
        lambda: Image.fromarray((255 - SEVEN).astype(np.uint16) * 257),
        "inverted",
    ),
    "black-ink.png": (lambda: in_colour(np.zeros((28, 28)), SEVEN), "laid on white"),
    "white-ink.png": (lambda: in_colour(np.full((28, 28), 255), SEVEN), "laid on black"),
    "black-ink-grey.png": (
        lambda: in_colour(np.zeros((28, 28)), SEVEN).convert("LA"),
        "laid on white",
    ),
    # What is hidden under full transparency does not count.
    "hidden.png": (
        lambda: in_colour(np.where(SEVEN > 0, 0, 255), SEVEN),
        "laid on white",
    ),
}


@pytest.mark.parametrize("name", WITHOUT_LOSS)
def test_a_picture_of_the_right_size_is_seen_as_it_looks(name: str, tmp_path: Path) -> None:
    make, note = WITHOUT_LOSS[name]
    (read_pixels,), notes = read(picture(tmp_path / name, make()))
    np.testing.assert_allclose(read_pixels.astype(int), SEVEN.astype(int), atol=1)
    assert len(notes) == (note is not None)
    assert note is None or note in notes[0]


def test_one_bit_and_key_colours_and_lossy_pictures_are_seen_as_they_look(tmp_path: Path) -> None:
    (read_pixels,), notes = read(picture(tmp_path / "bit.png", Image.fromarray(SEVEN > 0)))
    np.testing.assert_array_equal(read_pixels, 255 * (SEVEN > 0))
    assert not notes
    # The background is a key colour: what is left is dark ink, or light ink.
    ink = np.where(SEVEN > 0, 40, 7).astype(np.uint8)
    (tmp_path / "key.png").write_bytes(grey_with_colour_key(ink, 7))
    (read_pixels,), notes = read(tmp_path / "key.png")
    np.testing.assert_array_equal(read_pixels, np.where(SEVEN > 0, 255 - 40, 0))
    assert "laid on white" in notes[0]
    for mode, name in (("L", "a.jpg"), ("RGB", "b.jpeg"), ("CMYK", "c.jpg"), ("L", "d.webp")):
        path = picture(tmp_path / name, Image.fromarray(SEVEN).convert(mode), quality=95)
        (read_pixels,), notes = read(path)
        assert alike(read_pixels, SEVEN) > 0.98, name
        assert not notes


def upsized(values: np.ndarray, side: int) -> np.ndarray:
    large = Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(large)


# How the colours of ink behave where a digit covers a pixel by so much.
INKS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "one colour": lambda cover, value: np.full_like(cover, value),
    "putalpha of the picture itself": lambda cover, value: cover,
    "white made transparent": lambda cover, value: 255 - cover,
    "fading to a grey": lambda cover, value: (value + (128.0 - value) * (1 - cover / 255.0)).astype(
        np.uint8
    ),
    "a gradient": lambda cover, value: np.broadcast_to(
        np.linspace(value, 255 - value, cover.shape[1]).astype(np.uint8), cover.shape
    ),
}
FORMS = ["smooth", "hard", "key", "half"]
DIGITS = load_dataset("mnist").test.images[:200]


@settings(max_examples=120, deadline=None)
@given(
    st.integers(0, len(DIGITS) - 1),
    st.sampled_from([28, 20, 56, 224]),
    st.sampled_from(sorted(INKS)),
    st.integers(0, 255),
    st.sampled_from(FORMS),
)
def test_ink_on_transparency_is_seen_by_where_it_is_opaque(
    index: int, side: int, ink: str, value: int, form: str
) -> None:
    digit = DIGITS[index]
    cover = digit if side == 28 else upsized(digit, side)
    alpha = {"smooth": cover, "half": cover // 2}.get(form, np.where(cover >= 128, 255, 0))
    layers = in_colour(INKS[ink](cover, value), alpha)
    file = io.BytesIO()
    if form == "key":  # one grey stands for what is transparent
        values = np.asarray(layers)[..., 0]
        key = next(grey for grey in range(256) if grey not in values[alpha > 0])
        file.write(grey_with_colour_key(np.where(alpha > 0, values, key).astype(np.uint8), key))
    else:
        layers.save(file, "PNG")
    grey, notes = read_picture(file.getvalue())
    read_pixels, _ = prepare(grey, "digit")
    opaque, _ = prepare(alpha.astype(np.uint8), "digit")  # the same picture, white on black
    assert alike(read_pixels, opaque, within=1) > 0.85
    assert "laid on" in notes[0]
    assert "own background" not in notes[0]


def outline(form: str, side: int) -> np.ndarray:
    """Where a sheet is opaque."""
    down, right = np.mgrid[:side, :side] - (side - 1) / 2
    half = side / 2
    inside = {
        "one pixel": np.hypot(down + half, right + half) > 1,
        "round corners": np.minimum(np.abs(down), np.abs(right)) <= 0.85 * half,
        "badge": np.hypot(down, right) <= half,
        "margin": np.maximum(np.abs(down), np.abs(right)) < 0.8 * half,
    }[form]
    return np.where(inside, 255, 0).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, len(DIGITS) - 1),
    st.sampled_from([28, 112, 224]),
    st.sampled_from(["one pixel", "round corners", "badge", "margin"]),
    st.sampled_from([(0, 255), (255, 0), (40, 230), (220, 30), (128, 255), (128, 0)]),
)
def test_a_digit_on_an_opaque_sheet_is_seen_on_that_sheet(
    index: int, side: int, form: str, colours: tuple[int, int]
) -> None:
    ground, ink = colours
    digit = DIGITS[index]
    # In a margin it lies, as MNIST's digits do in theirs.
    cover = np.zeros((side, side), dtype=np.uint8)
    inner = int(0.7 * side)
    at = (side - inner) // 2
    cover[at : at + inner, at : at + inner] = upsized(digit, inner)
    values = ground + (ink - ground) * (cover / 255)
    file = io.BytesIO()
    in_colour(values, outline(form, side)).save(file, "PNG")
    grey, notes = read_picture(file.getvalue())
    assert notes == ["its transparent parts laid on its own background"]
    sheet, _ = prepare(values, "digit")
    read_pixels, _ = prepare(grey, "digit")
    assert alike(read_pixels, sheet, within=1) > 0.9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(DIGITS) - 1), st.integers(0, 255), st.booleans())
def test_a_digit_cut_out_of_an_opaque_sheet_is_seen(index: int, value: int, fading: bool) -> None:
    digit = DIGITS[index]
    colours = 255 - digit if fading else np.full_like(digit, value)
    file = io.BytesIO()
    in_colour(colours, 255 - digit).save(file, "PNG")
    grey, _ = read_picture(file.getvalue())
    read_pixels, _ = prepare(grey, "digit")
    assert alike(read_pixels, digit) > 0.9


def test_a_camera_that_was_held_on_its_side(tmp_path: Path) -> None:
    image, exif = turned(SEVEN)
    for name in ("side.png", "side.jpg"):
        (read_pixels,), notes = read(picture(tmp_path / name, image, exif=exif))
        assert alike(read_pixels, SEVEN) > 0.98
        assert "turned" in notes[0]
    assert alike(np.rot90(SEVEN), SEVEN) < 0.5  # the control: it matters


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("size", [(280, 280), (56, 56), (20, 20)])
def test_a_picture_of_another_size_shows_the_same_digit(
    size: tuple[int, int], inverted: bool, tmp_path: Path
) -> None:
    for digit in load_dataset("mnist").test.images[:20]:
        small = Image.fromarray(255 - digit if inverted else digit)
        path = picture(tmp_path / "sized.png", small.resize(size, Image.Resampling.BICUBIC))
        (read_pixels,), notes = read(path)
        assert alike(read_pixels, digit, within=1) > 0.85
        assert f"{size[0]} by {size[1]}" in notes[0]
        assert ("inverted" in notes[0]) == inverted
        (read_pixels,), _ = read(path, fit="whole")
        assert alike(read_pixels, digit, within=1) > 0.85


def test_a_photograph_of_paper_shows_the_digit_on_it(tmp_path: Path) -> None:
    """Somewhere on the sheet, in a shadow that runs across, with a camera's noise, and a speck."""
    random = np.random.default_rng(0)
    for digit in load_dataset("mnist").test.images[:10]:
        ink = np.zeros((480, 640))
        top, left = random.integers(0, 200), random.integers(0, 360)
        large = Image.fromarray(digit).resize((280, 280), Image.Resampling.BICUBIC)
        ink[top : top + 280, left : left + 280] = np.asarray(large) / 255
        ink[470:473, 5:8] = 1.0
        light = np.linspace(210, 160, 640)
        values = light * (1 - 0.8 * ink) + random.normal(0, 6, ink.shape)
        photo = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
        (read_pixels,), notes = read(picture(tmp_path / "photo.jpg", photo.convert("RGB")))
        assert alike(read_pixels, digit, within=1) > 0.8
        assert "inverted" in notes[0]
        assert "cut out" in notes[0]


def test_a_pen_line_is_made_as_wide_as_the_models_know(tmp_path: Path) -> None:
    sheet = np.full((600, 600), 255, dtype=np.uint8)
    sheet[100:104, 200:400], sheet[100:500, 396:400] = 0, 0
    (read_pixels,), notes = read(picture(tmp_path / "pen.png", Image.fromarray(sheet)))
    assert "wider" in notes[0]
    assert (read_pixels > 128).any(axis=1).sum() >= 18  # of 20 rows: the line is not lost


def test_pixels_that_are_right_already_are_not_touched(tmp_path: Path) -> None:
    images = load_dataset("mnist").test.images[:500]
    np.save(tmp_path / "digits.npy", images)
    for fit in ("digit", "whole", "exact"):
        read_pixels, notes = read(tmp_path / "digits.npy", fit=fit)
        np.testing.assert_array_equal(np.stack(read_pixels), images)
        assert not notes
    np.save(tmp_path / "dark.npy", 255 - images)
    read_pixels, notes = read(tmp_path / "dark.npy")
    np.testing.assert_array_equal(np.stack(read_pixels), images)
    assert len(notes) == 1  # not once an image
    read_pixels, notes = read(tmp_path / "dark.npy", fit="exact")
    np.testing.assert_array_equal(np.stack(read_pixels), 255 - images)


@pytest.mark.parametrize("fit", ["digit", "whole", "exact"])
@pytest.mark.parametrize("white", [1.0, 255.0])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("ending", [".npy", ".csv"])
def test_numbers_just_past_their_range_are_clipped_and_reported(
    tmp_path: Path, fit: str, white: float, dtype: type, ending: str
) -> None:
    (wanted,), _ = read(picture(tmp_path / "whole.png", Image.fromarray(SEVEN)), fit=fit)
    for low, high in ((0.0, 1.0009), (-1e-9, 1.0), (-1e-4, 1.0 + 1e-7), (0.0, 0.8)):
        values = (SEVEN * (white / 255)).astype(np.float64)
        values[SEVEN == 0], values[SEVEN == 200] = low * white, high * 200 * white / 255
        if high >= 1:
            values[5, 6] = high * white
        path = tmp_path / f"edge{ending}"
        if ending == ".npy":
            np.save(path, values.astype(dtype))
        else:
            np.savetxt(path, values, delimiter=",", fmt="%.12g")
        (read_pixels,), notes = read(path, fit=fit)
        assert read_pixels.max() > 150
        assert alike(read_pixels, wanted) > 0.95
        stored = values.astype(dtype if ending == ".npy" else np.float64)
        beyond = stored.max() > white or stored.min() < 0
        assert any("clipped" in line for line in notes) == beyond


@pytest.mark.parametrize("fit", ["digit", "whole", "exact"])
@pytest.mark.parametrize("outlier", [1.01, 2.0, 31.5, 40.0, 200.5, 255.0])
@pytest.mark.parametrize("several", [False, True])
def test_fractions_of_neither_range_are_refused(
    tmp_path: Path, fit: str, outlier: float, several: bool
) -> None:
    values = SEVEN / 255 * 0.99
    values[10, 16] = outlier
    values = np.stack([SEVEN / 255 * 0.97, values]) if several else values
    np.save(tmp_path / "outlier.npy", values)
    np.savetxt(tmp_path / "outlier.csv", values.reshape(-1, 784), delimiter=",")
    for name in ("outlier.npy", "outlier.csv"):
        with pytest.raises(DataError, match="neither 0 to 1 nor 0 to 255"):
            read(tmp_path / name, fit=fit)


def test_blurred_drawings_of_255_are_taken(tmp_path: Path) -> None:
    drawn = Image.fromarray(np.kron(SEVEN, np.ones((9, 9), np.uint8)))
    small = np.pad(np.asarray(drawn, dtype=np.float64), 300)
    blurred = small.copy()
    for axis in (0, 1):
        blurred = sum(np.roll(blurred, by, axis) * 0.2 for by in range(-2, 3))
    np.save(tmp_path / "blurred.npy", blurred + 1e-12)
    (read_pixels,), _ = read(tmp_path / "blurred.npy")
    assert read_pixels.max() > 150


def test_whole_numbers_that_are_nearly_black_are_warned_of(tmp_path: Path) -> None:
    np.save(tmp_path / "faint.npy", SEVEN // 10)
    (read_pixels,), notes = read(tmp_path / "faint.npy", fit="exact")
    np.testing.assert_array_equal(read_pixels, SEVEN // 10)
    assert any("nearly black" in line for line in notes)


TWO = np.stack([SEVEN, np.where(SEVEN > 0, 255, 0).astype(np.uint8)])


@pytest.mark.parametrize(
    ("array", "wanted", "note"),
    [
        (TWO, TWO, None),
        (TWO.astype(np.int64), TWO, None),
        (TWO.astype(np.float32), TWO, None),
        (TWO / 255, TWO, "0 to 1"),
        ((TWO / 255).astype(np.float32), TWO, "0 to 1"),
        (TWO > 0, 255 * (TWO > 0), "0 to 1"),
        (TWO.astype(np.uint16) * 257, TWO, "16 bits"),
        (TWO[:, None], TWO, None),
        (TWO[..., None], TWO, None),
        (np.repeat(TWO[..., None], 3, axis=3), TWO, None),
        (np.repeat(TWO[:, None], 3, axis=1), TWO, None),
        (TWO.reshape(2, 784), TWO, None),
        (TWO[0], TWO[:1], None),
        (TWO[0].ravel(), TWO[:1], None),
        (TWO[:1], TWO[:1], None),
        (TWO[[0, 1, 0]], TWO[[0, 1, 0]], "as 3 grey pictures"),
    ],
)
def test_arrays_are_read_in_the_forms_that_people_keep_them(
    array: np.ndarray, wanted: np.ndarray, note: str | None, tmp_path: Path
) -> None:
    np.save(tmp_path / "a.npy", array)
    np.savez(tmp_path / "named.npz", images=array, labels=np.arange(2))
    np.savez_compressed(tmp_path / "only.npz", array)
    np.save(tmp_path / "misnamed.npy", array)
    (tmp_path / "misnamed.npy").rename(tmp_path / "misnamed.png")
    for name in ("a.npy", "named.npz", "only.npz", "misnamed.png"):
        read_pixels, notes = read(tmp_path / name)
        np.testing.assert_allclose(np.stack(read_pixels).astype(int), wanted, atol=1)
        assert [note in line for line in notes] == ([True] if note else [])


LINE = ",".join(map(str, SEVEN.ravel()))
NAMES = ",".join(f"pixel{i}" for i in range(784))


@pytest.mark.parametrize(
    ("text", "images", "note"),
    [
        (LINE, 1, None),
        (f"{LINE}\n{LINE}\n", 2, None),
        (f"{LINE}\r\n\r\n{LINE}\r\n", 2, None),
        (f"{NAMES}\n{LINE}\n", 1, None),
        (f"label,{NAMES}\n7,{LINE}\n1,{LINE}", 2, "first column left out"),
        (f"{NAMES},class\n{LINE},7\n", 1, "last column left out"),
        (f'"","{NAMES}"\n0,{LINE}'.replace(',"', ","), 1, "first column left out"),
        (f"7,{LINE}", 1, "first column left out"),
        (LINE.replace(",", ";"), 1, None),
        (LINE.replace(",", "\t"), 1, None),
        (LINE.replace(",", " "), 1, None),
        (LINE.replace(",", ", "), 1, None),
        (",".join(f"{v / 255:.6f}" for v in SEVEN.ravel()), 1, "0 to 1"),
        ("\n".join(",".join(map(str, row)) for row in SEVEN), 1, None),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_tables_are_read_in_the_forms_that_people_keep_them(
    text: str, images: int, note: str | None, encoding: str, tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    read_pixels, notes = read(tmp_path / "t.csv")
    assert len(read_pixels) == images
    for image in read_pixels:
        np.testing.assert_allclose(image.astype(int), SEVEN.astype(int), atol=1)
    assert [note in line for line in notes] == ([True] if note else [])


def refusals(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that nobody can answer about, and a word of what is said."""
    made: dict[str, tuple[Path, str]] = {}

    def add(name: str, content: bytes | Image.Image | np.ndarray | str, word: str) -> None:
        path = folder / name
        if isinstance(content, Image.Image):
            content.save(path)
        elif isinstance(content, np.ndarray):
            np.save(path, content)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        made[name] = path, word

    whole = io.BytesIO()
    Image.fromarray(np.tile(SEVEN, (9, 9))).save(whole, "PNG")
    add("empty.png", b"", "is empty")
    add("empty.csv", b"", "is empty")
    add("blank lines.csv", "\n\n", "is empty")
    add("broken.png", b"\x89PNG", "damaged")
    add("cut.png", whole.getvalue()[:-60], "damaged")
    add("text.png", "hello", "damaged")
    add("noise.bin", bytes(range(256)), "is not a picture")
    add("page.html", "<html></html>", "is not a picture")
    add("drawing.svg", "<svg></svg>", "is not a picture")
    add("phone.heic", b"\0\0\0\x18ftypheic" + bytes(40), "HEIC")
    add("black.png", Image.new("L", (28, 28)), "blank")
    add("white.png", Image.new("L", (28, 28), 255), "blank")
    add("white.jpg", Image.new("RGB", (400, 300), "white"), "blank")
    add("nothing.png", Image.new("RGBA", (28, 28)), "transparent")
    add("dot.png", Image.fromarray(SEVEN[5:8, 5:8]), "too few")
    add("wide.tif", Image.fromarray(SEVEN.astype(np.int32)), "32 bits")
    add("float.tif", Image.fromarray(SEVEN.astype(np.float32)), "32 bits")
    path = folder / "moving.gif"
    frames = [Image.fromarray(np.roll(SEVEN, k)) for k in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    made[path.name] = path, "holds 3 pictures"
    few = SEVEN.astype(np.uint16)
    for times, name, remedy in (
        (1, "8.png", "by 256 if they have 8 bits"),
        (4, "10.png", "by 64 if they have 10 bits"),
        (16, "12.tif", "by 16 if they have 12 bits"),
        (64, "14.png", "by 4 if they have 14 bits"),
    ):
        add(name, Image.fromarray(few * times), f"only, which are nearly black; .* {remedy}")
    add("12.npy", few * 16, "by 16 if they have 12 bits")
    add("12.csv", ",".join(str(16 * int(v)) for v in SEVEN.ravel()), "by 16 if they have 12 bits")
    add("faint.png", Image.fromarray(SEVEN // 10), "between 0 and 20, .*; raise its contrast")
    add("planes.npy", np.zeros((3, 224, 224), np.uint8), "give .height, width, colours.")
    add("planes4.npy", np.zeros((4, 30, 28), np.uint8), "give .height, width, colours.")
    add("last.npy", np.repeat(SEVEN[..., None], 9, axis=2), "the number of pictures first")
    add("columns.npy", np.repeat(SEVEN.reshape(-1, 1), 9, axis=1), "transpose it to .n, 784.")
    add("column.npy", SEVEN.reshape(-1, 1), "transpose it to .n, 784.")
    add("signed.npy", (SEVEN - 33.0) / 78, "normalisation")
    add("large.npy", SEVEN.astype(np.int64) * 10**6, "numbers from 0")
    add("half.npy", SEVEN + 100.5, "numbers from")
    add("nan.npy", np.where(SEVEN > 0, np.nan, 0), "not finite")
    add("complex.npy", SEVEN.astype(complex), "complex")
    add("words.npy", np.array(["a"]), "holds <U1")
    add("none.npy", np.zeros((0, 28, 28), np.uint8), "no picture")
    add("shape.npy", np.ones((2, 2, 28, 28, 2), np.uint8), "shape")
    add("black.npy", np.zeros((28, 28), np.uint8), "blank")
    add("objects.npy", b"\x93NUMPY\x01\x00", "cannot be read")
    add("cut.npz", b"PK\x03\x04abc", "cannot be read")
    with zipfile.ZipFile(folder / "letter.npz", "w") as letter:
        letter.writestr("letter.txt", "dear friend")
    made["letter.npz"] = folder / "letter.npz", "no array"
    np.savez_compressed(folder / "rotten.npz", SEVEN)
    rotten = bytearray((folder / "rotten.npz").read_bytes())
    rotten[60:90] = bytes(30)
    add("rotten.npz", bytes(rotten), "cannot be read")
    np.savez(folder / "mnist.npz", x_train=TWO, x_test=TWO)
    made["mnist.npz"] = folder / "mnist.npz", "x_train, x_test"
    add("short.csv", LINE.rpartition(",")[0], "783 columns")
    add("ragged.csv", f"{LINE}\n{LINE},1", "785 columns in line 2")
    add("words.csv", LINE.replace("180", "dark", 1), "holds a line of names")
    add("word.csv", f"{LINE}\n{LINE.replace('180', 'dark', 1)}", "'dark' in line 2")
    add("negative.csv", LINE.replace("180", "-1"), "numbers from -1")
    add("beyond.csv", LINE.replace("180", "180.5").replace("200", "300"), "to 300")
    add("nan.csv", LINE.replace("180", "nan"), "not finite")
    add("labels.csv", f"200,{LINE}", "label in a header")
    add("notes.txt", "dear diary\nnothing today", "is no number|columns")
    return made


def test_an_unreadable_file_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    for name, (path, word) in refusals(tmp_path).items():
        with pytest.raises(DataError, match=word) as caught:
            read(path)
        assert str(caught.value).startswith(name.rpartition("/")[2]), name
        assert "\n" not in str(caught.value)
    too_wide = picture(tmp_path / "wide.png", Image.fromarray(np.pad(SEVEN, ((0, 0), (0, 1)))))
    with pytest.raises(DataError, match="29 by 28 pixels; --fit exact takes 28 by 28"):
        read(too_wide, fit="exact")


def test_a_bad_image_among_good_ones_costs_itself_only(tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", np.stack([SEVEN, np.zeros_like(SEVEN), SEVEN]))
    read_pixels = list(read_images(tmp_path / "some.npy"))
    assert [name for name, _ in read_pixels] == ["some.npy[0]", "some.npy[1]", "some.npy[2]"]
    assert [isinstance(image, DataError) for _, image in read_pixels] == [False, True, False]


def test_a_folder_gives_its_images_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.csv", "d.npy", "readme.md", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "inside").mkdir()
    notes: list[str] = []
    read_pixels = [path.name for path in find_images(tmp_path, notify=notes.append)]
    assert read_pixels == ["a.JPG", "b.png", "c.csv", "d.npy"]
    assert len(notes) == 1
    assert "2 left out" in notes[0]
    for missing in (tmp_path / "none.png", tmp_path / "inside"):
        with pytest.raises(DataError, match=r"is not there|no images"):
            find_images(missing)


def refusal(content: bytes, fit: str = "digit") -> str | None:
    """What is said of these bytes on standard input if no image is in them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        try:
            images, _ = read(Path("-"), fit=fit)
        except DataError as error:
            return str(error)
    return None if images else ""


@settings(max_examples=150, deadline=None)
@given(
    arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.float32, np.float64, np.bool_]),
        st.tuples(st.integers(0, 40), st.integers(0, 40)),
    ),
    st.sampled_from(["digit", "whole", "exact"]),
)
def test_any_array_is_an_image_or_one_sentence(array: np.ndarray, fit: str) -> None:
    file = io.BytesIO()
    np.save(file, array)
    notes = refusal(file.getvalue(), fit)
    assert notes is None or notes.startswith("standard input")


@settings(max_examples=150, deadline=None)
@given(st.binary(min_size=0, max_size=200), st.sampled_from(["PNG", "GIF", "JPEG", "TIFF", "BMP"]))
def test_damaged_pictures_are_images_or_one_sentence(noise: bytes, kind: str) -> None:
    file = io.BytesIO()
    Image.fromarray(SEVEN).save(file, kind)
    content = bytearray(file.getvalue())
    middle = len(content) // 3
    content[middle : middle + len(noise)] = noise
    notes = refusal(bytes(content))
    assert notes is None or notes.startswith("standard input")
