"""Which keys each owner has at the service, and for how long."""

import hashlib
import threading
from collections import deque
from dataclasses import dataclass

from privacy.inference import EvaluatorPool, HeldKeys
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.limits import Clock

_REMEMBERED = 1024
_NEW_KEYS = "make new keys and send them"


def key_id(material: bytes) -> str:
    """The name of a set of keys: the start of its SHA-256, 32 hexadecimal digits."""
    return hashlib.sha256(material).hexdigest()[:32]


@dataclass(frozen=True)
class _Current:
    id: str
    held: HeldKeys
    expires: float


class KeyStore:
    """Public material of many owners, one set each, until it expires or is replaced.

    Keys are held in memory only. Keys that expired, were replaced or taken back are not accepted
    again: which of their queries were answered is forgotten with them.

    Parameters
    ----------
    pool : EvaluatorPool
    owners : int
        How many owners' keys are held at most.
    lifetime : float
        Seconds.
    clock : callable
    """

    def __init__(self, pool: EvaluatorPool, *, owners: int, lifetime: float, clock: Clock) -> None:
        self._pool = pool
        self._owners = owners
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._current: dict[str, _Current] = {}
        self._arriving: set[str] = set()
        self._gone: dict[str, deque[str]] = {}

    def __len__(self) -> int:
        return len(self._current)

    def put(self, owner: str, material: bytes) -> tuple[str, float]:
        """Hold an owner's keys in place of those before.

        The same keys again change nothing, their expiry included.

        Returns
        -------
        id : str
        seconds : float
            Until they expire.

        Raises
        ------
        MessageError
            If they are not public material of the plan; those before stay.
        ServiceError
            If they were used up, or there is no room.
        EvaluatorFailed
            If the process ended that checked them.
        """
        self.sweep()
        name = key_id(material)
        with self._lock:
            before = self._current.get(owner)
            if before is not None and before.id == name:
                return name, before.expires - self._clock()
            self._refuse_gone(owner, name)
            if owner in self._arriving:
                raise ServiceError(
                    "busy", 429, "your keys are being read", "send one set at a time"
                )
            others = self._current.keys() | self._arriving
            if owner not in others and len(others) >= self._owners:
                raise ServiceError(
                    "full",
                    503,
                    f"the service holds the keys of {self._owners} owners, which is its limit",
                    "try again later, or have its operator raise --owners",
                    retry_after=60,
                )
            self._arriving.add(owner)
        try:
            held = self._pool.hold(material)
            with self._lock:
                before = self._retired(owner)
                self._current[owner] = _Current(name, held, self._clock() + self._lifetime)
        finally:
            with self._lock:
                self._arriving.discard(owner)
        if before is not None:
            self._pool.drop(before.held)
        return name, self._lifetime

    def get(self, owner: str, name: str) -> HeldKeys:
        """An owner's own keys of this name.

        Raises
        ------
        ServiceError
            If it has none, or has others.
        """
        self.sweep()
        with self._lock:
            current = self._current.get(owner)
            if current is not None and current.id == name:
                return current.held
            self._refuse_gone(owner, name)
        raise ServiceError("no-keys", 404, "you have no keys of this name here", _NEW_KEYS)

    def remove(self, owner: str, name: str) -> None:
        """Take an owner's keys back.

        Raises
        ------
        ServiceError
            As :meth:`get`.
        """
        self.get(owner, name)
        with self._lock:
            current = self._current.get(owner)
            if current is None or current.id != name:
                return
            self._retired(owner)
        self._pool.drop(current.held)

    def sweep(self) -> None:
        """Forget keys that have expired."""
        with self._lock:
            now = self._clock()
            expired = {
                owner: current for owner, current in self._current.items() if current.expires <= now
            }
            for owner in expired:
                self._retired(owner)
        for current in expired.values():
            self._pool.drop(current.held)

    def clear(self) -> None:
        """Forget all keys."""
        with self._lock:
            left = [self._retired(owner) for owner in list(self._current)]
        for current in filter(None, left):
            self._pool.drop(current.held)

    def _retired(self, owner: str) -> _Current | None:
        """Take an owner's keys out and remember their name; whoever calls has the lock."""
        current = self._current.pop(owner, None)
        if current is not None:
            self._gone.setdefault(owner, deque(maxlen=_REMEMBERED)).append(current.id)
        return current

    def _refuse_gone(self, owner: str, name: str) -> None:
        if name in self._gone.get(owner, ()):
            raise ServiceError(
                "keys-gone",
                410,
                "these keys have expired, or were replaced or taken back",
                _NEW_KEYS,
            )
