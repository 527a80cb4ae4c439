"""The keys that each owner has at the service, and their lifetime."""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from privacy.inference import EvaluatorPool
from privacy.inference.evaluator.pool import HeldKeys
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_names import key_id
from privacy.inference_service.limits import Clock

_REMEMBERED = 1 << 16
_NEW_KEYS = "make new keys and send them"


@dataclass(frozen=True)
class _KeySet:
    keys: HeldKeys
    expires: float


class _Owner:
    """One owner's key sets by name, least lately used first; fingerprints of all it ever had."""

    def __init__(self) -> None:
        self.sets: OrderedDict[str, _KeySet] = OrderedDict()
        self.had: OrderedDict[str, bytes] = OrderedDict()

    def refuse_gone(self, name: str) -> None:
        """Refuse keys that were here before."""
        if name in self.had:
            raise _gone()


class KeyStore:
    """Public material of many owners, several sets each, until it expires or has to make room.

    Keys are held in memory only. Keys that expired, made room or were taken back are not accepted
    again, whoever sends them, since the record of their answered queries is gone. Keys are told
    apart by the session key in them: altered material under the same session key is the same keys.

    ``owners`` is the largest number of owners, ``lifetime`` the seconds until keys expire.
    """

    def __init__(self, pool: EvaluatorPool, *, owners: int, lifetime: float, clock: Clock) -> None:
        self._pool = pool
        self._most_owners = owners
        self._lifetime = lifetime
        self._clock = clock
        self._lock = threading.Lock()
        self._owners: dict[str, _Owner] = {}
        self._arriving: Counter[str] = Counter()  # of owners
        self._being_read: set[str] = set()  # names of sets
        self._seen: set[bytes] = set()  # fingerprints of all that any owner ever had

    def __len__(self) -> int:
        return sum(bool(owner.sets) for owner in self._owners.values())

    @property
    def sets(self) -> int:
        """How many sets of keys are held."""
        return sum(len(owner.sets) for owner in self._owners.values())

    def put(
        self, owner: str, material: bytes, *, binding: bytes = b"", sets: int = 1
    ) -> tuple[str, float]:
        """Hold one more set of an owner's keys; beyond ``sets``, the least lately used one goes.

        The same keys again change nothing, their expiry included.

        Returns
        -------
        name : str
        seconds : float
            Until they expire.

        Raises
        ------
        MessageError
            If they are not public material of the plan with this binding.
        ServiceError
            If they were here before, or there is no room.
        EvaluatorFailedError
            If the process ended that checked them.
        """
        self.sweep()
        name = key_id(material)
        with self._lock:
            theirs = self._owners.setdefault(owner, _Owner())
            if name in theirs.sets:
                return name, theirs.sets[name].expires - self._clock()
            theirs.refuse_gone(name)
            if name in self._being_read:
                raise ServiceError("busy", 429, "these keys are being read", "send them once")
            others = {name for name, one in self._owners.items() if one.sets} | set(self._arriving)
            if owner not in others and len(others) >= self._most_owners:
                raise ServiceError(
                    "full",
                    503,
                    f"the service holds the keys of {self._most_owners} owners, which is its limit",
                    "try again later, or have its operator raise --owners",
                    retry_after=60,
                )
            self._arriving[owner] += 1
            self._being_read.add(name)
        try:
            keys = self._pool.hold(material, binding=binding)
            dropped = [keys]
            try:
                with self._lock:
                    if keys.fingerprint in self._seen:
                        raise _gone()
                    self._remember(theirs, name, keys.fingerprint)
                    theirs.sets[name] = _KeySet(keys, self._clock() + self._lifetime)
                    dropped.clear()
                    while len(theirs.sets) > sets:
                        dropped.append(theirs.sets.popitem(last=False)[1].keys)
            finally:
                for keys in dropped:
                    self._pool.drop(keys)
        finally:
            with self._lock:
                self._being_read.discard(name)
                self._arriving -= Counter([owner])
        return name, self._lifetime

    def get(self, owner: str, name: str) -> HeldKeys:
        """An owner's own keys of this name.

        Raises
        ------
        ServiceError
            If it has none of this name, or no longer.
        """
        self.sweep()
        with self._lock:
            theirs = self._owners.get(owner, _Owner())
            if name in theirs.sets:
                theirs.sets.move_to_end(name)
                return theirs.sets[name].keys
            theirs.refuse_gone(name)
        raise ServiceError("no-keys", 404, "you have no keys of this name here", _NEW_KEYS)

    def remove(self, owner: str, name: str) -> None:
        """Forget an owner's own keys of this name; raises as :meth:`get`."""
        self.get(owner, name)
        with self._lock:
            taken = self._owners[owner].sets.pop(name, None)
        if taken is not None:
            self._pool.drop(taken.keys)

    def sweep(self) -> None:
        """Forget keys that have expired."""
        now = self._clock()
        self._drop_where(lambda keys: keys.expires <= now)

    def clear(self) -> None:
        """Forget all keys."""
        self._drop_where(lambda _: True)

    def _drop_where(self, wanted: Callable[[_KeySet], bool]) -> None:
        dropped = []
        with self._lock:
            for owner in self._owners.values():
                for name in [name for name, keys in owner.sets.items() if wanted(keys)]:
                    dropped.append(owner.sets.pop(name).keys)
        for keys in dropped:
            self._pool.drop(keys)

    def _remember(self, owner: _Owner, name: str, fingerprint: bytes) -> None:
        """Remember that these keys were here; the caller has the lock."""
        owner.had[name] = fingerprint
        self._seen.add(fingerprint)
        while len(owner.had) > _REMEMBERED:
            oldest, old = owner.had.popitem(last=False)
            if oldest in owner.sets:  # still here: not to be forgotten
                owner.had[oldest] = old
            else:
                self._seen.discard(old)


def _gone() -> ServiceError:
    return ServiceError(
        "keys-gone", 410, "these keys were here before, and are not accepted again", _NEW_KEYS
    )
