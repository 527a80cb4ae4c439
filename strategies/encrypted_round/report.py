"""From counts of right answers to an accuracy: a node's report, the server's release."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from flwr.app import MetricRecord

from privacy.accounting import (
    Budget,
    Full,
    GaussianRelease,
    Ledger,
    calibrate_noise_multiplier,
    epsilon,
)
from privacy.arguments import convert, number, whole
from privacy.inference import Plan
from privacy.mechanisms import Randomness, SumMechanism, SystemRandomness, add_rounded_gaussian
from strategies.encrypted_round.errors import ReportRefusedError
from strategies.encrypted_round.messages import ACCURACY
from strategies.metrics import LeftOut, NoisedMetrics, NoisedMetricsSum, PublicMetrics

_LEDGER = "report-ledger.jsonl"
_POPULATION = "this node's test data"
_CHARGED = "against a server that computes each answer from its own question"
_ANSWERED, _IMAGES = "answered", "num-examples"
# Wider than accuracies are: nodes' own noise may carry a report beyond 0 … 1, and cutting it off
# there would pull the mean down.
_LOW, _HIGH = -0.5, 1.5
_SEEN = 4  # standard deviations above which the noised number of reports is seen through the noise
RANGES = {ACCURACY: (_LOW, _HIGH), _ANSWERED: (0.0, 1.0)}

# A node's report --------------------------------------------------------------------------------


class AccuracyReport(Protocol):
    """Decides how a node's count of right answers leaves it."""

    def check(self, folder: Path) -> None:
        """Raise :class:`ReportRefusedError` if the node could not report now."""

    def release(self, right: int, asked: int, folder: Path, *, name: str) -> float:
        """The accuracy that leaves the node; ``folder`` has its ledger, ``name`` is the round's."""


@dataclass(frozen=True, kw_only=True)
class NoisedAccuracy:
    """The share of right answers, with noise that hides each image.

    Whoever evaluates chooses the model, and so chooses which question about the images the count
    answers. Noise on the count holds for every choice.

    **Guarantee.** The Gaussian mechanism on the count, rounded to a whole number. One image moves
    the count by at most one where every answer is computed from its own question: all reports
    together are then (total_epsilon, delta)-private for each image, whatever the model. This is
    what the ledger charges, and its records say so.

    **Assumptions.** The server follows the protocol. How many images are asked about is public.
    The node's folder is kept, and is one for all reports on this data; noise comes from the
    operating system's randomness.

    **Not covered.** A malicious server. All questions of a round are under one key, so that it can
    make every answer from one question, and one image then moves the count by as many as were
    asked about: :meth:`malicious_epsilon` is the ε that is left. What all images of a node have in
    common. Whether the node answers at all, and when.

    Parameters
    ----------
    epsilon : float
        ε of one report, against a server that follows the protocol.
    total_epsilon : float
        ε of all reports together, against such a server; once one more would pass it, the node
        declines. Their ledger is ``report-ledger.jsonl`` in the node's folder.
    delta : float
        δ of both.
    """

    epsilon: float = 1.0
    total_epsilon: float = 3.0
    delta: float = 1e-5

    def __post_init__(self) -> None:
        budget = self._budget
        object.__setattr__(self, "total_epsilon", budget.epsilon)
        object.__setattr__(self, "delta", budget.delta)
        convert(self, "epsilon", number)
        if not 0 < self.epsilon <= budget.epsilon:
            raise ValueError(
                f"epsilon is {self.epsilon}; one report costs more than 0 and at most "
                f"total_epsilon = {self.total_epsilon}"
            )

    @property
    def noise(self) -> float:
        """The standard deviation of the noise, in answers."""
        return _noise(self.epsilon, self.delta)

    def malicious_epsilon(self, images: int) -> float:
        """ε of one report on so many images, whatever the server sends; δ is ``delta``.

        No image moves a count of them by more than all of them.
        """
        moved = whole("images", images, least=1)
        return epsilon([GaussianRelease(self.noise / moved, Full())], delta=self.delta)

    @property
    def _budget(self) -> Budget:
        return Budget(self.total_epsilon, self.delta)

    @property
    def _event(self) -> GaussianRelease:
        return GaussianRelease(self.noise, Full())

    def check(self, folder: Path) -> None:
        """The budget must allow one more report."""
        with Ledger.open(folder / _LEDGER, population=_POPULATION) as ledger:
            self._allow(ledger)

    def _allow(self, ledger: Ledger) -> None:
        if ledger.would_exceed(self._event, self._budget):
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
            ledger.append(self._event, run=f"{name}, {_CHARGED}", round=0)
        noisy = np.array([right], dtype=np.int64)
        add_rounded_gaussian(noisy, sigma=self.noise, randomness=SystemRandomness())
        return int(noisy[0]) / asked


@dataclass(frozen=True)
class ExactAccuracy:
    """The share of right answers as it is: the node's owner declares it public.

    **Guarantee.** None. A server that chooses models learns one exact count about the images a
    round.
    """

    def check(self, folder: Path) -> None:
        """It is always allowed."""

    def release(self, right: int, asked: int, folder: Path, *, name: str) -> float:
        """The share."""
        return right / asked


@lru_cache(maxsize=64)
def _noise(epsilon: float, delta: float) -> float:
    return calibrate_noise_multiplier(sampling=Full(), rounds=1, budget=Budget(epsilon, delta))


# The server's release ---------------------------------------------------------------------------


def noised_accuracy(noise_multiplier: float) -> NoisedMetrics:
    """The ``metrics`` with which an :class:`EncryptedRound` noises the nodes' reports.

    Their sum and their number are noised, at the cost of one Gaussian release with this noise
    multiplier. Reports are held to -0.5 … 1.5; a node's own noise should be well within.

    Parameters
    ----------
    noise_multiplier : float
        z. With N nodes the released accuracy has a standard deviation of about 1.6·z/N.
    """
    return NoisedMetrics(ranges=RANGES, noise_multiplier=noise_multiplier)


@dataclass(frozen=True)
class EncryptedRoundResult:
    """The release of a round.

    Attributes
    ----------
    asked : int
        The population N, connected or not; where metrics are public, the connected nodes.
    answered : float
        Reports; noised, unless metrics are public.
    accuracy : float or None
        The mean report; noised, unless metrics are public. None if nobody reported, or too few to
        be seen through the noise.
    accuracy_noise : float or None
        About the standard deviation of the server's noise on ``accuracy``; 0 where metrics are
        public, None where there is no accuracy. The nodes' own noise comes on top.
    ms_per_query : float or None
        Median time of an evaluation, masking included.
    images : int
        The most images per node.
    plan : Plan
        Of the nodes' keys.
    """

    asked: int
    answered: float
    accuracy: float | None
    accuracy_noise: float | None
    ms_per_query: float | None
    images: int
    plan: Plan

    @property
    def queries(self) -> int:
        """Queries of a node that holds enough images."""
        return -(-self.images // self.plan.batch_size)

    @property
    def bytes_from_node(self) -> int:
        """Keys and questions of such a node."""
        return self.plan.public_bytes + self.queries * self.plan.query_bytes

    @property
    def bytes_to_node(self) -> int:
        """Answers to such a node."""
        return self.queries * self.plan.answer_bytes


class Released(NamedTuple):
    """The release of all reports; see :class:`EncryptedRoundResult`."""

    answered: float
    accuracy: float | None
    accuracy_noise: float | None


def node_report(accuracy: float, *, images: int) -> MetricRecord:
    """One node's report for the metrics, held to the range: no node counts for more."""
    bounded = min(max(accuracy, _LOW), _HIGH)
    return MetricRecord({ACCURACY: bounded, _ANSWERED: 1.0, _IMAGES: images})


def release_public(
    metrics: PublicMetrics, reports: Sequence[MetricRecord], *, left_out: LeftOut
) -> Released:
    """The mean weighted by the images asked about, without noise."""
    mean = metrics.release(reports, _IMAGES, left_out=left_out)
    if mean is None:
        return Released(float(len(reports)), None, None)
    return Released(float(len(reports)), _within(_number(mean, ACCURACY)), 0.0)


def release_noised(
    metrics: NoisedMetrics,
    reports: Sequence[MetricRecord],
    *,
    population: int,
    mechanism: SumMechanism,
    randomness: Randomness,
) -> Released:
    """The ratio of the noised sum and the noised count. Pay for it first."""
    noised = NoisedMetricsSum(metrics, mechanism, randomness)
    for report in reports:
        noised.add(report)
    released = noised.release(population)
    # A silent node counts as a half in both: that is taken out again. One metric of two, with a
    # range of 2 and twice a range of 1: the same noise on both.
    share = 2 * (_number(released, _ANSWERED) - 0.5)
    sigma = metrics.noise_multiplier * sqrt(2) / population
    if share <= _SEEN * sigma:
        return Released(max(share, 0.0) * population, None, None)
    centred = (_number(released, ACCURACY) - 0.5) / share
    return Released(
        answered=share * population,
        accuracy=_within(0.5 + centred),
        accuracy_noise=sigma / share * sqrt(1 + centred**2),
    )


def no_accuracy(metrics: NoisedMetrics | PublicMetrics, released: Released, population: int) -> str:
    """Why there is no accuracy, and the remedy; from what was released alone."""
    if isinstance(metrics, PublicMetrics):
        return "encrypted round: accuracy is None: no node sent a report that can be averaged"
    most = population / (_SEEN * sqrt(2))
    return (
        f"encrypted round: accuracy is None: {released.answered:.3g} reports, noise included, of a "
        f"population of {population} are within {_SEEN} standard deviations of the noise, and "
        "their mean would be noise alone. Ask more nodes, or lower the noise, at more ε: if every "
        f"node reports, noised_accuracy(z) gives an accuracy for z well below {most:.3g}"
    )


def _within(accuracy: float) -> float:
    return min(max(accuracy, 0.0), 1.0)


def _number(record: MetricRecord, name: str) -> float:
    value = record[name]
    if isinstance(value, list):
        raise TypeError(f"metric {name!r} is a list")
    return float(value)
