"""Columns of a table: a number with its public range, or one of public categories.

What a row becomes depends on the columns' public description and on that row alone: no mean, no
list of values seen, nothing of another row.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""Cells without a value, in lower case."""

_DECIMAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]\d{1,3})?")


@dataclass
class Changes:
    """What of a column was not taken as it stood: how often, and an example.

    ``missing`` cells, numbers ``beyond`` the range, other cells that are ``unknown``, and numbers
    ``converted`` from a decimal comma.
    """

    missing: int = 0
    beyond: int = 0
    unknown: int = 0
    converted: int = 0
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, kind: str, cell: str, line: int) -> None:
        """Count a cell."""
        setattr(self, kind, getattr(self, kind) + 1)
        self.examples.setdefault(kind, f"{cell[:40]!r} in line {line}" if cell else f"line {line}")


@dataclass(frozen=True)
class Number:
    """A number from ``low`` to ``high``; a missing one is taken as the middle."""

    name: str
    low: float
    high: float

    @property
    def features(self) -> tuple[str, ...]:
        """The names of what a model sees."""
        return (self.name,)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of each feature."""
        return self.low, self.high

    def encoded(
        self, cells: Sequence[str], lines: Sequence[int], *, commas: bool
    ) -> tuple[NDArray[np.float64], Changes]:
        """The column as numbers, shape (rows, 1), and what was changed."""
        values, changes = np.empty((len(cells), 1)), Changes()
        middle = self.low / 2 + self.high / 2
        for row, (cell, line) in enumerate(zip(cells, lines, strict=True)):
            values[row] = self._number(cell, line, changes, commas=commas, middle=middle)
        return values, changes

    def _number(
        self, cell: str, line: int, changes: Changes, *, commas: bool, middle: float
    ) -> float:
        if cell.lower() in MISSING:
            changes.count("missing", "", line)
            return middle
        value = as_number(cell, commas=commas)
        if value is not None and "," in cell:
            changes.count("converted", cell, line)
        if value is None or math.isnan(value):
            changes.count("unknown", cell, line)
            return middle
        if not self.low <= value <= self.high:
            changes.count("beyond", cell, line)
        return min(max(value, self.low), self.high)

    def notes(self, changes: Changes) -> list[str]:
        """The changes in words."""
        middle = f"taken as the middle of its range, {self.low / 2 + self.high / 2:g}"
        ends = f"[{self.low:g}, {self.high:g}]"
        return _notes(
            self.name,
            changes,
            missing=f"missing, {middle}",
            unknown=f"no number, {middle}",
            beyond=f"beyond its range {ends}, brought to its nearer end",
            converted="written with a decimal comma, read as numbers",
        )


@dataclass(frozen=True)
class Category:
    """One of some values, as text: a feature of 0 or 1 for each. A missing one has zeros alone."""

    name: str
    values: tuple[str, ...]

    @property
    def features(self) -> tuple[str, ...]:
        """The names of what a model sees."""
        return tuple(f"{self.name} = {value}" for value in self.values)

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of each feature."""
        return 0.0, 1.0

    def encoded(
        self, cells: Sequence[str], lines: Sequence[int], *, commas: bool
    ) -> tuple[NDArray[np.float64], Changes]:
        """The column as numbers, shape (rows, categories), and what was changed."""
        known = {canonical(value): place for place, value in enumerate(self.values)}
        values, changes = np.zeros((len(cells), len(self.values))), Changes()
        for row, (cell, line) in enumerate(zip(cells, lines, strict=True)):
            place = known.get(canonical(cell))
            if place is not None:
                values[row, place] = 1.0
            elif cell.lower() in MISSING:
                changes.count("missing", "", line)
            else:
                changes.count("unknown", cell, line)
        return values, changes

    def notes(self, changes: Changes) -> list[str]:
        """The changes in words."""
        return _notes(
            self.name,
            changes,
            missing="missing, taken as none of its categories",
            unknown=f"none of its categories ({', '.join(self.values)}), taken as missing",
        )


Column = Number | Category


def canonical(cell: str) -> str:
    """A text as it is compared with others: ``1``, ``1.0``, ``01`` and ``+1`` are one.

    Exactly, of any length. ``1e+05``, as R writes, is ``100000``; ``1e05``, which may be a name,
    is itself.
    """
    text = cell.strip()
    if not _DECIMAL.fullmatch(text):
        return text
    value = f"{Decimal(text):f}"
    sign, digits = ("-", value[1:]) if value.startswith("-") else ("", value)
    whole, _, part = digits.partition(".")
    whole, part = whole.lstrip("0") or "0", part.rstrip("0")
    plain = f"{whole}.{part}" if part else whole
    return plain if plain == "0" else sign + plain


def can_be_told_apart(low: float, high: float) -> bool:
    """Whether a model, which computes in single precision, sees where in a range a number lies."""
    largest = max(abs(low), abs(high))
    return largest <= 1e30 and high / 2 - low / 2 > 1e-6 * largest and high - low > 1e-30


def as_number(cell: str, *, commas: bool = False) -> float | None:
    """The number that a cell holds; None if it is none, such as Python's ``1_000``.

    ``commas`` says that a comma may be decimal.
    """
    try:
        return float(cell.replace(",", ".", int(commas))) if "_" not in cell else None
    except ValueError:
        return None


def _notes(name: str, changes: Changes, **words: str) -> list[str]:
    return [
        f"{name}: {number:,} {'value is' if number == 1 else 'values are'} {text} "
        f"(such as {changes.examples[kind]})"
        for kind, text in words.items()
        if (number := getattr(changes, kind))
    ]
