"""The ring: who is whose neighbour, and at which point of the polynomial."""

import numpy as np
import numpy.typing as npt

from privacy.secure_aggregation._crypto import KEY_BYTES
from privacy.secure_aggregation._masks import MASK_KEY_BYTES, add_mask
from privacy.secure_aggregation.neighbours import RoundPlan


class Ring:
    """A random ring of clients, laid out by a key of 32 bytes.

    The neighbours of a client come in a fixed order, by their distance; the share of the
    neighbour at place p lies at the point p + 1.
    """

    def __init__(self, plan: RoundPlan, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key has {len(key)} bytes; it must have {KEY_BYTES}")
        drawn = np.zeros(plan.clients, dtype=np.uint64)
        add_mask(drawn, key[:MASK_KEY_BYTES])
        self._at: npt.NDArray[np.int64] = np.argsort(drawn, kind="stable")
        self._place_of = np.argsort(self._at, kind="stable")
        if plan.complete:
            self._offsets = np.arange(1, plan.clients)
        else:
            near = np.arange(1, plan.neighbours // 2 + 1)
            self._offsets = np.concatenate([near, -near])
        self._label_of = {
            int(offset) % plan.clients: label for label, offset in enumerate(self._offsets)
        }

    def neighbours(self, client: int) -> list[int]:
        """The neighbours of a client, in the order of their labels."""
        places = (self._place_of[client] + self._offsets) % len(self._at)
        found: list[int] = self._at[places].tolist()
        return found

    def label(self, owner: int, holder: int) -> int:
        """At which place among the owner's neighbours the holder stands."""
        distance = (self._place_of[holder] - self._place_of[owner]) % len(self._at)
        return self._label_of[int(distance)]
