"""Local evaluation: each person's share of right answers, summed over the silos under noise."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from flwr.app import MetricRecord

from privacy import arguments

ACCURACY_SIZE = 2
ACCURACY_NORM = math.sqrt(0.5)
"""A person with the share a of right answers adds (a - 1/2, 1/2): at most this long."""

MOST_PERSONS = 10**10
"""Over all silos: their sums fit the ring, whatever the silos hold."""

_SEEN = 4.0  # deviations of its noise that a count of persons must have to be divided by


@dataclass(frozen=True, kw_only=True)
class LocalEvaluation:
    """The silos test the model on their own test rows, and their counts are opened with noise.

    Of each person the share of right answers counts, and the person; the sums over all silos are
    opened as a step's gradients are, with discrete Gaussian noise in shares, and their ratio is the
    accuracy. They are paid from the same budget, for every person of a silo's data set.

    Parameters
    ----------
    every : int
        The model is evaluated after every so many steps.
    noise_multiplier : float
        z: about the standard deviation, in persons, of the noise on the number of right answers.
    persons : int, optional
        A public number of persons (or rows) for testing, over all silos; a round number will do.
        With it the log warns where the silos' noised number is far from that. Default: unknown, and
        only a number within its noise is a reason to warn, or one far above all that train.
    """

    every: int
    noise_multiplier: float
    persons: int | None = None

    def __post_init__(self) -> None:
        arguments.convert(self, "every", arguments.whole, least=1)
        arguments.convert(self, "noise_multiplier", arguments.number, above=0)
        if self.persons is not None:
            arguments.convert(self, "persons", arguments.whole, least=1, most=MOST_PERSONS)


def person_vectors(
    right: npt.NDArray[np.bool_], person_of_row: npt.NDArray[np.int64], persons: int
) -> npt.NDArray[np.float64]:
    """Each person's part of the sum, shape (persons, 2).

    Parameters
    ----------
    right : ndarray of bool, shape (rows,)
        Whether the model answers a row rightly.
    person_of_row : ndarray of int, shape (rows,)
        Whose row it is, from 0 to persons - 1; each has at least one.
    persons : int
    """
    rows = np.bincount(person_of_row, minlength=persons)
    share = np.bincount(person_of_row, weights=right, minlength=persons) / np.maximum(rows, 1)
    return np.stack([share - 0.5, np.full(persons, 0.5)], axis=1)


def read_accuracy(total: npt.NDArray[np.float64], noise_multiplier: float) -> MetricRecord:
    """The noised number of persons, and the accuracy where that stands out of its noise.

    Parameters
    ----------
    total : ndarray of float, shape (2,)
        The opened sum.
    noise_multiplier : float
        z.
    """
    persons = 2 * float(total[1])
    metrics = MetricRecord({"persons": persons})
    if persons > _SEEN * 2 * ACCURACY_NORM * noise_multiplier:
        metrics["accuracy"] = min(max(0.5 + float(total[0]) / persons, 0.0), 1.0)
    return metrics
