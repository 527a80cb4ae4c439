"""A silo's sum over persons, as lattice integers that one person moves by a bounded length."""

import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.arguments import number, shown, whole
from privacy.mechanisms.bounded_sums import LARGEST_RADIUS

Vectors = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
PersonIds = Sequence[int | str] | npt.NDArray[Any]

_log = logging.getLogger(__name__)

FRACTION_BITS = 20
"""A person's vector is a multiple of 2⁻²⁰ cells, so that sums of persons are exact."""

MOST_PERSONS = 1 << 23
"""Persons whose parts fit 64 bits together, with R at its largest, 2²⁰ cells."""

_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a", "<na>", "nat"})
_WHOLE = re.compile(r"[+-]?[0-9]{1,1000}(\.0*)?")
_MARGIN = 1 - 2.0**-20
_AT_ONCE = 1 << 12  # vectors that doubles add exactly: 2¹² · 2⁴⁰ < 2⁵³
_NUMBERS = 1 << 16  # of vectors that are worked on together: they stay in a core's cache
_SMALLEST, _LARGEST = 1e-200, 1e200  # squared lengths that are right without scaling


def summed_sensitivity(parameters: int, radius: int) -> int:
    """How far one person moves a ``PersonSum``, in cells: R + √d, rounded up."""
    return radius + math.isqrt(parameters - 1) + 1


def rows_by_person(person_ids: PersonIds, count: int) -> list[Rows]:
    """Each person's rows, ascending; persons by their first row.

    Whole numbers are one id however they are written: 7, 7.0, "7" and "007", of which readers of
    files make one or another. A row whose id is missing (None, NaN, "", "nan", "NA" and the like)
    or neither a whole number nor text is nobody's: it is left out, and the log says how many are,
    for one person's id must not cost the others theirs.

    Parameters
    ----------
    person_ids : sequence of int or str, or an array or tensor of them
        Of length ``count``: whose each row is.
    count : int
        How many rows there are.

    Raises
    ------
    TypeError, ValueError
        If the ids are another number than the rows, or none can be used.
    """
    if isinstance(person_ids, str | bytes) or not hasattr(person_ids, "__iter__"):
        raise TypeError(f"person_ids is {shown(person_ids)}; give one id a row, each an int or str")
    listed = getattr(person_ids, "tolist", None)  # arrays and tensors
    ids = list(person_ids) if listed is None else listed()
    if len(ids) != count:
        raise ValueError(f"person_ids has {len(ids)} ids for {count} rows; give one id a row")
    rows_of: dict[int | str, list[int]] = {}
    nobodys: list[int] = []
    for row, given in enumerate(ids):
        person = person_named(given)
        if person is None:
            nobodys.append(row)
        else:
            rows_of.setdefault(person, []).append(row)
    if nobodys and not rows_of:
        raise TypeError(
            f"person_ids[0] is {shown(ids[0])}, and no other can be used; give each row an id that "
            "is an int or a str, those of unknown persons too"
        )
    if nobodys:
        _log.error(
            "%d of %d rows add nothing: their ids are missing, or no whole number or text (row %d, "
            "first)",
            len(nobodys),
            count,
            nobodys[0],
        )
    return [np.array(rows, dtype=np.int64) for rows in rows_of.values()]


def person_named(given: object) -> int | str | None:
    """An id as one value however it is written; None if it names nobody."""
    person = given.item() if isinstance(given, np.generic) else given
    if isinstance(person, bool):
        return None
    if isinstance(person, float):  # beyond 2⁵³ several whole numbers are one float
        return int(person) if person.is_integer() and abs(person) < 1 << 53 else None
    if not isinstance(person, str):
        return person if isinstance(person, int) else None
    person = person.strip()
    if person.lower() in _MISSING:
        return None
    return int(person.split(".")[0]) if _WHOLE.fullmatch(person) else person


class PersonSum:
    """The sum of persons' vectors, each clipped to S, on a lattice of cell S / R.

    Each vector is scaled to a norm of at most S and cut, toward zero, to multiples of 2⁻²⁰ cells.
    These are added as integers, exactly and in any order, and their sum is rounded to whole cells,
    once.

    Parameters
    ----------
    parameters : int
        d, the length of a vector.
    clipping_norm : float
        S, in the vectors' units.
    radius : int
        R, the clipping norm in cells, in [1, 2²⁰].
    limit : int, optional
        C, in cells: no entry of ``integers`` lies outside ±C, so that the silos' sum fits a ring
        (``SiloGaussian.largest_entry``). Default: entries are as large as they are.

    Notes
    -----
    **Guarantee.** One person more or less moves ``integers`` by less than R + √d cells (L2),
    whatever that vector and the others' are: by R before the last rounding, and that rounding by
    less than one cell a coordinate; to cut an entry to ±C moves two sums no further apart
    (``docs/explanation/proofs/distributed-noise.md``, "Sums over the persons of silos").

    **Assumptions.** A person's vector depends on no other person.

    **Not covered.** More than 2⁴² persons in one sum, or 2³¹ parameters.
    """

    def __init__(
        self, parameters: int, *, clipping_norm: float, radius: int, limit: int | None = None
    ) -> None:
        parameters = whole("parameters", parameters, least=1)
        self._norm = number("clipping_norm", clipping_norm, above=0)
        self._radius = whole("radius", radius, least=1, most=LARGEST_RADIUS)
        self._limit = None if limit is None else whole("limit", limit, least=1)
        at_once = min(_AT_ONCE, max(1, _NUMBERS // parameters))
        self._parts: Vectors = np.empty((at_once, parameters))  # of the vectors at work
        self._together: Vectors = np.zeros(parameters)  # of the last vectors, exact in doubles
        self._added = 0  # vectors in it
        self._sum: Integers = np.zeros(parameters, dtype=np.int64)
        self._summed = 0  # vectors in it
        self._whole: Integers | None = None  # cells of the vectors before

    def add(self, vectors: npt.NDArray[Any]) -> None:
        """Add persons' vectors, one a row; one that holds NaN or infinity adds zero.

        Parameters
        ----------
        vectors : ndarray of float, shape (m, d)
            In the units of the clipping norm. They are left as they are.
        """
        at_once = len(self._parts)
        for begin in range(0, len(vectors), at_once):
            parts = self._on_grid(vectors[begin : begin + at_once])
            if self._added + len(parts) > _AT_ONCE:
                self._gather()
            self._together += parts[0] if len(parts) == 1 else parts.sum(axis=0)
            self._added += len(parts)

    def integers(self) -> Integers:
        """The sum rounded to whole cells, halves upward, shape (d,); without noise."""
        self._gather()
        rounded: Integers = (self._sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS
        if self._whole is not None:
            rounded += self._whole
        if self._limit is None:
            return rounded
        within = np.clip(rounded, -self._limit, self._limit)
        if cut := int(np.count_nonzero(within != rounded)):
            _log.error(
                "%d of %d numbers of this silo's sum are cut to the most that all silos' persons "
                "together could make: it holds more persons than the public number of them all. "
                "Ask whoever runs it for a larger one",
                cut,
                len(rounded),
            )
        return within

    def _gather(self) -> None:
        """Move what doubles added to 64 bits."""
        if self._summed + self._added > MOST_PERSONS - 1:  # of each at most R·2²⁰, of a rest 2²⁰
            self._carry()
        self._sum += self._together.astype(np.int64)
        self._summed += self._added
        self._together[:] = 0
        self._added = 0

    def _carry(self) -> None:
        """Move whole cells away, before 64 bits overflow."""
        cells = self._sum >> FRACTION_BITS
        self._whole = cells if self._whole is None else self._whole + cells
        self._sum &= (1 << FRACTION_BITS) - 1
        self._summed = 0

    def _on_grid(self, vectors: npt.NDArray[Any]) -> Vectors:
        """The vectors clipped, in units of 2⁻²⁰ cells, as whole numbers, until the next call."""
        length = float(self._radius << FRACTION_BITS)
        given: Vectors = np.asarray(vectors, dtype=np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.vecdot(given, given)
            ordinary = (lengths > _SMALLEST) & (lengths < _LARGEST)
            factors = np.minimum(1 / self._norm, 1 / np.sqrt(np.where(ordinary, lengths, 1.0)))
            parts: Vectors = self._parts[: len(given)]
            np.multiply(given, (length * _MARGIN * factors)[:, None], out=parts)
        if not ordinary.all():
            parts[~ordinary] = self._scaled(given[~ordinary])
        np.trunc(parts, out=parts)
        # The length of what is added decides, whatever the factors were meant to achieve.
        parts[np.vecdot(parts, parts) > length * length * (1 - 2.0**-21)] = 0.0
        return parts

    def _scaled(self, vectors: Vectors) -> Vectors:
        """Vectors whose squares overflow or underflow, clipped; overwrites them."""
        largest = np.abs(vectors).max(axis=1, initial=0.0)
        finite = np.isfinite(largest)
        vectors[~finite] = 0.0
        largest = np.where(finite & (largest > 0), largest, 1.0)
        vectors /= largest[:, None]  # no square overflows, and none that counts underflows
        norms = np.sqrt(np.square(vectors).sum(axis=1))
        # The factor of a vector whose largest entry is 1: its norm becomes at most R.
        with np.errstate(over="ignore"):
            within = largest / self._norm
        length = float(self._radius << FRACTION_BITS)
        factors = length * _MARGIN * np.minimum(within, 1 / np.maximum(norms, 1.0))
        vectors *= factors[:, None]
        return vectors
