"""Rows of correlated integers: x = C⁻¹z, rounded row by row, and the past that they take back."""

import numpy as np
import numpy.typing as npt

from privacy.arguments import exact_bytes, number, whole
from privacy.correlated_noise.factors import AT_ONCE, BITS, Factor
from privacy.mechanisms import KeyedRandomness, round_with_gaussian

Integers = npt.NDArray[np.int64]


class CorrelatedNoise:
    """The noise of one instance: row after row, each of a key of its own and of the rows before.

    Row t is xₜ = ⌊zₜ − Σ_{j≥1} cⱼ·xₜ₋ⱼ⌉ with zₜ ~ N(0, σ²) from the row's key, in each place; of
    a BLT the sum is in buffers, whose decay is rounded (:meth:`BLTFactor.reach`).

    Parameters
    ----------
    factor : Factor
        C.
    sigma : float
        σ in cells, in [0, ``factor.largest_sigma``].
    size : int
        d, how many integers a row has.

    Notes
    -----
    **Guarantee.** If each Gₜ is a sum of integer vectors of norm at most R, every client in rows as
    far apart as the factor is for, Gₜ + xₜ of all rows is, whatever Gₜ was made to depend on
    before, for each time that a client took part no more than one Gaussian mechanism with noise
    multiplier σ/``factor.reach(R, d)`` (``docs/explanation/proofs/correlated-noise.md``,
    "Correlated noise on integers").

    **Assumptions.** Keys are secret, random, and used for one row each. No row number is used
    twice: what a row takes back of the past is taken back once.

    **Not covered.** An adversary who reads this process's memory, or the keys. A row's own noise
    is larger than independent noise would be; only over the rows does it cancel.
    """

    def __init__(self, factor: Factor, *, sigma: float, size: int) -> None:
        self.factor = factor
        self._sigma = number("sigma", sigma, least=0, most=factor.largest_sigma)
        self._size = whole("size", size, least=1)
        self._past = factor.remember(self._size)
        self._rows = 0

    @property
    def rows(self) -> int:
        """How many rows there were, drawn or skipped."""
        return self._rows

    @property
    def nbytes(self) -> int:
        """The memory that the past takes."""
        return self._past.nbytes

    def skip(self) -> None:
        """Go past a row whose noise no model holds, as if it had not been drawn.

        If it was, and even released, the columns of its clients end there: they are shorter.
        """
        self._past.add(None)
        self._rows += 1

    def draw(self, key: bytes) -> Integers:
        """The next row; int64, (d,).

        Raises
        ------
        ValueError
            If ``key`` is not 32 bytes, or the factor is not for so many rows.
        """
        randomness = KeyedRandomness(exact_bytes("key", key, 32))
        if self.factor.rows is not None and self._rows >= self.factor.rows:
            raise ValueError(f"the factor is for {self.factor.rows} rows, and all were drawn")
        row = np.zeros(self._size, dtype=np.int64)
        for begin in range(0, self._size, AT_ONCE):
            part = row[begin : begin + AT_ONCE]
            self._past.take_back(part, begin)
            round_with_gaussian(part, bits=BITS, sigma=self._sigma, randomness=randomness)
        self._past.add(row)
        self._rows += 1
        return row

    def digest(self) -> int:
        """A number that tells whether the rows, drawn again, are the same; it is as secret."""
        return self._past.digest()
