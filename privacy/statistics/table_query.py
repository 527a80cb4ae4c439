"""A query for the statistics of a table: which sums, how long a person's part is, how to read them.

A person's part is a vector: 1 for the person; for each column its value x in [-1, 1] between the
bounds, and 2x² - 1; one-hot vectors for the class and for each column's bin. Of several rows it is
their mean. Every number of it counts the same, so that all sums have equal noise.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privacy.accounting import Full, SiloSum
from privacy.arguments import convert, number, of_kind, shown, whole
from privacy.mechanisms import SiloGaussian

Vectors = npt.NDArray[np.float64]

_MOST_COLUMNS = 1 << 20
_MOST_CELLS = 1 << 20  # classes, or bins of a column


@dataclass(frozen=True)
class Statistics:
    """The answer to a ``TableQuery``, with its noise. Each person counts once.

    Attributes
    ----------
    count : float
        How many persons there are, at least 1.
    means, deviations : ndarray of float, shape (columns,)
        Of the values within the bounds, in the columns' units. A deviation is at least 0.
    class_counts : ndarray of float, shape (classes,)
        Persons of each class. Noise may bring one below 0.
    histograms : ndarray of float, shape (columns, bins)
        Persons in each bin, between equal steps from the lower to the upper bound.
    noise : float
        The noise's standard deviation in ``count`` and every other number of persons, where no
        more silos took part than the noise is sized for; all together have a little more. That of
        a mean is about noise / count of half the distance between its bounds.
    """

    count: float
    means: Vectors
    deviations: Vectors
    class_counts: Vectors
    histograms: Vectors
    noise: float


@dataclass(frozen=True, kw_only=True)
class TableQuery:
    """What is asked of every silo's table, the same of all.

    Parameters
    ----------
    bounds : sequence of (float, float)
        For each column the lowest and the highest value that is told apart, from knowledge that is
        not the data's. Values beyond count as the bound, missing ones (NaN) as the middle.
    classes : int
        C, how many classes the labels 0 … C - 1 have. 0: no labels.
    bins : int
        Of each column's histogram. 0: no histograms.

    Raises
    ------
    TypeError, ValueError
        If a bound is no number, or the lower one is not below the upper one.
    """

    bounds: Iterable[Any]
    classes: int = 0
    bins: int = 0

    def __post_init__(self) -> None:
        give = "(lowest, highest) for each column, such as [(0, 120), (0, 1)]"
        given: object = self.bounds
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise TypeError(f"bounds is {shown(given)}; give {give}")
        bounds = []
        for column, pair in enumerate(given):
            name = f"bounds[{column}]"
            if not isinstance(pair, Iterable) or isinstance(pair, str | bytes):
                raise TypeError(f"{name} is {shown(pair)}; give {give}")
            ends = [number(name, end) for end in pair]
            if len(ends) != 2 or not ends[0] < ends[1] or math.isinf(ends[1] - ends[0]):
                raise ValueError(f"{name} is {shown(pair)}; give two numbers, the lower one first")
            bounds.append((ends[0], ends[1]))
        if len(bounds) > _MOST_COLUMNS:
            raise ValueError(f"bounds has {len(bounds)} columns; give at most {_MOST_COLUMNS}")
        object.__setattr__(self, "bounds", tuple(bounds))
        for name in ("classes", "bins"):
            convert(self, name, whole, least=0, most=_MOST_CELLS)

    @property
    def columns(self) -> int:
        """How many columns the table has."""
        return len(self._ends)

    @property
    def parameters(self) -> int:
        """d, how many numbers a person's part has."""
        return 1 + (2 + self.bins) * self.columns + self.classes

    @property
    def clipping_norm(self) -> float:
        """S, the largest L2 norm of a person's part."""
        one_hot = (self.columns if self.bins else 0) + (1 if self.classes else 0)
        return math.sqrt(1 + 2 * self.columns + one_hot)

    def event(self, mechanism: SiloGaussian, *, noise_multiplier: float) -> SiloSum:
        """The event of one answer, for every silo's ledger and the server's: everybody is in it."""
        of_kind("mechanism", mechanism, SiloGaussian, "SiloGaussian(min_silos, colluders)")
        return mechanism.account(
            parameters=self.parameters, noise_multiplier=noise_multiplier, sampling=Full()
        )

    def parts(self, features: npt.NDArray[Any], labels: npt.NDArray[Any] | None) -> Vectors:
        """The parts of rows, shape (n, d): of features (n, columns) and labels (n,).

        A label that is none of the classes is counted in none.
        """
        low, high = self._ends.T
        half = (high - low) / 2
        scaled = (np.clip(features.astype(np.float64), low, high) - (low + half)) / half
        scaled = np.clip(np.where(np.isnan(scaled), 0.0, scaled), -1.0, 1.0)
        count = len(scaled)
        vectors = np.zeros((count, self.parameters))
        ones, means, squares, classes, bins = self._split(vectors)
        ones[:] = 1
        means[:] = scaled
        squares[:] = 2 * np.square(scaled) - 1
        rows = np.arange(count)
        if labels is not None and self.classes:
            known = np.flatnonzero((labels >= 0) & (labels < self.classes))
            known = known[labels[known] == np.floor(labels[known])]
            classes[known, labels[known].astype(np.int64)] = 1
        if self.bins:
            place = np.minimum((scaled + 1) * (self.bins / 2), self.bins - 1).astype(np.int64)
            for column in range(self.columns):
                bins[rows, column, place[:, column]] = 1
        return vectors

    def read(
        self,
        opened: npt.NDArray[np.int64],
        mechanism: SiloGaussian,
        *,
        noise_multiplier: float,
    ) -> Statistics:
        """The statistics in an opened sum; reading it costs no privacy.

        Parameters
        ----------
        opened : ndarray of int64, shape (d,)
            The sum of the silos' ``silo_statistics``.
        mechanism, noise_multiplier
            As the silos used them.

        Raises
        ------
        ValueError
            If the sum has another shape.
        """
        if opened.shape != (self.parameters,):
            raise ValueError(
                f"opened has the shape {opened.shape}; of this query it is ({self.parameters},)"
            )
        norm = self.clipping_norm
        sums = mechanism.decode(opened, clipping_norm=norm)[None]
        ones, means, squares, classes, bins = (part[0] for part in self._split(sums))
        count = max(1.0, float(ones))
        low, high = self._ends.T
        half = (high - low) / 2
        centre = np.clip(means / count, -1.0, 1.0)
        second = np.clip((squares / count + 1) / 2, 0.0, 1.0)
        spread = np.sqrt(np.maximum(second - np.square(centre), 0.0))
        return Statistics(
            count=count,
            means=low + half + centre * half,
            deviations=spread * half,
            class_counts=classes,
            histograms=bins,
            noise=number("noise_multiplier", noise_multiplier, least=0) * norm,
        )

    @property
    def _ends(self) -> Vectors:
        return np.array(self.bounds, dtype=np.float64).reshape(-1, 2)

    def _split(self, vectors: Vectors) -> tuple[Vectors, Vectors, Vectors, Vectors, Vectors]:
        """Views of vectors (n, d): ones, means, squares, classes, and bins by column."""
        columns = len(self._ends)
        ends = np.cumsum([1, columns, columns, self.classes])
        ones, means, squares, classes, bins = np.split(vectors, ends, axis=1)
        return ones[:, 0], means, squares, classes, bins.reshape(len(vectors), columns, self.bins)
