"""A headless browser, and a page that has the owner's modules."""

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import privacy.inference_service

MODULES = Path(privacy.inference_service.__file__).parent / "browser"
HERE = Path(__file__).parent


@pytest.fixture(scope="package")
def chromium() -> Iterator[object]:
    """A headless Chromium; the tests that need it are skipped where there is none."""
    pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install playwright"
    )
    from tools.browsers import NoBrowserError, headless

    with contextlib.ExitStack() as stack:
        try:
            browser = stack.enter_context(headless())
        except NoBrowserError as error:
            pytest.skip(str(error))
        yield browser


class _Files(http.server.SimpleHTTPRequestHandler):
    """The owner's modules under /browser, this folder elsewhere."""

    def translate_path(self, path: str) -> str:
        root = MODULES if path.startswith("/browser/") else HERE
        return str(root / path.removeprefix("/browser/").lstrip("/"))

    def do_GET(self) -> None:
        if self.path == "/":
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def context(chromium: object) -> Iterator[object]:
    """A browser without a past, which takes the certificate of the tests' service."""
    made = chromium.new_context(ignore_https_errors=True, viewport={"width": 1000, "height": 900})
    made.set_default_timeout(30_000)
    yield made
    made.close()


@pytest.fixture(scope="package")
def modules(chromium: object) -> Iterator[object]:
    """An empty page that can import ``/browser/...`` and ``/vectors.js``."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    page = chromium.new_page()
    page.goto(f"http://localhost:{server.server_port}/")
    yield page
    page.close()
    server.shutdown()
    thread.join()
    server.server_close()
