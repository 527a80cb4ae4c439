"""The drawing area: whose strokes it takes, when it asks, and what it makes of pictures."""

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from flower_app.pictures.decoding import read_picture
from flower_app.pictures.digits import prepare

BEGIN = """async () => {
    document.body.innerHTML =
        '<canvas id="drawing" width="256" height="256" tabindex="0" style="touch-action: none">' +
        '</canvas><span id="pen"></span><p id="place"></p>';
    const [drawing, pen, place] = document.body.children;
    const { Pad } = await import("/browser/pad.js");
    globalThis.asked = [];
    const at = (name) => () => asked.push(name);
    const on = { begun: () => {}, lifted: at("lifted"), done: at("enter") };
    globalThis.pad = new Pad(drawing, pen, place, on);
}"""
INK = """() => {
    const image = pad.image();
    return image ? image.values.filter((value) => value > 0).length : 0;
}"""


@pytest.fixture
def page(chromium: Any, modules: Any) -> Iterator[Any]:
    context = chromium.new_context(has_touch=True, viewport={"width": 400, "height": 400})
    page = context.new_page()
    page.goto(modules.url)
    page.evaluate(BEGIN)
    yield page
    context.close()


def at(page: Any, x: float, y: float) -> tuple[float, float]:
    box = page.locator("#drawing").bounding_box()
    return box["x"] + x, box["y"] + y


def stroke(page: Any, *points: tuple[float, float], button: str = "left") -> None:
    page.mouse.move(*at(page, *points[0]))
    page.mouse.down(button=button)
    for point in points[1:]:
        page.mouse.move(*at(page, *point))
    page.mouse.up(button=button)


def test_the_main_button_draws_and_nothing_else(page: Any) -> None:
    stroke(page, (50, 50), (200, 50), button="right")
    page.mouse.move(*at(page, 50, 200))
    assert page.evaluate(INK) == 0
    # The mouse passes over a pen that the keyboard put down.
    page.locator("#drawing").focus()
    page.keyboard.press("Space")
    dot = page.evaluate(INK)
    page.mouse.move(*at(page, 200, 200))
    assert page.evaluate(INK) == dot > 0
    assert page.evaluate("asked") == []
    page.keyboard.press("Space")
    stroke(page, (50, 50), (200, 50))
    page.keyboard.press("Enter")
    assert page.evaluate("asked") == ["lifted", "lifted", "enter"]


def test_a_stroke_over_the_edge_and_one_of_an_older_safari_are_drawn(page: Any) -> None:
    page.evaluate("() => { delete PointerEvent.prototype.getCoalescedEvents; }")
    stroke(page, (128, 128), (350, 128), (128, 200))
    assert page.evaluate(INK) > 2 * 18 * 100
    assert page.evaluate("asked") == ["lifted"]


def test_a_second_finger_draws_nothing_and_a_broken_stroke_asks_nothing(page: Any) -> None:
    touch = page.context.new_cdp_session(page)

    def send(kind: str, *points: tuple[float, float]) -> None:
        placed = [at(page, *point) for point in points]
        given = [{"x": x, "y": y, "id": n} for n, (x, y) in enumerate(placed)]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": given})

    send("touchStart", (40, 40))
    send("touchMove", (60, 40))
    line = page.evaluate(INK)
    send("touchStart", (60, 40), (220, 220))
    send("touchMove", (60, 40), (200, 220))
    assert page.evaluate(INK) == line > 0
    send("touchCancel")
    assert page.evaluate("asked") == []
    send("touchStart", (40, 90))
    send("touchMove", (90, 90))
    send("touchEnd")
    assert page.evaluate(INK) > line
    assert page.evaluate("asked") == ["lifted"]


def drawn(side: int, width: int, mode: str = "L") -> Image.Image:
    """A seven on paper, as a camera or a drawing program has it."""
    sheet = Image.new(mode, (side, side * 3 // 4), 215 if mode == "L" else (0, 0, 0, 0))
    points = [(0.3 * side, 0.15 * side), (0.55 * side, 0.15 * side), (0.42 * side, 0.6 * side)]
    ink = 40 if mode == "L" else (20, 20, 20, 255)
    ImageDraw.Draw(sheet).line(points, fill=ink, width=width, joint="curve")
    return sheet


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


SHOWN = """async ([picture, type]) => {
    const { digit } = await import("/browser/picture.js");
    const bytes = Uint8Array.from(atob(picture), (each) => each.charCodeAt(0));
    await pad.show(new File([bytes], "picture", { type }));
    return [...digit(pad.image())];
}"""


@pytest.mark.parametrize(("side", "width"), [(4000, 12), (4000, 3), (1500, 2), (1000, 40)])
def test_photos_of_every_size_become_what_python_makes_of_them(
    page: Any, side: int, width: int
) -> None:
    paper = np.asarray(drawn(side, width)) + np.random.default_rng(0).normal(0, 3, (1, side))
    content = png(Image.fromarray(np.clip(np.rint(paper), 0, 255).astype(np.uint8)))
    grey, _ = read_picture(content)
    expected, _ = prepare(grey, "digit")
    computed = page.evaluate(SHOWN, [base64.b64encode(content).decode(), "image/png"])
    assert np.abs(np.array(computed).reshape(28, 28) - expected.astype(int)).max() <= 1


def test_colours_and_a_cameras_turn_are_those_of_python(page: Any) -> None:
    """A photograph in four inks, on its side by its EXIF data."""
    turned = drawn(600, 30).rotate(90, expand=True).convert("CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", quality=95, exif=exif)
    grey, _ = read_picture(buffer.getvalue())
    expected, _ = prepare(grey, "digit")
    content = base64.b64encode(buffer.getvalue()).decode()
    computed = np.array(page.evaluate(SHOWN, [content, "image/jpeg"])).reshape(28, 28)
    assert np.abs(computed - expected.astype(int)).mean() < 3  # of 255; decoders differ


def test_a_transparent_picture_is_shown_as_it_is_taken(page: Any) -> None:
    content = base64.b64encode(png(drawn(300, 20, "RGBA"))).decode()
    assert max(page.evaluate(SHOWN, [content, "image/png"])) == 255
    corner, ink = page.evaluate(
        """() => {
            const context = document.getElementById("drawing").getContext("2d");
            const at = (x, y) => context.getImageData(x, y, 1, 1).data[0];
            return [at(4, 60), at(110, 71)];
        }"""
    )
    assert corner > 250
    assert ink < 60
