"""The server's side of a round: it relays, adds up, and opens the sum or nothing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from privacy import arguments
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _crypto as keys
from privacy.secure_aggregation import _kinds
from privacy.secure_aggregation._client_state import INDEX_BYTES, SEALED_BYTES
from privacy.secure_aggregation._graph import Ring
from privacy.secure_aggregation._masking import add_packed, centred, element_type, ring_bits
from privacy.secure_aggregation._masks import add_mask
from privacy.secure_aggregation._messages import (
    Announcement,
    Kind,
    bound_to,
    box_statement,
    complaint_statement,
    participants_statement,
    pieces,
    read,
    read_set,
    session_of,
    survivors_statement,
    write,
    write_set,
)
from privacy.secure_aggregation._shamir import SHARE_BYTES, combine, read_element, write_element
from privacy.secure_aggregation._sharing import (
    KEY,
    SEED,
    SHARES_BYTES,
    Evidence,
    agree_with,
    check_proof,
    proof_size,
    sharing_context,
)
from privacy.secure_aggregation.errors import (
    ForgedSignatureError,
    MalformedMessageError,
    RefusedError,
    RejectedMessageError,
    TooFewClientsError,
)
from privacy.secure_aggregation.neighbours import RoundPlan, plan_round
from privacy.secure_aggregation.terms import (
    Adversary,
    RoundTerms,
    check_adversary,
    pinned_keys,
)


class ServerStage(IntEnum):
    """What the server is waiting for."""

    ANNOUNCING = 0
    SHARING = 1
    CHECKING = 2
    DISPUTING = 3
    MASKING = 4
    ENDORSING = 5
    OPENING = 6
    OVER = 7


@dataclass
class _Client:
    """What the server holds of one client."""

    node: int
    announcement: Announcement
    evidence: list[Evidence] = field(default_factory=list)
    boxes: list[bytes] = field(default_factory=list)
    box_signatures: list[bytes] = field(default_factory=list)
    accusers: dict[int, bytes] = field(default_factory=dict)  # by label: the signed complaint
    shown: dict[int, bytes] = field(default_factory=dict)  # by label: shares that were disputed
    signature: bytes = b""
    opened: dict[int, int] = field(default_factory=dict)  # by point


@arguments.renamed(dropout="max_dropout_fraction")
class SecureServer:
    """One round of secure aggregation.

    Send ``invitation`` to the cohort; then, stage by stage, give each reply to ``receive`` and
    send what ``advance`` returns; when that is nothing more, ``open`` the sum. Clients may
    vanish at any stage: those whose reply is missing when ``advance`` is called have dropped
    out. The vectors are sent in stage ``MASKING``, when it is known that all who take part can be
    opened; before that, nobody needs to have trained.

    **Guarantee.** What a client sends costs that client only. One that shares its secrets wrongly,
    in whatever way, is left out before anybody masks; one that says so of others falsely changes
    nothing. Each is in ``offences``.

    **Assumptions.** The clients that lie about the shares that they hold, or do not open them, are
    among the share that may drop out.

    **Not covered.** A false vector: the server cannot see it.

    Parameters
    ----------
    terms : RoundTerms
        What the round is about.
    adversary : Adversary
        Whom it must withstand; its server model is that of the terms.
    max_dropout_fraction : float
        The share of the clients that may vanish after they announced themselves, in [0, 1).
    cohort : int
        How many were drawn, be they there to be invited or not: the adversary's share is of these.
    identities : iterable of bytes, optional
        Who may take part, as pinned Ed25519 public keys. Default: anybody.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests.

    Raises
    ------
    TypeError
        If one is of the wrong kind.
    ValueError
        If the server model of the adversary and of the terms differ, or a number is out of range.
    """

    def __init__(
        self,
        terms: RoundTerms,
        *,
        adversary: Adversary,
        max_dropout_fraction: float,
        cohort: int,
        identities: Iterable[bytes] = (),
        randomness: Randomness | None = None,
    ) -> None:
        arguments.of_kind("terms", terms, RoundTerms, "RoundTerms(...)")
        check_adversary("adversary", adversary)
        if randomness is not None:
            arguments.of_kind("randomness", randomness, Randomness, "a Randomness, or leave it out")
        if adversary.server is not terms.server:
            raise ValueError(
                f"adversary has a {adversary.server.value} server, the terms a "
                f"{terms.server.value} one; make them agree"
            )
        cohort = arguments.whole("cohort", cohort)
        if cohort < 0:
            raise ValueError(f"cohort is {cohort}; give how many clients were drawn")
        self._terms = terms
        self._adversary = adversary
        self._max_dropout_fraction = _kinds.share(
            "max_dropout_fraction", max_dropout_fraction, 1, "clients"
        )
        self._cohort = cohort
        self._identities = pinned_keys("identities", identities)
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self._stage = ServerStage.ANNOUNCING
        self._clients: list[_Client] = []
        self._index: dict[int, int] = {}
        self._awaited: set[int] = set()  # indices whose reply of this stage is missing
        self._answered: set[int] = set()
        self._sharers: list[int] = []
        self._participants: list[int] = []
        self._remaining = cohort
        self._offences: dict[int, list[str]] = {}  # by index
        self._elsewhere: list[int] = []  # nodes
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

    @property
    def cohort(self) -> int:
        """How many were drawn."""
        return self._cohort

    @property
    def remaining(self) -> int:
        """How many have answered whatever they were asked so far, for the operator's log."""
        return self._remaining

    @property
    def offences(self) -> dict[int, list[str]]:
        """What nodes did against the protocol, for the operator's log.

        Where two nodes dispute shares that are right, both are named, and one of them lies.
        """
        told = {self._clients[index].node: list(told) for index, told in self._offences.items()}
        return told | {node: ["was configured otherwise than most"] for node in self._elsewhere}

    def invitation(self) -> bytes:
        """What the whole cohort is sent first."""
        return write(Kind.INVITATION, self._terms.digest, self._terms.to_bytes())

    # Replies ----------------------------------------------------------------------------------

    def receive(self, node: int, message: bytes) -> None:
        """Take one client's reply.

        Raises
        ------
        RejectedMessageError
            If it cannot be used: the client has dropped out, the round goes on.
        """
        try:
            if self._stage is ServerStage.ANNOUNCING:
                self._hear(node, message)
                return
            index = self._index.get(node)
            if index is None or index not in self._awaited:
                raise RejectedMessageError(f"nothing is awaited from node {node} at this stage")
            if bound_to(message) != self._session:
                raise RejectedMessageError(f"node {node} answered another round")
            self._awaited.discard(index)  # one try each
            {
                ServerStage.SHARING: self._take_shares,
                ServerStage.CHECKING: self._take_complaints,
                ServerStage.DISPUTING: self._take_disputed,
                ServerStage.MASKING: self._take_masked,
                ServerStage.ENDORSING: self._take_endorsement,
                ServerStage.OPENING: self._take_openings,
            }[self._stage](self._clients[index], index, message)
            self._answered.add(index)
        except (MalformedMessageError, RefusedError) as error:
            raise RejectedMessageError(f"node {node}: {error}") from error

    def _hear(self, node: int, message: bytes) -> None:
        if bound_to(message) != self._terms.digest:
            raise RejectedMessageError(f"node {node} answered another round")
        (content,) = read(message, Kind.ADVERTISEMENT, [Announcement.SIZE])
        announced = Announcement.from_bytes(content)
        if node in self._index:
            raise RejectedMessageError(f"node {node} announced itself twice")
        if len(self._clients) >= self._cohort:
            raise RejectedMessageError(
                f"node {node} announced itself, but as many as were drawn did"
            )
        if any(announced.identity == other.announcement.identity for other in self._clients):
            raise RejectedMessageError(f"node {node} has the identity of another")
        if self._identities and announced.identity not in self._identities:
            raise RejectedMessageError(f"node {node} has an unknown identity")
        statement = Announcement.statement_of(
            announced.asked, announced.mask_key, announced.channel_key
        )
        keys.verify(announced.identity, announced.signature, statement, "an announcement of keys")
        own = {announced.mask_key, announced.channel_key}
        for other in self._clients:
            if own & {other.announcement.mask_key, other.announcement.channel_key}:
                raise RejectedMessageError(f"node {node} announced a key of another")
        # A key of small order would make its neighbours refuse.
        keys.agree(bytes(keys.KEY_BYTES), [announced.mask_key, announced.channel_key])
        self._index[node] = len(self._clients)
        self._clients.append(_Client(node, announced))

    def _take_shares(self, client: _Client, index: int, message: bytes) -> None:
        k, size = self._plan.neighbours, keys.COMMITMENT_BYTES
        proof_bytes = proof_size(self._plan.threshold)
        signed = keys.SIGNATURE_BYTES * k if self._terms.malicious else 0
        told, seeds, private, boxes = read(
            message, Kind.SHARES, [proof_bytes + signed, size * k, size * k, SEALED_BYTES * k]
        )
        try:
            client.evidence = check_proof(
                told[:proof_bytes],
                pieces(seeds, size),
                pieces(private, size),
                mask_key=client.announcement.mask_key,
                context=sharing_context(self._session, index),
            )
        except (MalformedMessageError, ForgedSignatureError) as error:
            self._blame(index, "shared something else than its own secrets")
            raise MalformedMessageError("it shared something else than its own secrets") from error
        client.boxes = pieces(boxes, SEALED_BYTES)
        client.box_signatures = pieces(told[proof_bytes:], keys.SIGNATURE_BYTES)

    def _take_complaints(self, client: _Client, index: int, message: bytes) -> None:
        """Note whose shares a client says are wrong."""
        around = self._ring.neighbours(index)
        complaints, signatures = read(message, Kind.COMPLAINTS, [-(-len(around) // 8), None])
        accused = [around[label] for label in sorted(read_set(complaints, len(around)))]
        signed = pieces(signatures, keys.SIGNATURE_BYTES) if self._terms.malicious else []
        if not set(accused) <= set(self._sharers) or (
            len(signed) != len(accused) if self._terms.malicious else signatures
        ):
            raise MalformedMessageError(
                "complaints of others than those whose shares were delivered"
            )
        for place, owner in enumerate(accused):
            signature = signed[place] if signed else b""
            if signature == bytes(keys.SIGNATURE_BYTES):
                self._judge(owner, index)
                continue
            if signature:
                statement = complaint_statement(self._session, owner, index)
                keys.verify(client.announcement.identity, signature, statement, "a complaint")
            self._clients[owner].accusers[self._ring.label(owner, index)] = signature

    def _judge(self, owner: int, accuser: int) -> None:
        """Decide who is to blame for a box that is said not to bear its sender's signature."""
        client, label = self._clients[owner], self._ring.label(owner, accuser)
        statement = box_statement(
            self._session, owner, accuser, client.boxes[label], client.evidence[label].to_bytes()
        )
        signature = client.box_signatures[label]
        try:
            keys.verify(client.announcement.identity, signature, statement, "a box of shares")
        except ForgedSignatureError:
            self._blame(owner, "sent a neighbour shares that it had not signed")
            self._excluded.add(owner)
        else:
            self._blame(accuser, "complained of a signature that is right")

    def _take_disputed(self, client: _Client, index: int, message: bytes) -> None:
        """Keep the shares that an owner shows, if they are what it committed to."""
        labels = sorted(client.accusers)
        (content,) = read(message, Kind.DISPUTED_SHARES, [SHARES_BYTES * len(labels)])
        shown = dict(zip(labels, pieces(content, SHARES_BYTES), strict=True))
        if not all(client.evidence[label].fit(shares) for label, shares in shown.items()):
            raise MalformedMessageError("what it shows of its shares is not what it committed to")
        client.shown = shown
        for label in labels:
            accuser = self._ring.neighbours(index)[label]
            between = f"{client.node} and {self._clients[accuser].node}"
            for one in (index, accuser):
                self._blame(one, f"disputed shares, which are right: one of nodes {between} lies")

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
            raise MalformedMessageError(str(error)) from error

    def _take_endorsement(self, client: _Client, index: int, message: bytes) -> None:
        (signature,) = read(message, Kind.ENDORSEMENT, [keys.SIGNATURE_BYTES])
        statement = survivors_statement(self._session, *self._sets)
        keys.verify(client.announcement.identity, signature, statement, "an endorsement")
        client.signature = signature

    def _take_openings(self, client: _Client, index: int, message: bytes) -> None:
        participants, survivors = set(self._participants), set(self._survivors)
        around = self._ring.neighbours(index)
        members, content = read(message, Kind.OPENINGS, [-(-len(around) // 8), None])
        owners = [around[label] for label in sorted(read_set(members, len(around)))]
        opened = pieces(content, SHARE_BYTES)
        if len(opened) != len(owners) or not set(owners) <= participants:
            raise MalformedMessageError("shares are opened of others than those who take part")
        if any(
            owner in participants - set(owners)
            and self._ring.label(owner, index) not in self._clients[owner].accusers
            for owner in around
        ):
            self._blame(index, "did not open every share that it holds")
        for owner, share in zip(owners, opened, strict=True):
            label = self._ring.label(owner, index)
            held = self._clients[owner]
            # It is what its owner committed to, and the holder had not complained of it.
            if held.evidence[label].fits(SEED if owner in survivors else KEY, share):
                held.opened[label + 1] = read_element(share)
            elif label not in held.accusers:
                self._blame(index, "opened a share that is not the one that it holds")

    def _blame(self, index: int, what: str) -> None:
        told = self._offences.setdefault(index, [])
        if what not in told:
            told.append(what)

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
        RoundAbortedError
            If too few are left: the round is over, and nothing of it was or will be opened.
        RuntimeError
            If the round is over.
        """
        steps = {
            ServerStage.ANNOUNCING: self._send_roster,
            ServerStage.SHARING: self._deliver,
            ServerStage.CHECKING: self._ask_disputed,
            ServerStage.DISPUTING: self._name_participants,
            ServerStage.MASKING: self._tell_survivors,
            ServerStage.ENDORSING: self._ask_openings,
        }
        if self._stage is ServerStage.OPENING:
            return {}
        if self._stage is ServerStage.OVER:
            raise RuntimeError("the round is over")
        self._count_remaining()
        try:
            messages = steps[self._stage]()
        except TooFewClientsError:
            self._stage = ServerStage.OVER
            raise
        self._awaited = {self._index[node] for node in messages}
        self._answered = set()
        return messages

    def _count_remaining(self) -> None:
        if self._stage is ServerStage.ANNOUNCING:
            self._remaining = len(self._clients)
        elif self._stage is not ServerStage.DISPUTING:  # which asks few
            self._remaining = len(self._answered)

    def _leave_out_elsewhere(self) -> None:
        """Leave out who was configured otherwise than most: who sees them would refuse."""
        asked = Counter(client.announcement.asked for client in self._clients)
        for most, _ in asked.most_common(1):
            others = [client for client in self._clients if client.announcement.asked != most]
            self._elsewhere = [client.node for client in others]
            self._clients = [client for client in self._clients if client not in others]

    def _send_roster(self) -> dict[int, bytes]:
        if self._terms.malicious:
            self._leave_out_elsewhere()
        count = len(self._clients)
        if count < self._terms.min_clients:
            raise TooFewClientsError(
                f"{count} clients announced keys; {self._terms.min_clients} are needed"
            )
        try:
            self._plan: RoundPlan = plan_round(
                count,
                adversary=self._adversary,
                max_dropout_fraction=self._max_dropout_fraction,
                min_clients=self._terms.min_clients,
                cohort=self._cohort,
            )
            self._bits = ring_bits(count, self._terms.bound)
        except ValueError as error:
            raise TooFewClientsError(str(error)) from error
        self._clients.sort(key=lambda client: client.announcement.identity)
        self._index = {client.node: index for index, client in enumerate(self._clients)}
        self._excluded: set[int] = set()
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
        self._sharers = self._enough(self._answered, "shared their secrets")
        sharers = set(self._sharers)
        self._check_openable(self._sharers, sharers)
        whole = write_set(self._sharers, self._plan.clients)
        self._stage = ServerStage.CHECKING
        messages = {}
        for index in self._sharers:
            senders = [other for other in self._ring.neighbours(index) if other in sharers]
            places = [(self._clients[other], self._ring.label(other, index)) for other in senders]
            messages[self._clients[index].node] = write(
                Kind.DELIVERIES,
                self._session,
                self._members(index, sharers, whole),
                b"".join(sender.boxes[label] for sender, label in places),
                b"".join(
                    sender.evidence[label].to_bytes()
                    + (sender.box_signatures[label] if self._terms.malicious else b"")
                    for sender, label in places
                ),
            )
        return messages

    def _ask_disputed(self) -> dict[int, bytes]:
        """Ask those whose shares are disputed to show these; go on if there are none."""
        for client in self._clients:
            client.boxes, client.box_signatures = [], []
        self._checked = self._answered - self._excluded
        self._enough(self._checked, "checked the shares that they hold")
        accused = [index for index in sorted(self._checked) if self._clients[index].accusers]
        self._stage = ServerStage.DISPUTING
        if not accused:
            self._answered = set()
            return self._name_participants()
        messages = {}
        for index in accused:
            client = self._clients[index]
            labels = sorted(client.accusers)
            messages[client.node] = write(
                Kind.DISPUTES,
                self._session,
                write_set(labels, self._plan.neighbours),
                b"".join(client.accusers[label] for label in labels),
            )
        return messages

    def _name_participants(self) -> dict[int, bytes]:
        """Leave out who shared wrongly, and end the round if it could not be opened."""
        for index in self._checked - self._answered:
            if self._clients[index].accusers:
                self._blame(index, "did not show the shares that its neighbours say are wrong")
                self._excluded.add(index)
        taking_part = self._checked - self._excluded
        self._participants = self._enough(taking_part, "shared their secrets as they should")
        self._check_openable(self._participants, taking_part)
        whole = write_set(self._participants, self._plan.clients)
        self._sets = whole, b""
        self._stage = ServerStage.MASKING
        return {
            self._clients[index].node: write(
                Kind.PARTICIPANTS, self._session, self._members(index, taking_part, whole)
            )
            for index in self._participants
        }

    def _tell_survivors(self) -> dict[int, bytes]:
        self._survivors = self._enough(self._answered, "sent their masked vectors")
        survivors = set(self._survivors)
        self._check_openable(self._participants, survivors)
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
        needed = self._plan.quorum(self._adversary)
        if len(endorsers) < needed:
            raise TooFewClientsError(
                f"{len(endorsers)} endorsed the survivors; {needed} are needed"
            )
        self._check_openable(self._participants, self._answered)
        self._stage = ServerStage.OPENING
        request = write(
            Kind.OPENING_REQUEST,
            self._session,
            self._sets[1],
            write_set(endorsers, self._plan.clients),
            b"".join(self._clients[index].signature for index in endorsers),
        )
        return {self._clients[index].node: request for index in endorsers}

    def _enough(self, left: set[int], did: str) -> list[int]:
        if len(left) < self._plan.survivors:
            raise TooFewClientsError(
                f"{len(left)} clients {did}; {self._plan.survivors} are needed"
            )
        return sorted(left)

    def _check_openable(self, owners: list[int], holders: set[int]) -> None:
        """End the round as soon as somebody's secret has too few holders left.

        Shares that were shown in a dispute need no holder any more; but a client that is still
        there counts its neighbours alone, and would refuse, so for it they do not count here.
        """
        for owner in owners:
            shown = () if owner in holders else self._clients[owner].shown
            left = sum(
                label in shown or other in holders
                for label, other in enumerate(self._ring.neighbours(owner))
            )
            if left < self._plan.threshold:
                raise TooFewClientsError(
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
        TooFewClientsError
            If too few opened their shares; nothing is opened.
        RuntimeError
            If it is not yet, or no longer, time.
        """
        if self._stage is not ServerStage.OPENING:
            raise RuntimeError(f"the sum cannot be opened in stage {self._stage.name}")
        self._count_remaining()
        self._stage = ServerStage.OVER
        survivors = set(self._survivors)
        secrets = {
            owner: self._reconstruct(self._clients[owner], survived=owner in survivors)
            for owner in self._participants
        }
        for owner, secret in secrets.items():
            if owner in survivors:
                seed = write_element(secret)
                add_mask(self._sum, keys.self_mask_key(seed, self._session), subtract=True)
                continue
            others = [other for other in self._ring.neighbours(owner) if other in survivors]
            publics = [self._clients[other].announcement.mask_key for other in others]
            for other, agreed in zip(others, agree_with(secret, publics), strict=True):
                key = keys.pair_mask_key(agreed, owner, other, self._session)
                add_mask(self._sum, key, subtract=other < owner)
        total = centred(self._sum, self._bits)
        self._sum = np.zeros(0, np.uint32)
        return total

    def _reconstruct(self, client: _Client, *, survived: bool) -> int:
        """The seed of a survivor, or the mask key of who dropped out.

        All shares that fit their commitments are of one polynomial: any of them will do.
        """
        which = SEED if survived else KEY
        for label, shares in client.shown.items():
            client.opened[label + 1] = read_element(pieces(shares, SHARE_BYTES)[which])
        needed = self._plan.threshold
        points = sorted(client.opened)[:needed]
        if len(points) < needed:
            raise TooFewClientsError(
                f"{len(points)} neighbours of node {client.node} opened their share of its "
                f"secret; {needed} are needed"
            )
        return combine({point: client.opened[point] for point in points})
