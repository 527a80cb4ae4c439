"""Limits for one owner, and for all owners together."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

from privacy.arguments import convert, lifetime_hours, seconds, whole

Clock = Callable[[], float]
"""Seconds that never go back, as ``time.monotonic``."""


@dataclass(frozen=True)
class ServiceLimits:
    """The service's limits, all of them positive.

    Parameters
    ----------
    queue : int
        Requests with a body that may be under way beside those that are being answered.
    requests_per_minute : int
        Of one owner, for questions and sets of keys together. As many may come at once.
    owners : int
        How many owners' keys are held at most.
    key_sets : int
        Key sets that one owner may have at a time, as many as ask at once under its token; the
        least lately used one goes first. Without authentication everybody is one owner, sharing
        all owners' quota.
    key_hours : float
        Lifetime of keys.
    head_seconds : float
        Deadline of a TLS handshake, and then of a request's head.
    body_seconds : float
        Deadline of a request's body, and of the reading of an answer.
    """

    queue: int = 16
    requests_per_minute: int = 600
    owners: int = 64
    key_sets: int = 8
    key_hours: float = 8.0
    head_seconds: float = 5.0
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.type in (int, "int"):
                convert(self, field.name, whole, least=1)
            else:
                convert(self, field.name, lifetime_hours if field.name == "key_hours" else seconds)


class RateLimiter:
    """A token bucket for each owner, of ``per_minute`` tokens, refilled evenly in a minute."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._size = float(per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, owner: str) -> float:
        """Take a token: 0, or the seconds until there is one."""
        with self._lock:
            now = self._clock()
            left, at = self._buckets.get(owner, (self._size, now))
            left = min(self._size, left + (now - at) * self._size / 60)
            taken = left >= 1
            self._buckets[owner] = (left - taken, now)
            return 0.0 if taken else (1 - left) * 60 / self._size


class QueueSlots:
    """Slots of the queue for requests with a body; one owner may hold half, and at least one."""

    def __init__(self, slots: int) -> None:
        self._free = slots
        self._share = max(1, slots // 2)
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many are in use."""
        return sum(self._taken.values())

    def take(self, owner: str) -> tuple[int, str] | None:
        """Take a slot; if there is none, the HTTP status and the reason."""
        with self._lock:
            if self._taken.get(owner, 0) >= self._share:
                return 429, "too many of your requests are under way"
            if not self._free:
                return 503, "the queue is full"
            self._free -= 1
            self._taken[owner] = self._taken.get(owner, 0) + 1
            return None

    def give_back(self, owner: str) -> None:
        """Free a slot."""
        with self._lock:
            self._free += 1
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]
