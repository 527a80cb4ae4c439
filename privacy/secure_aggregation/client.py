"""The client's side of a round: it answers the server's messages, or refuses by name."""

import struct
from collections.abc import Iterator
from contextlib import contextmanager

from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _client_round as stages
from privacy.secure_aggregation._client_round import Vector
from privacy.secure_aggregation._messages import Kind, asked_of, bound_to, kind_of, read, write
from privacy.secure_aggregation._round_state import ClientStage, RoundState
from privacy.secure_aggregation.errors import (
    AlreadyTookPart,
    BothShares,
    CohortTooSmall,
    DifferentRequests,
    Malformed,
    MalformedRequest,
    MemoryFull,
    Refused,
    SameModelAgain,
    StaleMessage,
    UnacceptableTerms,
    UnreadableState,
    WrongRound,
    WrongStage,
)
from privacy.secure_aggregation.terms import RUN_BYTES, ClientPolicy, Identity, RoundTerms

_SEEN = struct.Struct(f"<{RUN_BYTES}sQ")
_ENDORSED = struct.Struct("<32s32s")
# Nothing of this is ever forgotten: a server could have it pushed out. Where it is full the client
# takes part no more. The state is written whole for each message, 6 MiB where both are full.
_MOST_RUNS = 1 << 16  # whose last round is remembered
_MOST_MODELS = 1 << 16  # of which a sum was endorsed
_UNSAID = bytes(32)
_EXPECTED = {
    Kind.NEIGHBOURHOOD: ClientStage.SHARING,
    Kind.ROSTER: ClientStage.SHARING,
    Kind.DELIVERIES: ClientStage.CHECKING,
    Kind.DISPUTES: ClientStage.MASKING,
    Kind.PARTICIPANTS: ClientStage.MASKING,
    Kind.SURVIVORS: ClientStage.ENDORSING,
    Kind.OPENING_REQUEST: ClientStage.OPENING,
}


class SecureClient:
    """One client, over any number of rounds.

    ``answer`` takes each message of the server and returns what to send back. Between messages
    the client can be put away with ``to_bytes`` and taken up again with ``from_bytes``.

    **Guarantee.** Against the adversary of the policy the server learns of this client's vector
    nothing but its part in the sum of at least ``minimum_cohort`` clients of the round, except
    with probability 2⁻⁴⁰ a round. Against a malicious server all of them were asked for the same
    thing, and each lets the sum of one set of clients be opened for a model, also in later rounds.

    **Assumptions.** X25519, HKDF-SHA256, AES and Ed25519 are secure; the operating system's
    randomness is unpredictable; of the clients that were drawn no more collude than the policy
    says, whatever these send; the state is not rolled back between messages. Against an
    honest-but-curious server: it is that, and which honest clients drop out does not depend on who
    neighbours whom. Against a malicious one, which says itself how many it drew: no more
    collude than that of the roster.

    **Not covered.** What the sum itself gives away (that is what noise is for); a wrong sum;
    denial of service; who takes part, and the sizes and times of messages.

    Parameters
    ----------
    policy : ClientPolicy
        What it insists on.
    identity : Identity, optional
        Its lasting identity. Default: a new one, which is enough against an honest-but-curious
        server.
    configuration : bytes
        A digest of what else the server's side lets this client's vector depend on, outside the
        messages; against a malicious server all clients of a round must have the same.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests; it voids all protection.
    """

    def __init__(
        self,
        policy: ClientPolicy,
        *,
        identity: Identity | None = None,
        configuration: bytes = b"",
        randomness: Randomness | None = None,
    ) -> None:
        self._policy = policy
        self._configuration = configuration
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self._identity = identity or Identity.draw(self._randomness)
        self._last: dict[bytes, int] = {}
        self._opened = b""
        self._endorsed: dict[bytes, bytes] = {}
        self._round: RoundState | None = None

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self._identity

    @property
    def stage(self) -> ClientStage:
        """What it does next; in ``MASKING`` its vector is needed."""
        return ClientStage.WAITING if self._round is None else self._round.stage

    @property
    def terms(self) -> RoundTerms:
        """The terms of the round that it is in.

        Raises
        ------
        WrongStage
            If it is in none.
        """
        if self._round is None:
            raise WrongStage("the client is in no round")
        return self._round.terms

    def needs_vector(self, message: bytes) -> bool:
        """Whether the answer to this message carries the vector; nothing else is checked yet."""
        this = self._round
        try:
            kind, binding = kind_of(message), bound_to(message)
        except Malformed:
            return False
        if this is None or this.stage is not ClientStage.MASKING:
            return False
        return kind is Kind.PARTICIPANTS and binding == this.session

    def answer(
        self,
        message: bytes,
        vector: Vector | None = None,
        *,
        request: bytes = _UNSAID,
        model: bytes = _UNSAID,
    ) -> bytes:
        """Answer one message of the server.

        Parameters
        ----------
        message : bytes
            What the server sent.
        vector : ndarray of integers, shape (size,), optional
            This client's contribution; needed in stage ``MASKING``, and only used there. Where
            it is made only then, ``prepare`` comes before and ``masked`` after.
        request, model : bytes
            As in ``prepare``; only used with the vector.

        Returns
        -------
        bytes
            What to send to the server.

        Raises
        ------
        Refused
            If the server asks for what would cost the client its protection, by the name of the
            reason. The client leaves the round and forgets its secrets, unless the message is
            no part of it: an invitation that it declines, as ``MemoryFull`` for want of room, a
            message of another round (``WrongRound``, ``BothShares``), or one that comes late or
            again (``StaleMessage``).
        ValueError
            If the vector is missing; the round goes on.
        """
        if self._is_invitation(message):
            return self._accept(message)
        with self._leaving_if_refused():
            kind = kind_of(message)
            this = self._at(kind, bound_to(message))
            if kind is Kind.PARTICIPANTS:
                if vector is None:
                    raise ValueError("vector is missing; this stage sends it")
                self._prepare(this, message, request, model)
                return stages.mask(this, vector, self._identity)
            if kind in (Kind.NEIGHBOURHOOD, Kind.ROSTER):
                return stages.share(
                    this, kind, message, self._policy, self._identity, self._randomness
                )
            if kind is Kind.DELIVERIES:
                return stages.check(this, message, self._identity)
            if kind is Kind.DISPUTES:
                return stages.settle(this, message)
            if kind is Kind.SURVIVORS:
                return self._endorse(this, message)
            opened = stages.open_shares(this, message, self._policy)
            self._opened, self._round = this.session, None
            return opened

    def prepare(self, message: bytes, *, request: bytes = _UNSAID, model: bytes = _UNSAID) -> None:
        """Take the message that asks for the vector, before the vector is made.

        Whatever can be wrong with the server's side of it is found here. Afterwards the client
        is in stage ``TRAINING`` and takes this message no second time. Keep ``to_bytes`` before
        the vector is made: else a server could have it made again and again.

        Parameters
        ----------
        message : bytes
            What the server sent.
        request : bytes
            A digest, 32 bytes, of what came beside the protocol, as this client received it: it
            must be the one in the terms, to which all are bound.
        model : bytes
            A digest, 32 bytes, of that alone which makes vectors of different rounds alike, such
            as the model's values. Default: all rounds are alike.

        Raises
        ------
        Refused
            As ``answer``; ``DifferentRequests`` if the request is another one; against a malicious
            server ``SameModelAgain`` if the client has endorsed the sum of other clients than
            these for this model.
        """
        with self._leaving_if_refused():
            self._prepare(self._at(kind_of(message), bound_to(message)), message, request, model)

    def masked(self, message: bytes, vector: Vector) -> bytes:
        """What to answer to the message that ``prepare`` took.

        Parameters
        ----------
        message : bytes
            That message.
        vector : ndarray of integers, shape (size,)
            This client's contribution. One that is not as the terms say counts as zeros, which
            the client's own log tells: to answer anything else would tell the server of it.

        Raises
        ------
        StaleMessage
            If the client has left that round meanwhile; it stays in the one that it is in.
        """
        this = self._round
        if (
            this is None
            or this.stage is not ClientStage.TRAINING
            or bound_to(message) != this.session
        ):
            raise StaleMessage("the client has left the round for which it made its vector")
        return stages.mask(this, vector, self._identity)

    def leave(self) -> None:
        """Leave the round, if it is in one, and forget its secrets."""
        self._round = None

    def _prepare(self, this: RoundState, message: bytes, request: bytes, model: bytes) -> None:
        if request != this.terms.request:
            raise DifferentRequests("what came to make the vector from is not what was announced")
        if asked_of(this.terms.digest, self._configuration) != this.asked:
            raise DifferentRequests("the client's configuration has changed within the round")
        stages.prepare(this, message)
        this.model = model
        if this.terms.malicious:
            self._check_same_group(model, stages.group_of(this, this.participants))

    def _endorse(self, this: RoundState, message: bytes) -> bytes:
        endorsement = stages.endorse(this, message, self._identity)
        group = stages.group_of(this, this.survivors)
        self._check_same_group(this.model, group)
        self._endorsed[this.model] = group
        return endorsement

    def _check_same_group(self, model: bytes, group: bytes) -> None:
        """Two sums of one model over different clients differ by those few who are in one."""
        if self._endorsed.get(model, group) != group:
            raise SameModelAgain(
                "this client has let the sum of other clients than these be opened for this "
                "model; the difference of two such sums would be that of few"
            )

    @contextmanager
    def _leaving_if_refused(self) -> Iterator[None]:
        try:
            yield
        except (WrongRound, StaleMessage, BothShares):
            raise  # no part of the round that it is in
        except Refused:
            self.leave()
            raise
        except Malformed as error:
            self.leave()
            raise MalformedRequest(str(error)) from error

    def _at(self, kind: Kind, binding: bytes) -> RoundState:
        """The round that a message belongs to, if it is this one and this stage."""
        this, expected = self._round, _EXPECTED.get(kind)
        if expected is None:
            raise MalformedRequest(f"a server does not send {kind.name}")
        if kind is Kind.OPENING_REQUEST and binding == self._opened:
            raise BothShares(
                "shares of this round were opened before; for another set of survivors they "
                "would give away both kinds"
            )
        if this is None:
            raise WrongStage(f"{kind.name} came, but the client is in no round")
        first = expected is ClientStage.SHARING  # the only stage before there is a roster
        if binding != (this.terms.digest if first else this.session):
            raise WrongRound(f"{kind.name} is bound to another round or roster than the client's")
        if this.stage > expected:
            raise StaleMessage(f"{kind.name} came, but the client is past that: {this.stage.name}")
        if this.stage < expected:
            raise WrongStage(f"{kind.name} came where {this.stage.name} is next")
        return this

    @staticmethod
    def _is_invitation(message: bytes) -> bool:
        try:
            return kind_of(message) is Kind.INVITATION
        except Malformed:
            return False

    def _accept(self, message: bytes) -> bytes:
        try:
            (encoded,) = read(message, Kind.INVITATION, [None])
            terms = RoundTerms.from_bytes(encoded)
        except Malformed as error:
            raise MalformedRequest(str(error)) from error
        if bound_to(message) != terms.digest:
            raise WrongRound("an invitation that is bound to other terms than its own")
        if self._last.get(terms.run, 0) >= terms.number:
            raise AlreadyTookPart(
                f"round {terms.number} of this run came after round {self._last[terms.run]}"
            )
        if terms.server is not self._policy.adversary.server:
            raise UnacceptableTerms(
                f"the round is made for a {terms.server.value} server; this client expects a "
                f"{self._policy.adversary.server.value} one"
            )
        if terms.minimum < self._policy.minimum_cohort:
            raise CohortTooSmall(
                f"the round opens the sum of {terms.minimum} clients; this client wants at least "
                f"{self._policy.minimum_cohort}"
            )
        self._check_room(terms)
        self._last[terms.run] = terms.number
        asked = asked_of(terms.digest, self._configuration)
        self._round, announcement = stages.announce(terms, asked, self._identity, self._randomness)
        return announcement

    def _check_room(self, terms: RoundTerms) -> None:
        """Make sure that nothing has to be forgotten for this round."""
        if terms.run not in self._last and len(self._last) >= _MOST_RUNS:
            full = f"{len(self._last)} runs"
        elif terms.malicious and len(self._endorsed) >= _MOST_MODELS:
            full = f"{len(self._endorsed)} models of which it endorsed a sum"
        else:
            return
        raise MemoryFull(
            f"this client remembers {full}, and to take part in another round it would have to "
            "forget one; only its owner may begin with an empty memory, for a server could then "
            "ask for what was refused before"
        )

    def to_bytes(self) -> bytes:
        """All that it remembers, but for its policy and identity.

        Holds the secrets of the round it is in: it must not leave the client.
        """
        return write(
            Kind.STATE,
            bytes(32),
            b"".join(_SEEN.pack(run, number) for run, number in self._last.items()),
            self._opened,
            b"".join(_ENDORSED.pack(model, group) for model, group in self._endorsed.items()),
            b"" if self._round is None else self._round.to_bytes(),
        )

    @classmethod
    def from_bytes(
        cls,
        state: bytes,
        policy: ClientPolicy,
        *,
        identity: Identity,
        configuration: bytes = b"",
        randomness: Randomness | None = None,
    ) -> "SecureClient":
        """Take up a client that ``to_bytes`` put away.

        Raises
        ------
        UnreadableState
            If the state is not that, or another version's.
        """
        client = cls(policy, identity=identity, configuration=configuration, randomness=randomness)
        try:
            seen, client._opened, endorsed, this = read(state, Kind.STATE, [None] * 4)
            client._last = dict(_SEEN.iter_unpack(seen))
            client._endorsed = dict(_ENDORSED.iter_unpack(endorsed))
            client._round = RoundState.from_bytes(this) if this else None
        except (struct.error, ValueError) as error:  # `Malformed` is one
            raise UnreadableState(
                "what this client remembers was written by another version of secure aggregation, "
                "or is damaged"
            ) from error
        return client
