"""The page in another engine: served, kept over a reload, and as a file on a disk."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from flower_app.commands.page import page_of
from flower_app.models.specs import MODELS
from tests.privacy.inference_service.browser.firefox import Firefox, firefox
from tests.privacy.inference_service.browser.test_page import LABELS, PAGE, X
from tests.privacy.inference_service.serving import Service

Serve = Callable[..., AbstractContextManager[Service]]
SUBMIT = """(() => {{
    document.getElementById("{field}").value = "seven small boats";
    document.getElementById("{form}").requestSubmit();
}})()"""


def answer_about(browser: Firefox, row: int) -> str:
    for n, value in enumerate(X[row].tolist()):
        browser.evaluate(f"document.getElementById('number-{n}').value = '{value}'")
        browser.evaluate(f"document.getElementById('number-{n}').dispatchEvent(new Event('input'))")
    browser.evaluate("document.getElementById('ask').click()")
    browser.wait_until("Answered")
    return str(browser.evaluate("document.querySelector('#answer strong').textContent"))


def test_firefox_asks_keeps_keys_opens_the_file_and_draws(serve: Serve, tmp_path: Path) -> None:
    with firefox(tmp_path / "profile") as browser:
        with serve(page=PAGE, origins=("null",)) as service:
            link = f"#token={service.tokens['ada']}"
            browser.open(f"{service.url}/{link}")
            browser.wait_until("Ready")
            assert browser.evaluate("location.href") == f"{service.url}/"
            assert answer_about(browser, 0) == str(LABELS[0])
            browser.evaluate(SUBMIT.format(field="new-passphrase", form="keep"))
            browser.wait_until("Ready. Your keys are kept")
            browser.open(f"{service.url}/{link}")
            browser.wait_until("Your keys are on this device")
            browser.evaluate(SUBMIT.format(field="passphrase", form="unlock"))
            browser.wait_until("Ready")
            assert answer_about(browser, 1) == str(LABELS[1])
            file = tmp_path / "page.html"
            file.write_bytes(replace(PAGE, service=service.url).single_file)
            browser.open(f"{file.as_uri()}{link}")
            browser.wait_until("Ready")
            assert answer_about(browser, 2) == str(LABELS[2])
        # A page of digits, whose model this service does not have.
        page = page_of(MODELS["hog-linear"])
        with serve(page=page, tokens=service.token_file) as digits:
            browser.open(f"{digits.url}/{link}")
            browser.wait_until("The service's plan was refused")
            browser.drag("#drawing", (80, 60), (200, 60), (120, 230))
            ink = browser.evaluate(
                """(() => {
                    const context = document.getElementById("drawing").getContext("2d");
                    const { data } = context.getImageData(0, 0, 256, 256);
                    return data.filter((value, n) => n % 4 === 0 && value > 127).length;
                })()"""
            )
            assert 18 * 200 < ink < 18 * 400  # a pen of 18 pixels, over 284 of them
