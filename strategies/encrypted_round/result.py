"""What is told of an encrypted round: the nodes' reports, summed and noised, or public."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from flwr.app import MetricRecord

from privacy.inference import Plan
from privacy.mechanisms import Randomness, SumMechanism
from strategies.encrypted_round.messages import ACCURACY
from strategies.metrics import LeftOut, NoisedMetrics, PublicMetrics

_ANSWERED, _IMAGES = "answered", "num-examples"
# Wider than accuracies are: nodes' own noise may carry a report beyond, and cutting it off there
# would pull the mean down.
_LOW, _HIGH = -0.5, 1.5
RANGES = {ACCURACY: (_LOW, _HIGH), _ANSWERED: (0.0, 1.0)}


def noised_accuracy(noise_multiplier: float) -> NoisedMetrics:
    """How an :class:`EncryptedRound` tells of the nodes' reports at a price in ε.

    Their sum and their number are noised, at the cost of one Gaussian release with this noise
    multiplier. Reports are held to -0.5 … 1.5; a node's own noise should be well within.

    Parameters
    ----------
    noise_multiplier : float
        z. With N nodes the accuracy that is told has a standard deviation of about 1.6·z/N.
    """
    return NoisedMetrics(ranges=RANGES, noise_multiplier=noise_multiplier)


@dataclass(frozen=True)
class EncryptedRoundResult:
    """What may be told of a round.

    Attributes
    ----------
    asked : int
        The population N, connected or not; where metrics are public, how many were connected.
    answered : float
        How many reported; noised, unless metrics are public.
    accuracy : float or None
        The mean of the nodes' reports; noised, unless metrics are public. None if nobody
        reported, or too few to tell through the noise.
    accuracy_noise : float or None
        About the standard deviation of the server's noise on ``accuracy``; 0 where metrics are
        public, None where there is no accuracy. The nodes' own noise comes on top.
    ms_per_query : float or None
        Median time of an evaluation, masking included.
    images : int
        About how many images a node asked, at most.
    plan : Plan
        For which keys were made.
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
        """What such a node sends: keys and questions."""
        return self.plan.public_bytes + self.queries * self.plan.query_bytes

    @property
    def bytes_to_node(self) -> int:
        """What it is sent: answers."""
        return self.queries * self.plan.answer_bytes


def node_report(accuracy: float, *, images: int) -> MetricRecord:
    """One node's report, as the metrics take it: no node counts for more than the range."""
    held = min(max(accuracy, _LOW), _HIGH)
    return MetricRecord({ACCURACY: held, _ANSWERED: 1.0, _IMAGES: images})


@dataclass(frozen=True)
class Released:
    """What is released of all reports; see :class:`EncryptedRoundResult`."""

    answered: float
    accuracy: float | None
    accuracy_noise: float | None


def release_public(
    metrics: PublicMetrics, reports: Sequence[MetricRecord], *, left_out: LeftOut
) -> Released:
    """The mean weighted by the images asked about, as it is."""
    told = metrics.release(reports, _IMAGES, left_out=left_out)
    if told is None:
        return Released(float(len(reports)), None, None)
    return Released(float(len(reports)), _within(_number(told, ACCURACY)), 0.0)


def release_noised(
    metrics: NoisedMetrics,
    reports: Sequence[MetricRecord],
    *,
    population: int,
    mechanism: SumMechanism,
    randomness: Randomness,
) -> Released:
    """The ratio of the noised sum and the noised count. Pay for it first."""
    noised = metrics.open(mechanism, randomness)
    for report in reports:
        noised.add(report)
    released = noised.release(population)
    # A silent node counts as a half in both: that is taken out again. One metric of two, with a
    # range of 2 and what is two of a range of 1: the same noise on both.
    share = 2 * (_number(released, _ANSWERED) - 0.5)
    sigma = metrics.noise_multiplier * sqrt(2) / population
    if share <= 4 * sigma:
        return Released(max(share, 0.0) * population, None, None)
    centred = (_number(released, ACCURACY) - 0.5) / share
    return Released(
        answered=share * population,
        accuracy=_within(0.5 + centred),
        accuracy_noise=sigma / share * sqrt(1 + centred**2),
    )


def _within(accuracy: float) -> float:
    return min(max(accuracy, 0.0), 1.0)


def _number(record: MetricRecord, name: str) -> float:
    value = record[name]
    if isinstance(value, list):
        raise TypeError(f"metric {name!r} is a list")
    return float(value)
