"""Write what is typical of a digit, from digits drawn by rule: ``python -m tools.typical``.

``flower_app.data.hog_features`` subtracts typical features, and so does the page in the browser;
``flower_app.models.build`` starts the network ``cnn`` with half of its typical hidden numbers
subtracted. Nobody's data go into them: ten figures of lines and arcs are bent, scaled, slanted and
drawn with pens of several widths. A test fails while the two files differ from what this writes.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from flower_app.data import encode, features
from flower_app.models.build import build_model

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / "flower_app" / "data" / "typical.py"
JAVASCRIPT = ROOT / "privacy" / "inference_service" / "browser" / "typical.js"
COUNT = 2000

_Points = NDArray[np.float64]


def _line(*corners: tuple[float, float]) -> _Points:
    """Points (n, 2) along straight lines from corner (x, y) to corner, y downwards."""
    along = np.linspace(0, len(corners) - 1, 14 * (len(corners) - 1))
    return np.column_stack(
        [np.interp(along, range(len(corners)), axis) for axis in zip(*corners, strict=True)]
    )


def _arc(x: float, y: float, width: float, height: float, start: float, end: float) -> _Points:
    """Points (n, 2) along a part of an ellipse around (x, y), degrees clockwise from the right."""
    angle = np.radians(np.linspace(start, end, 36))
    return np.column_stack([x + width * np.cos(angle), y + height * np.sin(angle)])


FIGURES = tuple(
    np.concatenate(parts)
    for parts in (
        [_arc(0, 0, 0.65, 1, 0, 360)],
        [_line((0, -1), (0, 1))],
        [_arc(0, -0.5, 0.6, 0.5, 180, 380), _line((0.55, -0.3), (-0.6, 1), (0.65, 1))],
        [_arc(0, -0.5, 0.55, 0.5, 190, 450), _arc(0, 0.5, 0.65, 0.5, -90, 160)],
        [_line((-0.3, -1), (-0.65, 0.15), (0.65, 0.15)), _line((0.45, -0.9), (0.35, 1))],
        [_line((0.6, -1), (-0.45, -1), (-0.5, -0.1)), _arc(0, 0.4, 0.6, 0.6, -120, 150)],
        [_line((0.3, -1), (-0.45, 0.2)), _arc(0, 0.45, 0.55, 0.55, 0, 360)],
        [_line((-0.6, -1), (0.6, -1), (-0.1, 1))],
        [_arc(0, -0.5, 0.5, 0.5, 0, 360), _arc(0, 0.5, 0.6, 0.5, 0, 360)],
        [_arc(0, -0.4, 0.55, 0.55, 0, 360), _line((0.55, -0.4), (0.3, 1))],
    )
)
"""The ten digits, each as points (n, 2) in a box from -1 to 1."""


def drawn_digits(count: int) -> NDArray[np.uint8]:
    """Return digits drawn by rule, the same every time, uint8 (count, 28, 28)."""
    generator = np.random.default_rng(0)
    return np.stack([_drawn(FIGURES[n % 10], generator) for n in range(count)])


def _drawn(figure: _Points, generator: np.random.Generator) -> NDArray[np.uint8]:
    x, y = figure.T
    bends, phases = generator.normal(0, 0.08, 4), generator.uniform(0, 2 * np.pi, 4)
    waves = [np.sin(2.5 * axis + phase) for axis, phase in zip((y, x, x, y), phases, strict=True)]
    x, y = x + bends[:2] @ waves[:2], y + bends[2:] @ waves[2:]
    x = x + generator.normal(0, 0.25) * y
    middle = (features.SIDE - 1) / 2
    x, y = middle + generator.uniform(5.5, 9.5) * x, middle + generator.uniform(7.5, 10) * y
    rows, columns = np.mgrid[: features.SIDE, : features.SIDE]
    distance = np.hypot(rows[..., None] - y, columns[..., None] - x).min(axis=-1)
    ink = np.clip(generator.uniform(0.8, 2) + 0.5 - distance, 0, 1)
    return np.asarray(np.rint(255 * ink), np.uint8)


def typical_features(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the mean features of digits, in hundredths, (392,)."""
    mean = features.gradient_features(digits).mean(axis=0, dtype=np.float64)
    return np.asarray(np.rint(100 * mean), np.int64)


def typical_hidden(digits: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the means over digits of ``cnn``'s 64 hidden numbers, no bias added, in tenths."""
    model = build_model("cnn")
    hidden = model[:4](torch.from_numpy(encode(digits, "pixels"))) - model[3].bias
    mean = hidden.detach().double().mean(dim=0).numpy()
    return np.asarray(np.rint(10 * mean), np.int64)


def written() -> dict[Path, str]:
    """Return the text of both files."""
    digits = drawn_digits(COUNT)
    of_features = _lines(typical_features(digits))
    what = "What the features of a digit are on average, in hundredths: of digits drawn by rule."
    return {
        PYTHON: '"""What is typical of digits, those drawn by rule.\n\n'
        'Written by ``python -m tools.typical``.\n"""\n\n'
        f'# fmt: off\nFEATURES = (\n{of_features})\n"""Of the features, in hundredths."""\n\n'
        f"HIDDEN = (\n{_lines(typical_hidden(digits))})\n"
        '"""Of the hidden numbers with which ``cnn`` starts, no bias added, in tenths."""\n',
        JAVASCRIPT: f"/** {what} */\n// Written by `python -m tools.typical`.\n"
        f"export const TYPICAL = [\n{of_features.replace('    ', '  ')}];\n",
    }


def _lines(values: NDArray[np.int64]) -> str:
    return "".join(f"    {', '.join(map(str, row))},\n" for row in values.reshape(-1, 8).tolist())


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
