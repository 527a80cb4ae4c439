"""The matrix C of correlated noise, exactly, and what is remembered of the rows before."""

from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf, nextafter, sqrt
from typing import Any, ClassVar, Protocol
from zlib import crc32

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike

from privacy.arguments import whole
from privacy.correlated_noise.participation import MOST_ROUNDS, cost_of_a_participation

Integers = npt.NDArray[np.int64]
Vector = npt.NDArray[np.float64]

BITS = 16
"""Of the fraction: what a row takes back is a multiple of 2⁻¹⁶."""
_ONE = 1 << BITS
_DROPPED = 8  # low bits of a buffer that its decay leaves out, so that products fit 64 bits
AT_ONCE = 1 << 16
"""Elements that are worked on together: past rows, or buffers, of as many fit a cache."""


class Past(Protocol):
    """What is remembered of the rows so far; a secret."""

    def take_back(self, part: Integers, begin: int) -> None:
        """Subtract, in units of 2⁻¹⁶, what the next row takes back in the places from ``begin``."""

    def add(self, row: Integers | None) -> None:
        """A row, int64, (d,); None for one whose noise no model holds."""

    def digest(self) -> int:
        """A number that tells whether it is the same, drawn again."""

    @property
    def nbytes(self) -> int:
        """The memory it takes."""


class Factor(Protocol):
    """The matrix C, lower triangular and Toeplitz, with c₀ = 1."""

    kind: ClassVar[str]

    @property
    def coefficients(self) -> Vector:
        """c₀, c₁, …: as many as there are, or as there are rows."""

    @property
    def norm(self) -> float:
        """How far one participation moves all rows, in clipping norms; rounded up.

        Participation by participation: k of one client's move them √k times as far at most.
        """

    @property
    def rows(self) -> int | None:
        """For how many rows that holds; None: for any number."""

    @property
    def largest_sigma(self) -> float:
        """The deviation of a row's own noise up to which its sums fit 64 bits."""

    def reach(self, radius: int, size: int) -> float:
        """How far, in cells: R·norm and what rounding adds, for integers in so many places."""

    def remember(self, size: int) -> Past:
        """An empty past, of rows of so many integers."""

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values; see :func:`factor_from_dict`."""


@dataclass(frozen=True)
class BandedFactor:
    """The matrix C of which few diagonals are not zero; clients take part at least b rows apart.

    Parameters
    ----------
    numerators : tuple of int
        2¹⁶·cⱼ, its first column as exact multiples of 2⁻¹⁶; the first is 2¹⁶.
    """

    kind: ClassVar[str] = "banded"
    numerators: tuple[int, ...]
    rows: ClassVar[int | None] = None
    largest_sigma: ClassVar[float] = 2.0**36

    def __post_init__(self) -> None:
        limit = 2 * _ONE
        numerators = tuple(
            whole("a numerator", n, least=-limit, most=limit) for n in self.numerators
        )
        object.__setattr__(self, "numerators", numerators)
        if not numerators or numerators[0] != _ONE:
            raise ValueError(f"numerators is {numerators!r:.80}; it must begin with {_ONE}")

    @classmethod
    def nearest(cls, coefficients: ArrayLike) -> "BandedFactor":
        """The matrix whose coefficients are these, rounded to multiples of 2⁻¹⁶.

        Raises
        ------
        ValueError
            If they do not begin with 1, or one is above 2 or no number.
        """
        scaled = np.rint(np.asarray(coefficients, dtype=np.float64) * _ONE)
        if not np.all(np.abs(scaled) <= 2 * _ONE):
            raise ValueError("coefficients must begin with 1, and none be above 2")
        return cls(tuple(int(n) for n in scaled))

    @property
    def bands(self) -> int:
        """b, how many rows one contribution reaches."""
        return len(self.numerators)

    @property
    def coefficients(self) -> Vector:
        """c₀, c₁, …, exactly; float64, (b,)."""
        return np.array(self.numerators, dtype=np.float64) / _ONE

    @property
    def norm(self) -> float:
        """‖c‖, rounded up."""
        square = Fraction(sum(n * n for n in self.numerators), _ONE * _ONE)
        return nextafter(sqrt(float(square)) * (1 + 2.0**-50), inf)

    def reach(self, radius: int, size: int) -> float:
        """R·‖c‖: rounding adds nothing."""
        return radius * self.norm

    def remember(self, size: int) -> Past:
        """The last b - 1 rows."""
        return _LastRows(self.numerators)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {"kind": self.kind, "numerators": list(self.numerators)}


@dataclass(frozen=True)
class BLTFactor:
    """The matrix C whose coefficients are a sum of few that decay: a buffered linear Toeplitz one.

    c₀ = 1 and cₜ = Σᵢ ωᵢ·θᵢᵗ⁻¹ (Dvijotham et al. 2024, arXiv 2404.16706, definition of BLTs). They
    never increase.

    Parameters
    ----------
    decays : tuple of int
        2¹⁶·(1 − θᵢ), each in [1, 2¹⁶].
    weights : tuple of int
        2¹⁶·ωᵢ, at least 1, together at most 2¹⁶.
    rows : int
        How many rows there may be.
    separation : int
        A client takes part at most every so many rows.
    """

    kind: ClassVar[str] = "blt"
    decays: tuple[int, ...]
    weights: tuple[int, ...]
    rows: int
    separation: int
    norm: float = field(init=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("decays", "weights"):
            values = tuple(
                whole(f"one of {name}", n, least=1, most=_ONE) for n in getattr(self, name)
            )
            object.__setattr__(self, name, values)
        if len(self.decays) != len(self.weights) or sum(self.weights) > _ONE:
            raise ValueError(
                "weights must be as many as decays, and together at most "
                f"{_ONE}; they are {len(self.weights)}, together {sum(self.weights)}"
            )
        rows = whole("rows", self.rows, least=1, most=MOST_ROUNDS)
        separation = whole("separation", self.separation, least=1)
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "separation", separation)
        cost = cost_of_a_participation(self.coefficients, rows=rows, separation=separation)
        object.__setattr__(self, "norm", cost)

    @property
    def coefficients(self) -> Vector:
        """c₀, c₁, …, as nearly as doubles come; float64, (rows,)."""
        theta = 1 - np.array(self.decays, dtype=np.float64) / _ONE
        c = np.ones(self.rows)
        c[1:] = 0.0
        power = np.arange(self.rows - 1)
        for weight, base in zip(self.weights, theta, strict=True):
            c[1:] += weight / _ONE * base**power
        return c

    @property
    def largest_sigma(self) -> float:
        """σ up to which rows of 2⁶·σ keep buffers and their products within 64 bits."""
        total = sum(w / decay for w, decay in zip(self.weights, self.decays, strict=True))
        return 2.0**40 / max(2.0**_DROPPED, total)

    def reach(self, radius: int, size: int) -> float:
        """R·norm + √(d·rows)·Σᵢ(2⁸ + 1/(1 − θᵢ))·2⁻¹⁶, rounded up.

        Decays are rounded; in each place and row buffers are off by less than that sum.
        """
        off = sum((1 << _DROPPED) + _ONE / decay for decay in self.decays) / _ONE
        return (radius * self.norm + sqrt(size * self.rows) * off) * (1 + 2.0**-40)

    def remember(self, size: int) -> Past:
        """A buffer for each decay, however many rows there are."""
        return _Buffers(self, size)

    def as_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "kind": self.kind,
            "decays": list(self.decays),
            "weights": list(self.weights),
            "rows": self.rows,
            "separation": self.separation,
        }


def factor_from_dict(document: dict[str, Any]) -> Factor:
    """Read a factor that ``as_dict`` wrote; KeyError, TypeError or ValueError where it is none."""
    if document["kind"] == BandedFactor.kind:
        return BandedFactor(tuple(document["numerators"]))
    if document["kind"] == BLTFactor.kind:
        return BLTFactor(
            tuple(document["decays"]),
            tuple(document["weights"]),
            document["rows"],
            document["separation"],
        )
    raise ValueError("a factor of another kind")


class _LastRows:
    """The last b - 1 rows; the latest last, None for one that is skipped."""

    def __init__(self, numerators: tuple[int, ...]) -> None:
        self._numerators = numerators
        self._rows: deque[npt.NDArray[np.signedinteger] | None] = deque(maxlen=len(numerators) - 1)
        self._scratch = np.empty(AT_ONCE, dtype=np.int64)

    def take_back(self, part: Integers, begin: int) -> None:
        product = self._scratch[: len(part)]
        for n, row in zip(self._numerators[1:], reversed(self._rows), strict=False):
            if row is not None:
                np.multiply(row[begin : begin + len(part)], n, out=product, dtype=np.int64)
                part -= product

    def add(self, row: Integers | None) -> None:
        self._rows.append(None if row is None else _narrow(row))

    def digest(self) -> int:
        last = next((row for row in reversed(self._rows) if row is not None), None)
        return 0 if last is None else crc32(last)

    @property
    def nbytes(self) -> int:
        return sum(row.nbytes for row in self._rows if row is not None)


class _Buffers:
    """vᵢ = ωᵢ·Σⱼ θᵢʲ⁻¹·xₜ₋ⱼ in units of 2⁻¹⁶, one for each decay, which is rounded down."""

    def __init__(self, factor: BLTFactor, size: int) -> None:
        self._factor = factor
        self._buffers = np.zeros((len(factor.decays), size), dtype=np.int64)
        self._scratch = np.empty(AT_ONCE, dtype=np.int64)

    def take_back(self, part: Integers, begin: int) -> None:
        for buffer in self._buffers:
            part -= buffer[begin : begin + len(part)]

    def add(self, row: Integers | None) -> None:
        factor = self._factor
        if row is not None:
            largest = 2.0**6 * factor.largest_sigma
            if max(-int(row.min(initial=0)), int(row.max(initial=0))) > largest:
                raise OverflowError("a row of noise is beyond the integers of its buffers")
        for buffer, decay, weight in zip(self._buffers, factor.decays, factor.weights, strict=True):
            for begin in range(0, len(buffer), AT_ONCE):
                part = buffer[begin : begin + AT_ONCE]
                step = self._scratch[: len(part)]
                # 2⁻⁸ of the buffer times 2¹⁶·(1 − θ), less another 2⁻⁸
                np.right_shift(part, _DROPPED, out=step)
                step *= decay
                step >>= BITS - _DROPPED
                part -= step
                if row is not None:
                    np.multiply(row[begin : begin + len(part)], weight, out=step)
                    part += step

    def digest(self) -> int:
        return crc32(self._buffers.data)

    @property
    def nbytes(self) -> int:
        return self._buffers.nbytes


def _narrow(row: Integers) -> npt.NDArray[np.signedinteger]:
    """A copy, in half the room where every entry fits."""
    largest = np.iinfo(np.int32).max
    fits = -largest <= row.min(initial=0) and row.max(initial=0) <= largest
    return row.astype(np.int32 if fits else np.int64)
