"""The server's side of a round: it relays, adds up, and opens the sum or nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _keys as keys
from privacy.secure_aggregation._graph import Ring
from privacy.secure_aggregation._masks import add_mask
from privacy.secure_aggregation._messages import (
    Announcement,
    Kind,
    bound_to,
    participants_statement,
    pieces,
    read,
    session_of,
    survivors_statement,
    write,
    write_set,
)
from privacy.secure_aggregation._ring import add_packed, centred, element_type, ring_bits
from privacy.secure_aggregation._round_state import INDEX_BYTES, SEALED_BYTES
from privacy.secure_aggregation._shamir import SHARE_BYTES, combine, read_element, write_element
from privacy.secure_aggregation.errors import (
    Malformed,
    OpeningFailed,
    Refused,
    RejectedMessage,
    TooFewClients,
)
from privacy.secure_aggregation.plan import RoundPlan, plan_round, quorum
from privacy.secure_aggregation.terms import Adversary, RoundTerms


class ServerStage(IntEnum):
    """What the server is waiting for."""

    ANNOUNCING = 0
    SHARING = 1
    MASKING = 2
    ENDORSING = 3
    OPENING = 4
    OVER = 5


@dataclass
class _Client:
    """What the server holds of one client."""

    node: int
    announcement: Announcement
    seed_commitment: bytes = b""
    seed_commitments: list[bytes] = field(default_factory=list)
    key_commitments: list[bytes] = field(default_factory=list)
    sealed: list[bytes] = field(default_factory=list)
    signature: bytes = b""
    opened: dict[int, int] = field(default_factory=dict)


class SecureServer:
    """One round of secure aggregation.

    Send ``invitation`` to the cohort; then, stage by stage, give each reply to ``receive`` and
    send what ``advance`` returns; when that is nothing more, ``open`` the sum. Clients may
    vanish at any stage: those whose reply is missing when ``advance`` is called have dropped
    out.

    Parameters
    ----------
    terms : RoundTerms
        What the round is about.
    adversary : Adversary
        Whom it must withstand; its server model is that of the terms.
    dropout : float
        The share of the clients that may vanish, in [0, 1).
    identities : iterable of bytes, optional
        Who may take part, as pinned Ed25519 public keys. Default: anybody.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests.

    Raises
    ------
    ValueError
        If the server model of the adversary and of the terms differ.
    """

    def __init__(
        self,
        terms: RoundTerms,
        *,
        adversary: Adversary,
        dropout: float,
        identities: Iterable[bytes] = (),
        randomness: Randomness | None = None,
    ) -> None:
        if adversary.server is not terms.server:
            raise ValueError(
                f"adversary has a {adversary.server.value} server, the terms a "
                f"{terms.server.value} one; make them agree"
            )
        self._terms = terms
        self._adversary = adversary
        self._dropout = dropout
        self._identities = frozenset(identities)
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self._stage = ServerStage.ANNOUNCING
        self._clients: list[_Client] = []
        self._index: dict[int, int] = {}
        self._awaited: set[int] = set()  # indices whose reply of this stage is missing
        self._answered: set[int] = set()
        self._sharers: list[int] = []
        self._survivors: list[int] = []
        self._session = bytes(32)
        self._sum: npt.NDArray[np.unsignedinteger] = np.zeros(0, np.uint32)
        self._sets = b"", b""

    @property
    def stage(self) -> ServerStage:
        """What it is waiting for."""
        return self._stage

    @property
    def survivors(self) -> list[int]:
        """The nodes in whose sum, for the operator's log."""
        return [self._clients[index].node for index in self._survivors]

    def invitation(self) -> bytes:
        """What the whole cohort is sent first."""
        return write(Kind.INVITATION, self._terms.digest, self._terms.to_bytes())

    # Replies ----------------------------------------------------------------------------------

    def receive(self, node: int, message: bytes) -> None:
        """Take one client's reply.

        Raises
        ------
        RejectedMessage
            If it cannot be used: the client has dropped out, the round goes on.
        """
        try:
            if self._stage is ServerStage.ANNOUNCING:
                self._hear(node, message)
                return
            index = self._index.get(node)
            if index is None or index not in self._awaited:
                raise RejectedMessage(f"nothing is awaited from node {node} at this stage")
            self._awaited.discard(index)  # one try each
            if bound_to(message) != self._session:
                raise RejectedMessage(f"node {node} answered another round")
            {
                ServerStage.SHARING: self._take_shares,
                ServerStage.MASKING: self._take_masked,
                ServerStage.ENDORSING: self._take_endorsement,
                ServerStage.OPENING: self._take_openings,
            }[self._stage](self._clients[index], index, message)
            self._answered.add(index)
        except (Malformed, Refused) as error:
            raise RejectedMessage(f"node {node}: {error}") from error

    def _hear(self, node: int, message: bytes) -> None:
        if bound_to(message) != self._terms.digest:
            raise RejectedMessage(f"node {node} answered another round")
        (content,) = read(message, Kind.ADVERTISEMENT, [Announcement.SIZE])
        announced = Announcement.from_bytes(content)
        if node in self._index:
            raise RejectedMessage(f"node {node} announced itself twice")
        if any(announced.identity == other.announcement.identity for other in self._clients):
            raise RejectedMessage(f"node {node} has the identity of another")
        if self._identities and announced.identity not in self._identities:
            raise RejectedMessage(f"node {node} has an unknown identity")
        statement = Announcement.statement_of(
            announced.asked, announced.mask_key, announced.channel_key
        )
        keys.verify(announced.identity, announced.signature, statement, "an announcement of keys")
        # A key of small order would make its neighbours refuse.
        keys.agree(bytes(keys.KEY_BYTES), [announced.mask_key, announced.channel_key])
        self._index[node] = len(self._clients)
        self._clients.append(_Client(node, announced))

    def _take_shares(self, client: _Client, index: int, message: bytes) -> None:
        k = self._plan.neighbours
        size = keys.COMMITMENT_BYTES
        client.seed_commitment, seeds, private, sealed = read(
            message, Kind.SHARES, [size, size * k, size * k, SEALED_BYTES * k]
        )
        client.seed_commitments, client.key_commitments = pieces(seeds, size), pieces(private, size)
        client.sealed = pieces(sealed, SEALED_BYTES)

    def _take_masked(self, client: _Client, index: int, message: bytes) -> None:
        signed = keys.SIGNATURE_BYTES if self._terms.malicious else 0
        packed, client.signature = read(message, Kind.MASKED_UPDATE, [None, signed])
        if self._terms.malicious:
            statement = participants_statement(self._session, self._sets[0])
            keys.verify(
                client.announcement.identity, client.signature, statement, "a masked update"
            )
        try:
            add_packed(self._sum, packed, self._bits)
        except ValueError as error:
            raise Malformed(str(error)) from error

    def _take_endorsement(self, client: _Client, index: int, message: bytes) -> None:
        (signature,) = read(message, Kind.ENDORSEMENT, [keys.SIGNATURE_BYTES])
        statement = survivors_statement(self._session, *self._sets)
        keys.verify(client.announcement.identity, signature, statement, "an endorsement")
        client.signature = signature

    def _take_openings(self, client: _Client, index: int, message: bytes) -> None:
        sharers, survivors = set(self._sharers), set(self._survivors)
        owners = [owner for owner in self._ring.neighbours(index) if owner in sharers]
        (content,) = read(message, Kind.OPENINGS, [SHARE_BYTES * len(owners)])
        for owner, opened in zip(owners, pieces(content, SHARE_BYTES), strict=True):
            label = self._ring.label(owner, index)
            held = self._clients[owner]
            if owner in survivors:
                committed, what = held.seed_commitments[label], b"seed share"
            else:
                committed, what = held.key_commitments[label], b"key share"
            if keys.commitment(what, opened) == committed:  # else one of the two is lying
                held.opened[label + 1] = read_element(opened)

    # Stages -----------------------------------------------------------------------------------

    def advance(self) -> dict[int, bytes]:
        """End the stage and begin the next.

        Returns
        -------
        dict of int to bytes
            What to send to each node that is still in the round. Nothing, once the sum can be
            opened.

        Raises
        ------
        RoundAborted
            If too few are left: the round is over, and nothing of it was or will be opened.
        RuntimeError
            If the round is over.
        """
        steps = {
            ServerStage.ANNOUNCING: self._send_roster,
            ServerStage.SHARING: self._deliver,
            ServerStage.MASKING: self._tell_survivors,
            ServerStage.ENDORSING: self._ask_openings,
        }
        if self._stage is ServerStage.OPENING:
            return {}
        if self._stage is ServerStage.OVER:
            raise RuntimeError("the round is over")
        try:
            messages = steps[self._stage]()
        except TooFewClients:
            self._stage = ServerStage.OVER
            raise
        self._awaited = {self._index[node] for node in messages}
        self._answered = set()
        return messages

    def _asked_as_most(self) -> list[_Client]:
        """Without those who were configured otherwise than most: who sees them would refuse."""
        (most, _), *_ = Counter(client.announcement.asked for client in self._clients).most_common()
        return [client for client in self._clients if client.announcement.asked == most]

    def _send_roster(self) -> dict[int, bytes]:
        if self._terms.malicious and self._clients:
            self._clients = self._asked_as_most()
        count = len(self._clients)
        if count < self._terms.minimum:
            raise TooFewClients(f"{count} clients announced keys; {self._terms.minimum} are needed")
        try:
            self._plan: RoundPlan = plan_round(
                count,
                adversary=self._adversary,
                dropout=self._dropout,
                minimum=self._terms.minimum,
            )
            self._bits = ring_bits(count, self._terms.bound)
        except ValueError as error:
            raise TooFewClients(str(error)) from error
        self._clients.sort(key=lambda client: client.announcement.identity)
        self._index = {client.node: index for index, client in enumerate(self._clients)}
        self._sum = np.zeros(self._terms.size, dtype=element_type(self._bits))
        self._stage = ServerStage.SHARING
        digest, encoded = self._terms.digest, self._plan.to_bytes()
        if self._terms.malicious:
            listed = b"".join(client.announcement.to_bytes() for client in self._clients)
            self._session = session_of(digest, encoded, listed)
            self._ring = Ring(self._plan, self._session)
            roster = write(Kind.ROSTER, digest, encoded, listed)
            return {client.node: roster for client in self._clients}
        self._session = session_of(digest, encoded, b"")
        self._ring = Ring(self._plan, self._randomness.bytes(keys.KEY_BYTES))
        return {
            client.node: write(Kind.NEIGHBOURHOOD, digest, encoded, self._neighbourhood(index))
            for index, client in enumerate(self._clients)
        }

    def _neighbourhood(self, index: int) -> bytes:
        parts = [index.to_bytes(INDEX_BYTES, "little")]
        for neighbour in self._ring.neighbours(index):
            announced = self._clients[neighbour].announcement
            parts.append(neighbour.to_bytes(INDEX_BYTES, "little"))
            parts += [announced.mask_key, announced.channel_key]
        return b"".join(parts)

    def _members(self, index: int, members: set[int], whole: bytes) -> bytes:
        """A set as one client is shown it."""
        if self._terms.malicious:
            return whole
        labels = [
            label for label, other in enumerate(self._ring.neighbours(index)) if other in members
        ]
        return write_set(labels, self._plan.neighbours)

    def _deliver(self) -> dict[int, bytes]:
        self._sharers = self._enough("shared their secrets")
        sharers = set(self._sharers)
        whole = write_set(self._sharers, self._plan.clients)
        self._sets = whole, b""
        self._stage = ServerStage.MASKING
        messages = {}
        for index in self._sharers:
            sealed = b"".join(
                self._clients[other].sealed[self._ring.label(other, index)]
                for other in self._ring.neighbours(index)
                if other in sharers
            )
            members = self._members(index, sharers, whole)
            messages[self._clients[index].node] = write(
                Kind.DELIVERIES, self._session, members, sealed
            )
        for client in self._clients:
            client.sealed = []
        return messages

    def _tell_survivors(self) -> dict[int, bytes]:
        self._survivors = self._enough("sent their masked vectors")
        survivors = set(self._survivors)
        self._check_openable(survivors)
        whole = write_set(self._survivors, self._plan.clients)
        self._sets = self._sets[0], whole
        if not self._terms.malicious:
            self._stage = ServerStage.OPENING
            return {
                self._clients[index].node: write(
                    Kind.OPENING_REQUEST,
                    self._session,
                    self._members(index, survivors, whole),
                    b"",
                    b"",
                )
                for index in self._survivors
            }
        self._stage = ServerStage.ENDORSING
        return {
            self._clients[index].node: write(
                Kind.SURVIVORS,
                self._session,
                whole,
                b"".join(
                    self._clients[other].signature
                    for other in self._ring.neighbours(index)
                    if other in survivors
                ),
            )
            for index in self._survivors
        }

    def _ask_openings(self) -> dict[int, bytes]:
        endorsers = sorted(self._answered)
        needed = quorum(self._plan.clients, self._adversary)
        if len(endorsers) < needed:
            raise TooFewClients(f"{len(endorsers)} endorsed the survivors; {needed} are needed")
        self._check_openable(self._answered)
        self._stage = ServerStage.OPENING
        request = write(
            Kind.OPENING_REQUEST,
            self._session,
            self._sets[1],
            write_set(endorsers, self._plan.clients),
            b"".join(self._clients[index].signature for index in endorsers),
        )
        return {self._clients[index].node: request for index in endorsers}

    def _enough(self, did: str) -> list[int]:
        if len(self._answered) < self._plan.survivors:
            raise TooFewClients(
                f"{len(self._answered)} clients {did}; {self._plan.survivors} are needed"
            )
        return sorted(self._answered)

    def _check_openable(self, holders: set[int]) -> None:
        """End the round as soon as somebody's secret has too few holders left."""
        for owner in self._sharers:
            left = sum(other in holders for other in self._ring.neighbours(owner))
            if left < self._plan.threshold:
                raise TooFewClients(
                    f"node {self._clients[owner].node} has {left} neighbours left to open its "
                    f"mask; {self._plan.threshold} are needed"
                )

    # The sum ----------------------------------------------------------------------------------

    def open(self) -> npt.NDArray[np.int64]:
        """Take all masks off the sum, once.

        Returns
        -------
        ndarray of int64, shape (size,)
            The exact sum of the survivors' vectors.

        Raises
        ------
        TooFewClients
            If too few opened their shares; nothing is opened.
        OpeningFailed
            If a client shared something else than it committed to; nothing is opened.
        RuntimeError
            If it is not yet, or no longer, time.
        """
        if self._stage is not ServerStage.OPENING:
            raise RuntimeError(f"the sum cannot be opened in stage {self._stage.name}")
        self._stage = ServerStage.OVER
        survivors = set(self._survivors)
        secrets = {
            owner: self._reconstruct(self._clients[owner], survived=owner in survivors)
            for owner in self._sharers
        }
        for owner, secret in secrets.items():
            if owner in survivors:
                add_mask(self._sum, keys.self_mask_key(secret, self._session), subtract=True)
                continue
            others = [other for other in self._ring.neighbours(owner) if other in survivors]
            publics = [self._clients[other].announcement.mask_key for other in others]
            for other, agreed in zip(others, keys.agree(secret, publics), strict=True):
                key = keys.pair_mask_key(agreed, owner, other, self._session)
                add_mask(self._sum, key, subtract=other < owner)
        total = centred(self._sum, self._bits)
        self._sum = np.zeros(0, np.uint32)
        return total

    def _reconstruct(self, client: _Client, *, survived: bool) -> bytes:
        """The seed of a survivor, or the mask key of who dropped out."""
        needed = self._plan.threshold
        points = sorted(client.opened)[:needed]
        if len(points) < needed:
            raise TooFewClients(
                f"{len(points)} neighbours of node {client.node} opened their share of its "
                f"secret; {needed} are needed"
            )
        secret = write_element(combine({point: client.opened[point] for point in points}))
        if survived:
            true = keys.commitment(b"seed", secret) == client.seed_commitment
        else:
            true = keys.public_key(secret) == client.announcement.mask_key
        if not true:
            raise OpeningFailed(f"node {client.node} shared something else than it committed to")
        return secret
