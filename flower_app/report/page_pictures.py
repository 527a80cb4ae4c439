"""The run's pictures inside the page: drawings in its own colours, light and dark."""

import re
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from flower_app.report.plots import BLUE, GREEN, GRID, INK, ORANGE, RED, SOFT

_IN_THE_PAGE = {
    INK: "var(--ink)",
    SOFT: "var(--soft)",
    BLUE: "var(--blue)",
    ORANGE: "var(--orange)",
    GREEN: "var(--good)",
    RED: "var(--red)",
    GRID: "var(--grid)",
}


@dataclass(frozen=True)
class Picture:
    """A picture's file, with an SVG of the same name beside it, and the line below it."""

    path: Path
    caption: str

    @property
    def svg(self) -> Markup:
        """The drawing as an element of a page, with names that no other picture's has."""
        drawing = self.path.with_suffix(".svg").read_text(encoding="utf-8")
        drawing = drawing[drawing.index("<svg") :]
        for left_out in (
            r"<metadata>.*?</metadata>",
            r"<style.*?</style>",
            r"<!--.*?-->",
            r' (?:xmlns(?::\w+)?|version|width|height)="[^"]*"(?=[^<]*viewBox)',
            r' xmlns(?::\w+)?="[^"]*"',
        ):
            drawing = re.sub(left_out, "", drawing, flags=re.DOTALL)
        name = self.path.stem
        drawing = drawing.replace("xlink:href", "href")
        for pattern in (r'\bid="', r"url\(#", r'href="#'):
            drawing = re.sub(pattern, lambda match: f"{match[0]}{name}-", drawing)
        for colour, here in _IN_THE_PAGE.items():
            drawing = drawing.replace(colour, here)
        words = Markup.escape(self.caption)
        return Markup(  # noqa: S704 - drawn by us, from numbers and fixed words
            drawing.replace("<svg", f'<svg role="img" aria-label="{words}"', 1)
        )
