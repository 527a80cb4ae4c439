"""What one owner, and all owners together, may take of the service."""

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields

Clock = Callable[[], float]
"""Seconds that never go back, as ``time.monotonic``."""


@dataclass(frozen=True)
class ServiceLimits:
    """The service's limits.

    Parameters
    ----------
    queue : int
        Requests with a body that may be under way beside those that are being answered.
    requests_per_minute : int
        Of one owner: questions and sets of keys. That many may come at once.
    owners : int
        How many owners' keys are held at most.
    key_sets : int
        How many sets of keys one owner may have at a time, as many as ask at once under its
        token; of more, the one that was not used for longest goes. Without authentication
        everybody is one owner, who then has the room of all.
    key_hours : float
        After which an owner must make new keys.
    head_seconds : float
        In which a TLS handshake, and then the head of a request, must have arrived.
    body_seconds : float
        In which a request's body must have arrived, and an answer must have been taken.

    Raises
    ------
    ValueError
        If one is not a positive number.
    """

    queue: int = 16
    requests_per_minute: int = 600
    owners: int = 64
    key_sets: int = 8
    key_hours: float = 8.0
    head_seconds: float = 5.0
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{each.name} is {value}; give a positive number")


class RateLimiter:
    """A bucket of tokens for each owner, refilled evenly.

    Parameters
    ----------
    per_minute : int
        What a bucket is refilled with, and holds.
    clock : callable
    """

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._most = float(per_minute)
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait(self, owner: str) -> float:
        """Take one if there is one: 0, or seconds until there will be one."""
        with self._lock:
            now = self._clock()
            left, at = self._buckets.get(owner, (self._most, now))
            left = min(self._most, left + (now - at) * self._most / 60)
            taken = left >= 1
            self._buckets[owner] = (left - taken, now)
            return 0.0 if taken else (1 - left) * 60 / self._most


class QueueSlots:
    """The bounded queue: places for requests with a body, of which nobody may hold most.

    Parameters
    ----------
    places : int
        Of all owners together. One owner may take half of them, and at least one.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._share = max(1, places // 2)
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}

    @property
    def taken(self) -> int:
        """How many are in use."""
        return sum(self._taken.values())

    def take(self, owner: str) -> bool | None:
        """True if there is a place, None if the owner has its share, False if all are taken."""
        with self._lock:
            if self._taken.get(owner, 0) >= self._share:
                return None
            if not self._free:
                return False
            self._free -= 1
            self._taken[owner] = self._taken.get(owner, 0) + 1
            return True

    def give_back(self, owner: str) -> None:
        """Free a place."""
        with self._lock:
            self._free += 1
            self._taken[owner] -= 1
            if not self._taken[owner]:
                del self._taken[owner]
