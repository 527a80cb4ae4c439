"""What a node tells of how many answers were right: a number, noised unless its owner says not."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np

from privacy.accounting import Budget, Full, GaussianRelease, Ledger, calibrate_noise_multiplier
from privacy.mechanisms import SystemRandomness, add_rounded_gaussian
from strategies.encrypted_round.errors import ReportRefusedError

_LEDGER = "report-ledger.jsonl"
_POPULATION = "this node's test data"


class AccuracyReport(Protocol):
    """Decides what a node says of its count of right answers."""

    def check(self, folder: Path) -> None:
        """Raise :class:`ReportRefusedError` if the node could not report now."""

    def release(self, right: int, asked: int, folder: Path, *, name: str) -> float:
        """The accuracy that leaves the node.

        Parameters
        ----------
        right, asked : int
            How many answers were right, and how many questions there were.
        folder : Path
            The node's own, for a ledger.
        name : str
            Of the round, for the ledger.
        """


@dataclass(frozen=True, kw_only=True)
class NoisedAccuracy:
    """The share of right answers, with noise that hides each image.

    Whoever evaluates chooses the model, and so which question about the images a count of right
    answers replies to; he may answer encrypted questions as he likes, too. Noise on the count
    holds for every such choice.

    Parameters
    ----------
    epsilon : float
        ε of one report.
    total_epsilon : float
        ε of all reports together; once one more would pass it, the node declines. The ledger of
        them is ``report-ledger.jsonl`` in the node's folder.
    delta : float
        δ of both.

    Guarantee
        The Gaussian mechanism on the count, which one image moves by at most one, rounded to a
        whole number: what the server learns from all reports is (total_epsilon, delta)-private
        for each image, whatever it sends.
    Assumptions
        How many images are asked about is public. The node's folder is kept, and is one for all
        reports on this data; noise comes from the operating system's randomness.
    Not covered
        What all images of a node have in common. Whether the node answers at all, and when.
    """

    epsilon: float = 1.0
    total_epsilon: float = 3.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        budget = Budget(self.total_epsilon, self.delta)
        if not 0 < self.epsilon <= budget.epsilon:
            raise ValueError(
                f"epsilon is {self.epsilon}; one report costs more than 0 and at most "
                f"total_epsilon = {self.total_epsilon}"
            )

    @property
    def noise(self) -> float:
        """The standard deviation of the noise, in answers."""
        return _noise(self.epsilon, self.delta)

    @property
    def _event(self) -> GaussianRelease:
        return GaussianRelease(self.noise, Full())

    def check(self, folder: Path) -> None:
        """The budget must allow one more report."""
        with Ledger.open(folder / _LEDGER, population=_POPULATION) as ledger:
            self._allow(ledger)

    def _allow(self, ledger: Ledger) -> None:
        if ledger.would_exceed(self._event, Budget(self.total_epsilon, self.delta)):
            raise ReportRefusedError("this node has reported as often as its owner allows")

    def release(self, right: int, asked: int, folder: Path, *, name: str) -> float:
        """The noised share; it is paid for before the noise is drawn.

        It may lie below 0 or above 1: cutting it off would pull averages of several nodes down.

        Raises
        ------
        ReportRefusedError
            If it would pass the budget.
        LedgerError
            If the ledger cannot be read or written.
        """
        with Ledger.open(folder / _LEDGER, population=_POPULATION) as ledger:
            self._allow(ledger)
            ledger.append(self._event, run=name, round=0)
        noisy = np.array([right], dtype=np.int64)
        add_rounded_gaussian(noisy, sigma=self.noise, randomness=SystemRandomness())
        return int(noisy[0]) / asked


@dataclass(frozen=True)
class ExactAccuracy:
    """The share of right answers as it is: the node's owner declares it public.

    Guarantee
        None. A server that chooses models learns one exact count about the images a round.
    """

    def check(self, folder: Path) -> None:
        """Nothing stands in the way."""

    def release(self, right: int, asked: int, folder: Path, *, name: str) -> float:
        """The share."""
        return right / asked


@lru_cache(maxsize=64)
def _noise(epsilon: float, delta: float) -> float:
    return calibrate_noise_multiplier(sampling=Full(), rounds=1, budget=Budget(epsilon, delta))
