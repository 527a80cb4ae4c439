"""Digits that are drawn or dropped into the page are answered as Python answers them."""

import base64
import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from flower_app.commands.page import page_of
from flower_app.data import drawn_images, encode
from flower_app.models.specs import MODELS
from flower_app.pictures.decoding import read_picture
from flower_app.pictures.digits import prepare
from flower_app.processes.certificates import Certificates
from privacy.inference import CompiledModel, EvaluatorPool
from tests.privacy.inference.evaluator.evaluator_program import start_process
from tests.privacy.inference_service.browser.digit_models import cnn_model, hog_model
from tests.privacy.inference_service.serving import serving

READY = re.compile("^Ready")


def strokes() -> np.ndarray:
    """Images in MNIST's form, most of them of strokes: (50, 28, 28)."""
    drawn = drawn_images()
    turned = [ndimage.rotate(image, 35, reshape=False, order=1) for image in drawn[1:]]
    return np.concatenate([drawn[1:], np.clip(np.stack(turned), 0, 255).astype(np.uint8)])[:50]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_features_agree_with_pythons(modules: Any) -> None:
    images = np.concatenate([strokes(), np.zeros((1, 28, 28), np.uint8)])
    computed = modules.evaluate(
        """async (images) => {
            const { hog, pixels } = await import("/browser/features.js");
            const both = (image) => [hog(image), pixels(image)].map((each) => [...each]);
            return images.map((image) => both(Uint8Array.from(image)));
        }""",
        images.reshape(len(images), -1).tolist(),
    )
    hog, pixels = (np.array(part) for part in zip(*computed, strict=True))
    # At exactly 45 degrees numpy's arctan2 in 32 bits may be one unit off, of which a square root
    # makes more than that: so filled shapes, a quarter of the drawn images, differ by up to 1e-4.
    differences = np.abs(hog - encode(images, "hog")).max(axis=1)
    assert np.median(differences) < 2e-6
    assert np.mean(differences < 1e-5) > 0.8
    assert differences.max() < 1e-4
    assert np.array_equal(
        pixels.astype(np.float32).reshape(-1, 1, 28, 28), encode(images, "pixels")
    )


def pictures() -> dict[str, np.ndarray]:
    """Grey pictures (height, width) as people have them."""
    random = np.random.default_rng(0)
    drawn = drawn_images()
    large = [ndimage.zoom(image.astype(float), 10, order=1) for image in drawn[1:4]]
    sheet = 230 - 0.8 * np.pad(large[0], ((40, 10), (60, 30)))
    sheet += random.normal(0, 4, sheet.shape) + np.linspace(-15, 10, sheet.shape[1])
    thin = np.zeros((400, 300))
    thin[60:340, 150:152] = 255.0
    specked = large[1].copy()
    specked[3:6, 3:6] = 200.0
    return {
        "light on dark": large[0],
        "a sheet in uneven light": np.clip(sheet, 0, 255),
        "thin strokes": thin,
        "specks": specked,
        "28 by 28, dark on light": 255.0 - drawn[5],
        "28 by 28 on grey": 60.0 + 0.7 * drawn[6],
        "small": ndimage.zoom(drawn[7].astype(float), 0.6, order=1),
    }


@pytest.mark.parametrize("name", pictures())
def test_a_picture_is_brought_to_a_digits_form_as_python_does(modules: Any, name: str) -> None:
    grey = np.rint(np.clip(pictures()[name], 0, 255))
    expected, _ = prepare(grey, "digit")
    height, width = grey.shape
    computed = modules.evaluate(
        """async ([width, height, values]) => {
            const { digit } = await import("/browser/picture.js");
            return [...digit({ width, height, values: Float64Array.from(values) })];
        }""",
        [width, height, grey.ravel().tolist()],
    )
    difference = np.abs(np.array(computed).reshape(28, 28) - expected.astype(int))
    assert difference.max() <= 1


# Each picture is dropped into the page, and the answer read there.
DROP_ALL = """async (pictures) => {
    const status = document.getElementById("status");
    const answers = [];
    for (const picture of pictures) {
        const bytes = Uint8Array.from(atob(picture), (each) => each.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "digit.png", { type: "image/png" }));
        const answered = new Promise((resolve) => {
            const observer = new MutationObserver(() => {
                if (!status.textContent.startsWith("Answered")) return;
                observer.disconnect();
                resolve();
            });
            observer.observe(status, { childList: true });
        });
        document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer }));
        await answered;
        answers.push(Number(document.querySelector("#answer strong").textContent));
    }
    return answers;
}"""


# The longest of the browser's tests: 50 encrypted questions to a network with squares.
@pytest.mark.parametrize(("name", "compiling"), [("hog-linear", hog_model), ("cnn", cnn_model)])
def test_fifty_images_are_answered_as_in_the_clear(
    chromium: Any,
    certificates: Certificates,
    tmp_path: Path,
    name: str,
    compiling: Callable[[], CompiledModel],
) -> None:
    spec = MODELS[name]
    images = strokes()
    assert len(images) == 50
    compiled = compiling()
    expected = compiled.predict(encode(images, spec.kind)).argmax(axis=1)
    assert len(set(expected.tolist())) > 1
    with (
        EvaluatorPool(partial(start_process, compiling), processes=1) as pool,
        serving(pool, certificates, tmp_path, page=page_of(spec)) as service,
    ):
        context = chromium.new_context(ignore_https_errors=True, has_touch=True)
        try:
            page = context.new_page()
            page.goto(f"{service.url}/#token={service.tokens['ada']}")
            told(page, READY)
            page.get_by_label("Picture or photo").set_input_files(
                {"name": "0.png", "mimeType": "image/png", "buffer": png(images[0])}
            )
            told(page, re.compile("^Answered"))
            assert int(page.locator("#answer strong").inner_text()) == expected[0]
            pictures = [base64.b64encode(png(image)).decode() for image in images]
            assert page.evaluate(DROP_ALL, pictures) == expected.tolist()
            for draw in (_with_the_mouse, _by_keyboard):
                page.get_by_role("button", name="Clear").click()
                draw(page)
                told(page, re.compile("^Answered"))
                seen = page.locator("#drawing").evaluate(
                    "async (canvas) => canvas.toDataURL('image/png')"
                )
                assert int(page.locator("#answer strong").inner_text()) == _python(
                    seen, compiled, spec.kind
                )
            # By the button alone: the service does not see how many strokes there are.
            page.get_by_label("Ask whenever the pen goes up").uncheck()
            sent: list[str] = []
            page.on("request", lambda request: sent.append(request.method))
            for _ in range(2):
                _with_the_mouse(page)
            assert sent == []
            assert page.locator("#answer strong").count() == 0  # that was another drawing's
            page.get_by_role("button", name="Ask").click()
            told(page, re.compile("^Answered"))
            assert sent == ["POST"]
        finally:
            context.close()


def told(page: Any, says: re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(says, timeout=60_000)


def _with_the_mouse(page: Any) -> None:
    """A seven in one stroke; it is asked about when the pen goes up."""
    from tools.browsers import draw_a_seven

    page.locator("#status").evaluate("status => { status.textContent = ''; }")
    draw_a_seven(page)


def _by_keyboard(page: Any) -> None:
    """An L."""
    page.locator("#drawing").focus()
    for key in ["Escape", *["ArrowUp"] * 6, "Space", *["ArrowDown"] * 12, *["ArrowRight"] * 6]:
        page.keyboard.press(key)
    page.locator("#status").evaluate("status => { status.textContent = ''; }")
    page.keyboard.press("Space")


def _python(data_url: str, compiled: CompiledModel, kind: Any) -> int:
    grey, _ = read_picture(base64.b64decode(data_url.partition(",")[2]))
    pixels, _ = prepare(grey, "digit")
    return int(compiled.predict(encode(pixels[None], kind)).argmax())
