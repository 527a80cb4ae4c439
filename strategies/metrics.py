"""Which of clients' metrics are released, and how: none by default."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import sqrt

import numpy as np
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from privacy import arguments
from privacy.accounting import Full, Poisson
from privacy.mechanisms import ClippingGeometry, Randomness, RoundSum, SumMechanism
from privacy.untrusted_text import error_quoted
from strategies.lost_clients import operator_log

_LARGEST_METRIC = 1e100  # what is beyond is as good as infinite


class MetricFault(StrEnum):
    """Why a client's metrics are left out, in words that hold nothing a client wrote."""

    MISSING = "there is no MetricRecord in the reply"
    WEIGHT = "the weight, by record_keys.weighted_by, is missing or is not a number above 0"
    VALUES = f"a value is NaN, infinite, or beyond {_LARGEST_METRIC:g}"
    FORM = "its metrics have other names, or lists of other lengths, than those of most clients"
    RANGED = "a metric that ranges names is missing, NaN or a list: it counts as its middle"
    AGGREGATE = (
        "the function of PublicMetrics(aggregate) raised an exception, which the log "
        "'bloomseal.operator' names"
    )


LeftOut = Callable[[MetricFault], None]
AggregateMetrics = Callable[[list[RecordDict], str], MetricRecord]


@dataclass(frozen=True)
class PublicMetrics:
    """The operator declares the clients' metrics public: they are released as they are.

    **Guarantee.** None. This is for metrics that tell nothing of anybody's data.

    Parameters
    ----------
    aggregate : callable
        ``(list[RecordDict], weighted_by_key) -> MetricRecord``, as in Flower's own strategies.
        Default: the weighted average.
    """

    aggregate: AggregateMetrics = aggregate_metricrecords

    def release(
        self, replies: Sequence[MetricRecord | None], weighted_by_key: str, *, left_out: LeftOut
    ) -> MetricRecord | None:
        """Aggregate the finite records that have the most common names and lengths.

        A client that sends others is left out, and so cannot keep the rest from being released.

        Parameters
        ----------
        replies : sequence of MetricRecord or None
            One a client that replied; None where it sent none.
        weighted_by_key : str
            The metric by which a client's record is weighted.
        left_out : callable
            Called with the reason for each record that is left out.
        """
        usable = []
        for record in replies:
            fault = _fault(record, weighted_by_key)
            if fault is not None:
                left_out(fault)
            elif record is not None:
                usable.append(record)
        forms = Counter(_form(record) for record in usable)
        if not forms:
            return None
        ((usual, times),) = forms.most_common(1)
        for _ in range(len(usable) - times):
            left_out(MetricFault.FORM)
        alike = [RecordDict({"metrics": r}) for r in usable if _form(r) == usual]
        try:
            return self.aggregate(alike, weighted_by_key)
        except Exception as error:  # made of clients' values: it must not end the run
            operator_log.warning(
                "clients' metrics could not be aggregated: %s", error_quoted(error)
            )
            left_out(MetricFault.AGGREGATE)
            return None


@dataclass(frozen=True, kw_only=True)
class NoisedMetrics:
    """Averages of clients' metrics with Gaussian noise, accounted like the model.

    Each of m metrics is clipped to its range and centred, so that one client moves the vector of
    sums by at most sqrt(m)/2 in units of the ranges. Noise of standard deviation z·sqrt(m)/2 is
    added, and the sum divided by the fixed expected cohort. A client that does not reply counts
    as the middle of the range.

    **Guarantee.** The Gaussian mechanism with noise multiplier z under add or remove one client
    (sensitivity twice that under replace-one, which the accountant applies).

    **Assumptions.** The ranges are public.

    **Not covered.** Metrics outside ``ranges``: they are dropped.

    Parameters
    ----------
    ranges : mapping of str to (float, float)
        The lowest and highest value of each metric that is released.
    noise_multiplier : float
        z.
    """

    ranges: Mapping[str, tuple[float, float]]
    noise_multiplier: float

    def __post_init__(self) -> None:
        arguments.of_kind("ranges", self.ranges, (Mapping,), "a dict of names to (low, high)")
        if not self.ranges:
            raise ValueError("ranges must name at least one metric")
        ranges = {}
        for name, bounds in self.ranges.items():
            low, high = arguments.interval(
                f"the range of {name!r}", bounds, "(low, high) with low < high"
            )
            if math.isinf(high - low):
                raise ValueError(f"the range of metric {name!r} is too wide: {low, high}")
            ranges[name] = low, high
        object.__setattr__(self, "ranges", ranges)
        arguments.convert(self, "noise_multiplier", arguments.number, above=0)


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Which of clients' metrics are released. Default: none, and nobody is asked to evaluate.

    Parameters
    ----------
    train : PublicMetrics or NoisedMetrics, optional
        The rule for the metrics of training.
    evaluate : PublicMetrics or NoisedMetrics, optional
        The rule for those of evaluation; needed if ``fraction_evaluate`` is above 0.
    fraction_evaluate : float
        The rate at which clients are asked to evaluate each round.
    """

    train: PublicMetrics | NoisedMetrics | None = None
    evaluate: PublicMetrics | NoisedMetrics | None = None
    fraction_evaluate: float = 0.0

    def __post_init__(self) -> None:
        rule = (PublicMetrics, NoisedMetrics, type(None))
        either = "PublicMetrics(), NoisedMetrics(...) or nothing"
        arguments.of_kind("metrics.train", self.train, rule, either)
        arguments.of_kind("metrics.evaluate", self.evaluate, rule, either)
        name = "metrics.fraction_evaluate"
        fraction = arguments.number(name, self.fraction_evaluate, least=0, most=1)
        object.__setattr__(self, "fraction_evaluate", fraction)
        if fraction and self.evaluate is None:
            raise ValueError(
                "metrics.fraction_evaluate is above 0 but metrics.evaluate is not set; give "
                "NoisedMetrics(ranges=...) or PublicMetrics()"
            )

    @property
    def sampling(self) -> Poisson | Full | None:
        """The sampling of evaluators: Poisson with the given rate; None where nobody evaluates."""
        if self.fraction_evaluate == 0:
            return None
        return Full() if self.fraction_evaluate == 1 else Poisson(self.fraction_evaluate)

    @property
    def evaluation_noise(self) -> float:
        """The noise multiplier of evaluation; NaN where its metrics are not noised."""
        rule = self.evaluate
        return rule.noise_multiplier if isinstance(rule, NoisedMetrics) else math.nan


class NoisedMetricsSum:
    """The noised metrics of one round."""

    def __init__(
        self, rule: NoisedMetrics, mechanism: SumMechanism, randomness: Randomness
    ) -> None:
        self._rule = rule
        size = len(rule.ranges)
        self._sum: RoundSum = mechanism.open(
            [np.zeros(size)],
            ClippingGeometry((sqrt(size) / 2,), (0,)),
            noise_multiplier=rule.noise_multiplier,
            randomness=randomness,
        )

    def add(self, metrics: MetricRecord | None) -> MetricFault | None:
        """Add one client's metrics; a missing or unusable one counts as its middle.

        Returns the fault, if there is one.
        """
        fault = MetricFault.MISSING if metrics is None else None
        centred = np.zeros(len(self._rule.ranges))
        for i, (name, (low, high)) in enumerate(self._rule.ranges.items()):
            value = None if metrics is None else metrics.get(name)
            if isinstance(value, int | float) and value == value:  # neither a list nor NaN
                centred[i] = (min(max(value, low), high) - low) / (high - low) - 0.5
            else:
                fault = fault or MetricFault.RANGED
        self._sum.add([centred], weight=1.0)
        return fault

    def release(self, expected_cohort: float) -> MetricRecord:
        """The noised averages."""
        (sums,) = self._sum.release()
        averages = np.clip(sums / expected_cohort, -0.5, 0.5) + 0.5
        return MetricRecord(
            {
                name: float(low + (high - low) * average)
                for (name, (low, high)), average in zip(
                    self._rule.ranges.items(), averages, strict=True
                )
            }
        )


def _fault(record: MetricRecord | None, weighted_by_key: str) -> MetricFault | None:
    if record is None:
        return MetricFault.MISSING
    weight = record.get(weighted_by_key)
    if not isinstance(weight, int | float) or not weight > 0:
        return MetricFault.WEIGHT
    values = [v for value in record.values() for v in _listed(value)]
    if not all(abs(value) < _LARGEST_METRIC for value in values):
        return MetricFault.VALUES
    return None


def _form(record: MetricRecord) -> frozenset[tuple[str, int | None]]:
    """The names of the metrics, and how long those are that are lists."""
    return frozenset((k, len(v) if isinstance(v, list) else None) for k, v in record.items())


def _listed(value: int | float | list[int] | list[float]) -> Sequence[int | float]:
    return value if isinstance(value, list) else [value]
