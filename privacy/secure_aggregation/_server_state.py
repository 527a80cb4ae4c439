"""What the server knows of a round."""

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from privacy.mechanisms import Randomness
from privacy.secure_aggregation._messages import AdvertisedKeys, encode_set
from privacy.secure_aggregation._sharing import Evidence
from privacy.secure_aggregation.errors import TooFewClientsError
from privacy.secure_aggregation.neighbours import Ring, RoundPlan
from privacy.secure_aggregation.terms import Adversary, RoundTerms


class ServerStage(IntEnum):
    """Which answers the server is waiting for."""

    ADVERTISING = 0
    SHARING = 1
    CHECKING = 2
    DISPUTING = 3
    MASKING = 4
    ENDORSING = 5
    OPENING = 6
    OVER = 7


@dataclass
class ClientRecord:
    """What the server knows of one client; a label is a neighbour's place among its neighbours."""

    node: int
    advertised: AdvertisedKeys
    evidence: list[Evidence] = field(default_factory=list)
    boxes: list[bytes] = field(default_factory=list)
    box_signatures: list[bytes] = field(default_factory=list)
    accusers: dict[int, bytes] = field(default_factory=dict)  # by label: the signed complaint
    shown: dict[int, bytes] = field(default_factory=dict)  # by label: shares that were disputed
    signature: bytes = b""
    opened: dict[int, int] = field(default_factory=dict)  # by point


@dataclass
class ServerRound:
    """The state of a round. An index is a client's place in the roster, sorted by identity."""

    terms: RoundTerms
    adversary: Adversary
    max_dropout_fraction: float | None
    cohort: int
    client_public_keys: frozenset[bytes]
    randomness: Randomness
    stage: ServerStage = ServerStage.ADVERTISING
    clients: list[ClientRecord] = field(default_factory=list)
    index: dict[int, int] = field(default_factory=dict)  # by node
    plan: RoundPlan = field(init=False)
    ring: Ring = field(init=False)
    session: bytes = bytes(32)
    bits: int = 0
    answered: set[int] = field(default_factory=set)  # in this stage
    sharers: list[int] = field(default_factory=list)
    checked: set[int] = field(default_factory=set)
    excluded: set[int] = field(default_factory=set)
    participants: list[int] = field(default_factory=list)
    survivors: list[int] = field(default_factory=list)
    participant_set: bytes = b""
    survivor_set: bytes = b""
    total: npt.NDArray[np.unsignedinteger] = field(default_factory=lambda: np.zeros(0, np.uint32))
    offences: dict[int, list[str]] = field(default_factory=dict)  # by index
    misconfigured: list[int] = field(default_factory=list)  # nodes

    def blame(self, index: int, offence: str) -> None:
        """Note, once, what a client did against the protocol."""
        offences = self.offences.setdefault(index, [])
        if offence not in offences:
            offences.append(offence)

    def members(self, index: int, members: set[int], whole: bytes) -> bytes:
        """A set as one client is shown it: of the roster (malicious), or of its neighbours."""
        if self.terms.malicious:
            return whole
        around = self.ring.neighbours(index)
        return encode_set(
            (label for label, other in enumerate(around) if other in members), self.plan.neighbours
        )

    def enough(self, remaining: set[int], did: str) -> list[int]:
        """The remaining clients in order; ``TooFewClientsError`` if their sum may not be opened."""
        if len(remaining) < self.plan.min_survivors:
            raise TooFewClientsError(
                f"{len(remaining)} clients {did}; {self.plan.min_survivors} are needed"
            )
        return sorted(remaining)

    def check_openable(self, owners: list[int], holders: set[int]) -> None:
        """End the round (``TooFewClientsError``) once too few holders of somebody's secret remain.

        Shares that a dispute showed need no holder; but a client that is still there counts its
        neighbours alone, and would refuse, so for it they do not count.
        """
        for owner in owners:
            shown = () if owner in holders else self.clients[owner].shown
            available = sum(
                label in shown or other in holders
                for label, other in enumerate(self.ring.neighbours(owner))
            )
            if available < self.plan.threshold:
                raise TooFewClientsError(
                    f"node {self.clients[owner].node} has {available} neighbours left to open its "
                    f"mask; {self.plan.threshold} are needed"
                )
