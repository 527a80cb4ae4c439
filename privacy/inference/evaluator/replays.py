"""Each query is answered once."""

import threading

from privacy.inference.errors import AnsweredBeforeError

REPLAY_WINDOW = 1024
"""How far a query may lag behind the newest one, in queries."""


class Replays:
    """Which queries under one set of keys were taken; ids may come out of order in a window."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest = -1
        self._seen = 0

    def take(self, query_id: int) -> None:
        """Take a query whose authentication was checked.

        Raises
        ------
        AnsweredBeforeError
            If it was taken before, or lags too far behind.
        """
        with self._lock:
            age = self._newest - query_id
            if age >= REPLAY_WINDOW or (age >= 0 and self._seen >> age & 1):
                raise AnsweredBeforeError(f"query {query_id} was answered before; encrypt again")
            if age < 0:
                self._seen = (self._seen << -age if -age < REPLAY_WINDOW else 0) | 1
                self._seen &= (1 << REPLAY_WINDOW) - 1
                self._newest = query_id
            else:
                self._seen |= 1 << age
