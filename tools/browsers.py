"""A headless browser, for the tests, benchmarks and pictures of the page."""

import contextlib
import re
import shutil
from collections.abc import Iterator

from playwright.sync_api import Browser, Error, Page, expect, sync_playwright

_COMMANDS = ("chromium", "chromium-browser", "google-chrome")


class NoBrowserError(RuntimeError):
    """There is no browser; the message says how to get one."""


@contextlib.contextmanager
def headless() -> Iterator[Browser]:
    """Chromium: the system's, or the one that Playwright installed for itself.

    Raises
    ------
    NoBrowserError
        If there is none that starts.
    """
    installed = next(filter(None, map(shutil.which, _COMMANDS)), None)
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=installed)
        except Error as error:
            raise NoBrowserError(
                "no browser here: install Chromium (Debian: apt install chromium), or, without "
                f"root, `python -m playwright install chromium` ({error.message.splitlines()[0]})"
            ) from error
        try:
            yield browser
        finally:
            browser.close()


def wait_until(page: Page, says: str) -> None:
    """Wait until the page's status line begins so."""
    expect(page.locator("#status")).to_have_text(re.compile(f"^{says}"), timeout=60_000)


def draw_a_seven(page: Page) -> None:
    """With the mouse, in one stroke; the page asks when the pen goes up."""
    box = page.locator("#drawing").bounding_box()
    if box is None:
        raise RuntimeError("the page has no drawing area")
    scale = box["width"] / 280
    points = [(box["x"] + scale * x, box["y"] + scale * y) for x, y in _SEVEN]
    page.mouse.move(*points[0])
    page.mouse.down()
    for x, y in points[1:]:
        page.mouse.move(x, y, steps=5)
    page.mouse.up()


_SEVEN = ((80, 60), (200, 60), (120, 230))
