"""What a client remembers of the round that it is in."""

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from privacy.secure_aggregation._crypto import KEY_BYTES, SEAL_BYTES
from privacy.secure_aggregation._messages import (
    Kind,
    decode,
    decode_set,
    encode,
    encode_set,
    pieces,
)
from privacy.secure_aggregation._shamir import SHARE_BYTES
from privacy.secure_aggregation._sharing import SHARES_BYTES, mask_private
from privacy.secure_aggregation.neighbours import RoundPlan
from privacy.secure_aggregation.terms import RoundTerms

SEALED_BYTES = SHARES_BYTES + SEAL_BYTES
INDEX_BYTES = 4


class ClientStage(IntEnum):
    """What a client does next."""

    WAITING = 0
    """It is in no round; an invitation comes next."""
    SHARING = 1
    """It has advertised its keys; the roster comes next."""
    CHECKING = 2
    """It has shared its secrets; others' shares come next."""
    MASKING = 3
    """It has checked others' shares; the participants come next, and its vector is needed."""
    TRAINING = 4
    """It knows the participants; it makes its vector, and takes no message meanwhile."""
    ENDORSING = 5
    """It has sent its masked vector; the survivors come next (malicious server only)."""
    OPENING = 6
    """The request to open shares comes next."""


@dataclass
class RoundState:
    """The state of a round, secrets included; an index is a place in the round's roster.

    ``dealt_shares`` are the client's own, as long as somebody may dispute them; ``held_shares`` its
    neighbours', by label, where they are right. ``given_elsewhere``: models and groups of clients
    of vectors that other rounds were given since this one began, until it has its own.
    """

    stage: ClientStage
    terms: RoundTerms
    mask_root: bytes = field(repr=False)
    channel_private: bytes = field(repr=False)
    asked: bytes = bytes(KEY_BYTES)
    model: bytes = bytes(KEY_BYTES)
    plan: RoundPlan | None = None
    session: bytes = bytes(32)
    own: int = 0
    neighbours: list[int] = field(default_factory=list)
    mask_keys: list[bytes] = field(default_factory=list)
    channel_secrets: list[bytes] = field(default_factory=list, repr=False)
    identities: list[bytes] = field(default_factory=list)
    seed: bytes = field(default=bytes(SHARE_BYTES), repr=False)
    dealt_shares: list[bytes] = field(default_factory=list, repr=False)
    participants: bytes = b""
    held_shares: dict[int, bytes] = field(default_factory=dict, repr=False)
    survivors: bytes = b""
    given_elsewhere: set[tuple[bytes, bytes]] = field(default_factory=set)

    @property
    def mask_private(self) -> bytes:
        """The X25519 private key of its pairwise masks."""
        return mask_private(self.mask_root)

    @property
    def planned(self) -> RoundPlan:
        """The plan, which every stage after the first has."""
        if self.plan is None:
            raise RuntimeError("the round has no plan yet")
        return self.plan

    def to_bytes(self) -> bytes:
        """The state, secrets included: it must not leave the client."""
        labels = sorted(self.held_shares)
        return encode(
            Kind.STATE,
            self.session,
            bytes([self.stage]),
            self.terms.to_bytes(),
            self.mask_root,
            self.channel_private,
            self.asked,
            self.model,
            b"" if self.plan is None else self.plan.to_bytes(),
            struct.pack(f"<{1 + len(self.neighbours)}I", self.own, *self.neighbours),
            b"".join(self.mask_keys),
            b"".join(self.channel_secrets),
            b"".join(self.identities),
            self.seed,
            b"".join(self.dealt_shares),
            self.participants,
            encode_set(labels, len(self.neighbours)),
            b"".join(self.held_shares[label] for label in labels),
            self.survivors,
            b"".join(model + group for model, group in sorted(self.given_elsewhere)),
        )

    @classmethod
    def from_bytes(cls, encoded: bytes) -> "RoundState":
        """Read what ``to_bytes`` wrote; ``MalformedMessageError`` if it is not that."""
        fixed = [KEY_BYTES] * 4
        fields = decode(
            encoded, Kind.STATE, [1, None, *fixed, *[None] * 5, SHARE_BYTES, *[None] * 6]
        )
        stage, terms, mask_root, channel_private, asked, model, plan = fields[:7]
        indices, mask_keys, channel_secrets, identities, seed = fields[7:12]
        dealt, participants, labels, shares, survivors, elsewhere = fields[12:]
        own, *neighbours = (
            int.from_bytes(index, "little") for index in pieces(indices, INDEX_BYTES)
        )
        return cls(
            stage=ClientStage(stage[0]),
            terms=RoundTerms.from_bytes(terms),
            mask_root=mask_root,
            channel_private=channel_private,
            asked=asked,
            model=model,
            plan=RoundPlan.from_bytes(plan) if plan else None,
            session=encoded[5:37],
            own=own,
            neighbours=neighbours,
            mask_keys=pieces(mask_keys, KEY_BYTES),
            channel_secrets=pieces(channel_secrets, KEY_BYTES),
            identities=pieces(identities, KEY_BYTES),
            seed=seed,
            dealt_shares=pieces(dealt, SHARES_BYTES),
            participants=participants,
            held_shares=dict(
                zip(
                    sorted(decode_set(labels, len(neighbours))),
                    pieces(shares, SHARES_BYTES),
                    strict=True,
                )
            ),
            survivors=survivors,
            given_elsewhere={
                (pair[:KEY_BYTES], pair[KEY_BYTES:]) for pair in pieces(elsewhere, 2 * KEY_BYTES)
            },
        )
