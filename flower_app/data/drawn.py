"""Images that nobody's data went into: strokes and shapes, drawn by rule.

A plan for encrypted inference is public, and depends on the inputs for which errors are predicted.
"""

import numpy as np
from numpy.typing import NDArray

_SIDE = 28
_COUNT = 32
_POINTS = 60


def drawn_images() -> NDArray[np.uint8]:
    """Return some images in the size of MNIST's, the same every time, uint8 (32, 28, 28).

    Three in four are pen strokes along one to three curves; the others are filled shapes, evenly
    bright or striped, as clothes are.
    """
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:_SIDE, :_SIDE].astype(np.float64)
    images = []
    for index in range(_COUNT):
        if index % 4:
            ink = np.zeros((_SIDE, _SIDE))
            for _ in range(generator.integers(1, 4)):
                start, bend, end = generator.uniform(4, 24, (3, 2))
                along = np.linspace(0, 1, _POINTS)[:, None]
                curve = (1 - along) ** 2 * start + 2 * along * (1 - along) * bend + along**2 * end
                near = np.hypot(rows[..., None] - curve[:, 0], columns[..., None] - curve[:, 1])
                pen = generator.uniform(1.0, 2.0)
                ink = np.maximum(ink, np.clip(pen + 0.5 - near.min(axis=-1), 0, 1))
        else:
            height, width = generator.uniform(6, 13, 2)
            inside = np.hypot((rows - 13.5) / height, (columns - 13.5) / width) < 1
            stripes = 0.75 + 0.25 * np.sign(np.sin(rows * generator.uniform(0.5, 3)))
            ink = inside * (stripes if index % 8 else generator.uniform(0.6, 1))
        images.append(np.rint(255 * ink).astype(np.uint8))
    return np.stack(images)
