"""A run's progress, round by round, for whoever watches it: ``on_round``."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from logging import WARNING
from typing import Protocol

from flwr.app import ArrayRecord, MetricRecord
from flwr.supercore import log

from privacy.accounting import Budget
from privacy.untrusted_text import error_quoted


@dataclass(frozen=True, kw_only=True)
class RoundProgress:
    """A round that was paid, in figures. All but ``seconds`` are public, noised, or covered by ε.

    Attributes
    ----------
    round : int
        The round's number, from 1; under distributed DP-SGD the step's.
    rounds : int
        The number of the run's last round.
    epsilon : float
        ε of everything that this population has paid by now; infinite without noise.
    delta : float
        δ at which it is.
    epsilon_limit : float
        The budget's ε; infinite where it sets no limit.
    noise_multiplier : float
        z.
    clipping_norm : float
        S, of the next round where it adapts.
    expected_cohort : float
        How many a round draws on average, q·N clients or p·N persons. How many it drew is secret.
    opened : bool
        Whether a sum was opened. False under secure aggregation where too few saw it through.
    model_bytes : int
        Bytes of the model's arrays, as each client is sent them.
    metrics : mapping of str to float
        Those that were released: clients' by the rules of ``Metrics`` as ``train/…`` and
        ``evaluate/…``, those of ``evaluate_fn`` as ``server/…``. A list's are numbered.
    seconds : float
        From the draw to the last evaluation. It depends on clients, and ε does not cover it: it is
        for the operator, as the run's console is.
    """

    round: int
    rounds: int
    epsilon: float
    delta: float
    epsilon_limit: float
    noise_multiplier: float
    clipping_norm: float
    expected_cohort: float
    opened: bool
    model_bytes: int
    metrics: Mapping[str, float]
    seconds: float

    def figures(self) -> dict[str, float]:
        """Everything that varies by round and may be shown to all, by name; no ``seconds``."""
        return {
            "privacy/epsilon": self.epsilon,
            "privacy/clipping_norm": self.clipping_norm,
            "run/opened": float(self.opened),
            **self.metrics,
        }


class OnRound(Protocol):
    """Called on the server after each round that was paid; any function of one argument will do.

    What it raises is logged once, and does not end the run. The run waits until it returns.
    """

    def __call__(self, progress: RoundProgress, /) -> object:
        """Take note of a round."""


class RoundObserver:
    """Tells ``on_round`` of each round, and outlives its errors.

    Parameters
    ----------
    on_round : OnRound
    budget : Budget
        Of the run.
    expected_cohort : float
    """

    def __init__(self, on_round: OnRound, *, budget: Budget, expected_cohort: float) -> None:
        self._on_round, self._budget, self._expected = on_round, budget, expected_cohort
        self._failed = False

    def __call__(
        self,
        number: int,
        last: int,
        arrays: ArrayRecord,
        *,
        epsilon: float,
        noise_multiplier: float,
        clipping_norm: float,
        opened: bool,
        seconds: float,
        **records: MetricRecord | None,
    ) -> None:
        """Tell of a round. ``records`` are the released metrics, by who measured them."""
        progress = RoundProgress(
            round=number,
            rounds=last,
            epsilon=epsilon,
            delta=self._budget.delta,
            epsilon_limit=self._budget.epsilon,
            noise_multiplier=noise_multiplier,
            clipping_norm=clipping_norm,
            expected_cohort=self._expected,
            opened=opened,
            model_bytes=sum(len(array.data) for array in arrays.values()),
            metrics=dict(_flattened(records)),
            seconds=seconds,
        )
        try:
            self._on_round(progress)
        except Exception as error:  # the operator's own, or a tracker's service that is away
            if not self._failed:
                self._failed = True
                log(
                    WARNING,
                    "on_round failed after round %d (%s). The run goes on; this is logged once, "
                    "and on_round is called after the next rounds as before.",
                    number,
                    error_quoted(error),
                )


def _flattened(records: Mapping[str, MetricRecord | None]) -> Iterator[tuple[str, float]]:
    for whose, record in records.items():
        for name, value in (record or {}).items():
            if isinstance(value, list):
                for i, item in enumerate(value):
                    yield f"{whose}/{name}/{i}", float(item)
            else:
                yield f"{whose}/{name}", float(value)
