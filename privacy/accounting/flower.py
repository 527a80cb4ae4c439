"""Flower's ``PrivacyAccountant`` protocol, answered by this package.

Imported on its own (``from privacy.accounting.flower import FlowerAccountant``), because it
needs Flower and the rest of the accounting does not.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from flwr.serverapp import (
    GaussianPrivacyEvent,
    NeighboringRelation,
    PrivacyConfig,
    PrivacySpent,
    SamplingMethod,
)

from privacy import arguments
from privacy.accounting.composition import Accountant, epsilon
from privacy.accounting.events import Adjacency, FixedSize, Full, GaussianRelease, Poisson, Sampling

_SCHEMA = 1
_ADJACENCIES = {
    NeighboringRelation.ADD_OR_REMOVE_ONE: Adjacency.ADD_OR_REMOVE_ONE,
    NeighboringRelation.REPLACE_ONE: Adjacency.REPLACE_ONE,
}


class FlowerAccountant:
    """An accountant for strategies that take Flower's ``PrivacyAccountant``.

    Parameters
    ----------
    config : PrivacyConfig
        Flower's: population, adjacency, sampling, target δ and budget.
    accountant : "pld" or "rdp", optional
        As in :func:`privacy.accounting.epsilon`.

    Notes
    -----
    **Guarantee.** As :func:`privacy.accounting.epsilon`. An event's ``noise_multiplier`` is σ/S
    for clipping norm S; under replace-one, where one client moves the sum by 2S, half of it is
    accounted. (Flower's own ``RdpAccountant`` accounts all of it there.)

    **Not covered.** Flower's protocol has events for equal Gaussian releases only, and no ledger:
    its state ends with the process unless ``state_dict`` is stored. Use
    :class:`privacy.accounting.Ledger` where runs share a population.
    """

    def __init__(self, config: PrivacyConfig, accountant: Accountant | None = None) -> None:
        self._config = config
        self._accountant = accountant
        self._events: Counter[GaussianPrivacyEvent] = Counter()
        self._check_accountant()

    @property
    def config(self) -> PrivacyConfig:
        """The configuration it was made with."""
        return self._config

    @property
    def num_releases(self) -> int:
        """How many releases were composed."""
        return self._events.total()

    def compose(self, event: GaussianPrivacyEvent, count: int = 1) -> None:
        """Take ``count`` releases of this population into account."""
        count = self._checked(event, count)
        self._events[event] += count

    def get_epsilon(self, delta: float) -> float:
        """ε of everything composed, at ``delta``."""
        return self._epsilon(self._events, delta)

    def get_delta(self, epsilon: float) -> float:
        """The smallest δ at which everything composed costs at most ``epsilon``, rounded up."""
        epsilon = arguments.number("epsilon", epsilon, least=0)
        if not self._events:
            return 0.0
        # On a logarithmic scale, from the smallest normal double to 1.
        bad, good = math.log(2.0**-1022), 0.0
        while good - bad > 1e-6:
            middle = 0.5 * (good + bad)
            if self.get_epsilon(math.exp(middle)) <= epsilon:
                good = middle
            else:
                bad = middle
        return math.exp(good)

    def get_privacy_spent(self, delta: float | None = None) -> PrivacySpent:
        """ε at ``delta``, by default the configured one, in Flower's own type."""
        target = self._config.target_delta if delta is None else delta
        return PrivacySpent(
            epsilon=self.get_epsilon(target),
            delta=target,
            num_releases=self.num_releases,
            accounting_method=self._method(),
        )

    def would_exceed(
        self, event: GaussianPrivacyEvent, max_epsilon: float | None = None, count: int = 1
    ) -> bool:
        """Whether ``count`` more of ``event`` pass the limit, given here or configured."""
        count = self._checked(event, count)
        limit = self._config.max_epsilon if max_epsilon is None else max_epsilon
        give = "a finite limit above 0, here or in PrivacyConfig"
        if limit is None:
            raise ValueError(f"max_epsilon is None; give {give}")
        limit = arguments.number("max_epsilon", limit, above=0, give=give)
        events = self._events.copy()
        events[event] += count
        return not self._epsilon(events, self._config.target_delta) <= limit

    def state_dict(self) -> dict[str, object]:
        """The compositions, as plain JSON values."""
        compositions = [asdict(event) | {"count": n} for event, n in self._events.items()]
        return {**self._setting(), "compositions": compositions}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Replace the compositions by those of a :meth:`state_dict` with this configuration."""
        for name, value in self._setting().items():
            if state.get(name) != value:
                raise ValueError(f"{name} of the state is {state.get(name)!r}, not {value!r}")
        compositions = state.get("compositions")
        if not isinstance(compositions, list):
            raise TypeError(f"compositions of the state is {compositions!r}, not a list")
        events: Counter[GaussianPrivacyEvent] = Counter()
        for fields in compositions:
            event, given = _composition(fields)
            events[event] += self._checked(event, given)
        self._events = events

    def _epsilon(self, events: Mapping[GaussianPrivacyEvent, int], delta: float) -> float:
        delta = arguments.delta("delta", delta)
        releases: Counter[GaussianRelease] = Counter()
        for event, count in events.items():
            releases[GaussianRelease(event.noise_multiplier, self._sampling(event))] += count
        return epsilon(
            releases,
            delta=delta,
            accountant=self._accountant,
            adjacency=_ADJACENCIES[self._config.neighboring_relation],
        )

    def _sampling(self, event: GaussianPrivacyEvent) -> Sampling:
        if self._config.sampling_method is SamplingMethod.POISSON:
            return Poisson(event.sample_size / event.population_size)
        if self._config.sampling_method is SamplingMethod.WITHOUT_REPLACEMENT:
            return FixedSize(event.sample_size, event.population_size)
        return Full()

    def _checked(self, event: GaussianPrivacyEvent, count: int) -> int:
        """How many of an event, which must be of this configuration, as a plain number."""
        if event.population_size != self._config.population_size:
            raise ValueError(
                f"population_size of the event is {event.population_size}, that of the "
                f"configuration {self._config.population_size}; they must be the same"
            )
        return arguments.whole("count", count, least=1)

    def _check_accountant(self) -> None:
        one = GaussianPrivacyEvent(1.0, 1, self._config.population_size)
        epsilon(
            [GaussianRelease(0.0, self._sampling(one))],
            delta=self._config.target_delta,
            accountant=self._accountant,
            adjacency=_ADJACENCIES[self._config.neighboring_relation],
        )

    def _method(self) -> str:
        if self._accountant is not None:
            return self._accountant
        fixed = self._config.sampling_method is SamplingMethod.WITHOUT_REPLACEMENT
        return "rdp" if fixed else "pld"

    def _setting(self) -> dict[str, object]:
        config = asdict(self._config)
        values = {name: getattr(value, "value", value) for name, value in config.items()}
        return {"schema_version": _SCHEMA, "backend": self._method(), "config": values}


def _composition(fields: Any) -> tuple[GaussianPrivacyEvent, int]:
    try:
        values = dict(fields)
        count = values.pop("count")
        return GaussianPrivacyEvent(**values), count
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"a composition of the state is malformed: {fields!r}") from error
