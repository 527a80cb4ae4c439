"""The system's Firefox, over WebDriver BiDi: Playwright drives builds of its own alone."""

import contextlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect


class Firefox:
    """One tab; certificates of the tests' services are taken."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._calls = socket, 0
        self.call("session.new", capabilities={"alwaysMatch": {"acceptInsecureCerts": True}})
        self._tab = self.call("browsingContext.create", type="tab")["context"]

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of BiDi, and its result."""
        self._calls += 1
        command = {"id": self._calls, "method": method, "params": parameters}
        self._socket.send(json.dumps(command))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._calls:
                assert message["type"] == "success", message
                return message["result"]

    def open(self, url: str) -> None:
        """Go there, in the same tab; from elsewhere, so that the page begins anew."""
        for each in ("about:blank", url):
            self.call("browsingContext.navigate", context=self._tab, url=each, wait="complete")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page, or of its promise."""
        target = {"context": self._tab}
        result = self.call(
            "script.evaluate", expression=expression, target=target, awaitPromise=True
        )
        assert result["type"] == "success", result
        return result["result"].get("value")

    def drag(self, selector: str, *points: tuple[int, int]) -> None:
        """Move the mouse over an element with its button down; points are from its corner."""
        corner = json.loads(
            self.evaluate(
                f"JSON.stringify(document.querySelector('{selector}').getBoundingClientRect())"
            )
        )
        moves = [
            {"type": "pointerMove", "x": int(corner["x"]) + x, "y": int(corner["y"]) + y}
            for x, y in points
        ]
        down, up = ({"type": f"pointer{name}", "button": 0} for name in ("Down", "Up"))
        actions = [{"type": "pointer", "id": "mouse", "actions": [moves[0], down, *moves[1:], up]}]
        self.call("input.performActions", context=self._tab, actions=actions)

    def wait_until(self, begins: str) -> str:
        """Wait until the page's status line begins so; all of it."""
        return str(
            self.evaluate(
                f"""new Promise((resolve, reject) => {{
                    const status = document.getElementById("status");
                    const check = () =>
                        status.textContent.startsWith({json.dumps(begins)}) &&
                        resolve(status.textContent);
                    new MutationObserver(check).observe(status, {{ childList: true }});
                    setTimeout(() => reject(new Error(status.textContent)), 50_000);
                    check();
                }})"""
            )
        )


@contextlib.contextmanager
def firefox(profile: Path) -> Iterator[Firefox]:
    """A headless Firefox without a past; the test is skipped where there is none."""
    command = shutil.which("firefox-esr") or shutil.which("firefox")
    if command is None:
        pytest.skip("no Firefox here (Debian: apt install firefox-esr)")
    options = ["--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port=0"]
    environment = os.environ | {"HOME": str(profile)}
    with subprocess.Popen(
        [command, *options], stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        try:
            found = (re.search(r"BiDi listening on (ws://\S+)", line) for line in process.stderr)
            address = next(filter(None, found))[1]
            with connect(f"{address}/session", max_size=None) as socket:
                yield Firefox(socket)
        finally:
            process.terminate()
