"""A step's noise, drawn in a thread of its own while the step's gradients are computed."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType

import numpy as np
import numpy.typing as npt

from privacy.mechanisms import Randomness, add_gaussian

_WORTH_A_THREAD = 1 << 13  # numbers: fewer are drawn before a thread would have woken


class NoiseAhead(AbstractContextManager["NoiseAhead"]):
    """Independent Gaussian noise for one step after another.

    ``begin`` is called once the step's batch is drawn, ``take`` when the gradients are summed.
    Between the two nothing else may be drawn from the same randomness: so its draws are made in
    the same order as without a thread, and a seed gives the same noise.

    Parameters
    ----------
    size : int
        How many numbers a step needs.
    sigma : float
        The noise's standard deviation.
    randomness : Randomness
        Every step draws afresh.
    """

    def __init__(self, size: int, *, sigma: float, randomness: Randomness) -> None:
        self._sigma, self._randomness = sigma, randomness
        self._numbers = np.zeros(size)
        self._drawn: Future[None] | None = None
        self._pool = ThreadPoolExecutor(1) if size >= _WORTH_A_THREAD else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def begin(self) -> None:
        """Begin to draw the noise of the next step."""
        if self._drawn is not None:
            raise RuntimeError("noise was drawn for a step that was not taken")
        if self._pool is None:
            self._drawn = Future()
            self._draw()
            self._drawn.set_result(None)
        else:
            self._drawn = self._pool.submit(self._draw)

    def take(self) -> npt.NDArray[np.float64]:
        """The step's noise, once; the caller may overwrite it, and is done at the next ``begin``.

        Raises
        ------
        Exception
            What drawing it raised.
        """
        if self._drawn is None:
            raise RuntimeError("no noise was drawn for this step")
        drawn, self._drawn = self._drawn, None
        drawn.result()
        return self._numbers

    def _draw(self) -> None:
        self._numbers.fill(0)
        add_gaussian(self._numbers, sigma=self._sigma, randomness=self._randomness)
