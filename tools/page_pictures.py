"""Draw the pictures of the page: ``python -m tools.page_pictures RESULTS_DIR``.

They show the page that ``serve`` has for the model of a results folder, asked about a drawn digit.
"""

import re
import subprocess
import sys
from pathlib import Path

from tools.browsers import draw_a_seven, headless, wait_until

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"


def main(results: str) -> None:
    """Serve, ask, and write ``page-desktop.png`` and ``page-phone.png``."""
    command = [sys.executable, "-m", "flower_app", "serve", results, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as serving:
        try:
            assert serving.stdout is not None  # noqa: S101
            link = next(filter(None, (re.search(r"https\S+#\S+", line) for line in serving.stdout)))
            with headless() as browser:
                for name, width, height, scheme, mobile in (
                    ("desktop", 1000, 1120, "light", False),
                    ("phone", 390, 844, "dark", True),
                ):
                    context = browser.new_context(
                        ignore_https_errors=True,
                        viewport={"width": width, "height": height},
                        device_scale_factor=1 if name == "desktop" else 2,
                        color_scheme=scheme,  # type: ignore[arg-type]
                        has_touch=mobile,
                    )
                    page = context.new_page()
                    page.goto(link[0])
                    wait_until(page, "Ready")
                    for _ in range(3):  # the first question also warms up
                        draw_a_seven(page)
                        wait_until(page, "Answered")
                        page.get_by_role("button", name="Clear").click()
                    draw_a_seven(page)
                    wait_until(page, "Answered")
                    page.screenshot(path=IMAGES / f"page-{name}.png", full_page=name == "desktop")
                    context.close()
        finally:
            serving.terminate()


if __name__ == "__main__":
    main(sys.argv[1])
