"""The page as a file on a disk, and the owner on a site of one's own."""

import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.privacy.inference_service.browser.conftest import MODULES
from tests.privacy.inference_service.browser.test_page import (
    LABELS,
    PAGE,
    READY,
    X,
    asked,
    hosted,
    status,
)
from tests.privacy.inference_service.serving import Service

Serve = Callable[..., AbstractContextManager[Service]]
DOCS = Path(__file__).parents[4] / "docs"

__all__ = ["hosted"]


@pytest.mark.parametrize("origin", ["null", "https://another.example"])
def test_a_file_on_a_disk_asks_where_files_may(
    serve: Serve, context: Any, tmp_path: Path, origin: str
) -> None:
    with serve(origins=(origin,)) as service:
        file = tmp_path / "page.html"
        file.write_bytes(replace(PAGE, service=service.url).single_file)
        requests: list[str] = []
        context.on("request", lambda request: requests.append(request.url))
        page = context.new_page()
        page.goto(f"{file.as_uri()}#token={service.tokens['ada']}")
        if origin != "null":
            status(page, re.compile("^The service cannot be reached"))
            return
        status(page, READY)
        assert asked(page, X[0]) == str(LABELS[0])
        others = [url for url in requests if not url.startswith((service.url, "file:", "blob:"))]
        assert others == []


def test_a_script_that_was_changed_in_the_file_does_not_run(context: Any, tmp_path: Path) -> None:
    text = replace(PAGE, service="https://localhost:9").single_file.decode()
    for place, says in (
        ("export class Input{", "does not start"),  # a module of the page
        ("const page = JSON.parse(", "^Starting"),  # the script that starts them
    ):
        assert text.count(place) == 1
        file = tmp_path / "page.html"
        file.write_text(text.replace(place, f"globalThis.changed = 1;\n{place}", 1))
        page = context.new_page()
        page.goto(file.as_uri())
        status(page, re.compile(says))
        assert page.evaluate("globalThis.changed ?? 0") == 0


def test_the_example_of_the_docs_asks(serve: Serve, context: Any, hosted: tuple[Path, str]) -> None:
    text = (DOCS / "how-to" / "browser.md").read_text()
    match = re.search(r"```html\n(.*?)```", text, re.DOTALL)
    assert match is not None
    folder, origin = hosted
    shutil.copytree(MODULES, folder / "browser")
    with serve(origins=(origin,)) as service:
        example = match[1]
        for placeholder, value in (
            ("https://model.example:8443", service.url),
            ("bloomseal_...", service.tokens["ada"]),
            ("[0.1, -0.4, 0, 0, 0.9, 1, -1, 0.3]", str(X[0].tolist())),
        ):
            assert placeholder in example
            example = example.replace(placeholder, value)
        (folder / "index.html").write_text(example)
        page = context.new_page()
        page.goto(origin)
        from playwright.sync_api import expect

        expect(page.get_by_role("status")).to_have_text(f"Class {LABELS[0]}", timeout=30_000)
