"""A data owner in a browser: keys, questions and whole answers, beside the owner in Python."""

import gzip
import io
import re
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import service
from benchmarks.harness import Log, Row, Spread
from flower_app.commands.page import page_of
from flower_app.data import encode, load_dataset
from flower_app.models.specs import MODELS
from privacy.inference import CompiledModel, DataOwner
from privacy.inference_service import OwnerSession, Page, ServiceClient
from tools.browsers import draw_a_seven, headless, wait_until

_IMAGES = 50


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure models of the app, with random weights, over HTTPS on loopback."""
    rows = []
    with headless() as browser:
        log(f"Chromium {browser.version}")
        for name in ("hog-linear",) if quick else ("hog-linear", "cnn"):
            spec = MODELS[name]
            compiled, page = service.compiled_model(name), page_of(spec)
            with service.running(name, page=page) as (_, url, authority, token):
                context = browser.new_context(ignore_https_errors=True)
                images = _test_images(5 if quick else _IMAGES)
                log(f"{name}: {len(images)} images")
                seen = [_asked(context, f"{url}/#token={token}", images)]
                seen += [_asked(context, f"{url}/#token={token}", images[:5]) for _ in range(4)]
                context.close()
                with ServiceClient(url, token=token, ca=authority) as client:
                    python = _python(compiled, client, encode(images, spec.kind))
            expected = compiled.predict(encode(images, spec.kind)).argmax(axis=1)
            rows += _rows(name, seen, python, expected, compiled)
        rows += _weight(page_of(MODELS["hog-linear"]))
    return rows


def _test_images(count: int) -> NDArray[np.uint8]:
    return load_dataset("mnist").test.images[:count]


def _asked(context: Any, link: str, images: NDArray[np.uint8]) -> dict[str, list[float]]:
    """What the page shows of a session: milliseconds of each step, and classes."""
    page = context.new_page()
    page.goto(link)
    wait_until(page, "Ready")
    seen: dict[str, list[float]] = {
        "keys made": [_milliseconds(page, "keys")],
        "keys sent": [_milliseconds(page, "send-keys")],
        "class": [],
        "encrypted": [],
        "opened": [],
        "from pen up to the answer": [],
    }
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        page.locator("#status").evaluate("status => { status.textContent = ''; }")
        file = {"name": "image.png", "mimeType": "image/png", "buffer": buffer.getvalue()}
        page.get_by_label("Picture or photo").set_input_files(file)
        wait_until(page, "Answered")
        seen["class"].append(float(page.locator("#answer strong").inner_text()))
        seen["encrypted"].append(_milliseconds(page, "encrypt"))
        seen["opened"].append(_milliseconds(page, "decrypt"))
    for _ in range(5):
        page.get_by_role("button", name="Clear").click()
        page.locator("#status").evaluate("status => { status.textContent = ''; }")
        draw_a_seven(page)
        wait_until(page, "Answered")
        text = page.locator("#answer").inner_text()
        seen["from pen up to the answer"].append(_first_number(text.partition("answer, ")[2]))
    page.close()
    return seen


def _milliseconds(page: Any, step: str) -> float:
    return _first_number(page.locator(f"#step-{step} td").nth(1).inner_text())


def _first_number(text: str) -> float:
    match = re.search(r"[\d.]+", text)
    if match is None:
        raise RuntimeError(f"the page shows no figure: {text!r}")
    return float(match[0])


def _python(
    compiled: CompiledModel, client: ServiceClient, inputs: NDArray[np.float32]
) -> dict[str, list[float]]:
    """Milliseconds of the same steps with the owner in Python, against the same service."""
    spent: dict[str, list[float]] = {"keys made": [], "encrypted": []}
    for _ in range(5):
        begun = time.perf_counter()
        owner = DataOwner(compiled.plan)
        owner.public_material()
        spent["keys made"].append(1000 * (time.perf_counter() - begun))
    for x in inputs:
        begun = time.perf_counter()
        owner.encrypt(x)
        spent["encrypted"].append(1000 * (time.perf_counter() - begun))
    session = OwnerSession(client, compiled.plan)
    session.ask(inputs[0])
    spent["from pen up to the answer"] = []
    for x in inputs[:10]:
        begun = time.perf_counter()
        session.ask(x)
        spent["from pen up to the answer"].append(1000 * (time.perf_counter() - begun))
    session.end()
    return spent


def _rows(
    name: str,
    seen: list[dict[str, list[float]]],
    python: dict[str, list[float]],
    expected: NDArray[np.int64],
    compiled: CompiledModel,
) -> list[Row]:
    rows = []
    for metric in ("keys made", "keys sent", "encrypted", "opened", "from pen up to the answer"):
        ours = Spread.of([value for session in seen for value in session[metric]])
        peer = Spread.of(python[metric]) if metric in python else None
        named = None if peer is None else "the owner in Python"
        rows.append(Row(name, metric, "ms", ours, peer, named))
    same = sum(int(one == other) for one, other in zip(seen[0]["class"], expected, strict=True))
    agreement = Spread.of([same / len(expected)])
    rows.append(Row(name, "images answered as in the clear", "share", agreement))
    for metric, size in (
        ("keys", compiled.plan.public_bytes),
        ("a question", compiled.plan.query_bytes),
        ("an answer", compiled.plan.answer_bytes),
    ):
        rows.append(Row(name, metric, "kB", Spread.of([size / 1000])))
    return rows


def _weight(page: Page) -> list[Row]:
    files = page.files.values()
    sent = sum(len(gzip.compress(content)) for content in files) / 1000
    unpacked = sum(map(len, files)) / 1000
    return [
        Row("the page", "all files, as sent", "kB", Spread.of([sent])),
        Row("the page", "all files, unpacked", "kB", Spread.of([unpacked])),
    ]
