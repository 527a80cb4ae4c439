"""Metrics for the operator: counts and times, of no owner in particular."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """Figures of one service, in Prometheus's text format; the arguments give current values."""

    def __init__(
        self,
        *,
        queued: Callable[[], float],
        owners: Callable[[], float],
        key_sets: Callable[[], float],
        running: Callable[[], float],
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "bloomseal_requests",
            "Requests, by outcome.",
            ["endpoint", "outcome"],
            registry=self._registry,
        )
        self.evaluation = Histogram(
            "bloomseal_evaluation_seconds",
            "Evaluation of one query, with masking.",
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.failed_evaluators = Counter(
            "bloomseal_failed_evaluators",
            "Evaluating processes that died or took too long.",
            registry=self._registry,
        )
        for name, text, now in (
            ("bloomseal_requests_under_way", "Requests with a body, waiting or answered.", queued),
            ("bloomseal_owners", "Owners whose keys are held.", owners),
            ("bloomseal_key_sets", "Sets of keys that are held.", key_sets),
            ("bloomseal_evaluators", "Evaluating processes that are up.", running),
        ):
            Gauge(name, text, registry=self._registry).set_function(now)

    def count(self, endpoint: str, outcome: str) -> None:
        """Count a request."""
        self._requests.labels(endpoint, outcome).inc()

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
