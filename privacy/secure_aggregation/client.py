"""The client's side of a round: it answers the server's messages, or refuses by name."""

import logging
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from privacy import arguments
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _client_stages as stages
from privacy.secure_aggregation._client_history import ClientHistory
from privacy.secure_aggregation._client_stages import Vector
from privacy.secure_aggregation._client_state import ClientStage, RoundState
from privacy.secure_aggregation._crypto import digest
from privacy.secure_aggregation._messages import Kind, asked_of, bound_to, decode, encode, kind_of
from privacy.secure_aggregation.errors import (
    BothSharesError,
    CohortTooSmallError,
    DifferentRequestsError,
    MalformedMessageError,
    MalformedRequestError,
    RefusedError,
    RepeatedModelError,
    StaleMessageError,
    UnacceptableTermsError,
    UnreadableStateError,
    WrongRoundError,
    WrongStageError,
)
from privacy.secure_aggregation.terms import ClientPolicy, Identity, RoundTerms

_MOST_OPEN = 8  # rounds at a time, each of another run
_MOST_GIVEN = 256  # vectors given elsewhere while a round has been given none, 16 KiB
_ZEROS = bytes(32)
_log = logging.getLogger(__name__)
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

    It is in one round of a run at a time, and in rounds of up to eight runs side by side, none of
    which ends another's; for a ninth it leaves the round that it has not heard of for longest. What
    it let be opened it remembers over all of them.

    **Guarantee.** Against the adversary of the policy the server learns of this client's vector
    nothing but its part in the sum of at least ``min_clients`` clients of the round, except
    with probability 2⁻⁴⁰ a round. Against a malicious server all of them were asked for the same
    thing, and each lets the sum of one set of clients be opened for a model, also in later rounds.

    **Assumptions.** X25519, HKDF-SHA256, AES and Ed25519 are secure; the operating system's
    randomness is unpredictable; of the drawn clients no more collude than the policy allows,
    whatever they send; the state is not rolled back between messages. An honest-but-curious server
    follows the protocol, and which honest clients drop out does not depend on who neighbours whom.
    Against a malicious one, whose count of the drawn is its own word, no more of the *roster*
    collude than the policy allows.

    **Not covered.** What the sum itself gives away (that is what noise is for); a wrong sum;
    denial of service; who takes part, and the sizes and times of messages.

    Parameters
    ----------
    policy : ClientPolicy
    identity : Identity, optional
        Default: a new one, which is enough against an honest-but-curious server.
    configuration : bytes
        A digest of all that the server's side lets this client's vector depend on outside the
        messages; against a malicious server it is the same for all clients of a round.
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
        arguments.of_kind("policy", policy, ClientPolicy, "ClientPolicy(min_clients=...)")
        arguments.of_kind("configuration", configuration, bytes, "a digest, as bytes")
        if identity is not None:
            arguments.of_kind("identity", identity, Identity, "Identity(private), or leave it out")
        if randomness is not None:
            arguments.of_kind("randomness", randomness, Randomness, "a Randomness, or leave it out")
        self._policy = policy
        self._configuration = configuration
        self._randomness: Randomness = SystemRandomness() if randomness is None else randomness
        self._identity = identity or Identity.draw(self._randomness)
        self._history = ClientHistory()
        self._rounds: dict[bytes, RoundState] = {}  # by run; the one last heard of at the end

    @property
    def identity(self) -> Identity:
        """Who it is."""
        return self._identity

    @property
    def stage(self) -> ClientStage:
        """What it does next in the round that it last heard of.

        Where it is in several, ask ``needs_vector`` whether a message asks for its vector.
        """
        return next(reversed(self._rounds.values())).stage if self._rounds else ClientStage.WAITING

    def terms_of(self, message: bytes) -> RoundTerms:
        """The terms of a message's round; ``WrongRoundError`` if the client is not in it."""
        state = self._round_of(message)
        if state is None:
            raise WrongRoundError("the message belongs to no round that the client is in")
        return state.terms

    def needs_vector(self, message: bytes) -> bool:
        """Whether the answer to this message carries the vector; nothing else is checked yet."""
        state = self._round_of(message)
        return (
            state is not None
            and state.stage is ClientStage.MASKING
            and kind_of(message) is Kind.PARTICIPANTS
            and bound_to(message) == state.session
        )

    def answer(
        self,
        message: bytes,
        vector: Vector | None = None,
        *,
        request: bytes = _ZEROS,
        model: bytes = _ZEROS,
    ) -> bytes:
        """Answer one message of the server.

        Parameters
        ----------
        message : bytes
        vector : ndarray of integers, shape (size,), optional
            This client's contribution; needed, and only used, in stage ``MASKING``. Where it is
            made only then, call ``prepare`` before and ``masked`` after.
        request, model : bytes
            As in ``prepare``; only used with the vector.

        Raises
        ------
        RefusedError
            If an answer would cost the client its protection, by the name of the reason. The client
            leaves the round that the message belongs to and forgets its secrets. It stays in all
            its rounds where the message is part of none: an invitation that it declines (such as
            ``MemoryFullError``), one of another round (``WrongRoundError``, ``BothSharesError``),
            or one that comes late or again (``StaleMessageError``).
        TypeError, ValueError
            If the vector is missing, or a digest is not one; the round goes on.
        """
        if self._is_invitation(message):
            return self._accept(message)
        with self._leaving_if_refused(message):
            kind = kind_of(message)
            state = self._at(message)
            if kind is Kind.PARTICIPANTS:
                if vector is None:
                    raise ValueError("vector is missing; this stage sends it")
                self._prepare(state, message, request, model)
                return stages.mask(state, vector, self._identity)
            if kind in (Kind.NEIGHBOURHOOD, Kind.ROSTER):
                return stages.share(
                    state, kind, message, self._policy, self._identity, self._randomness
                )
            if kind is Kind.DELIVERIES:
                return stages.check(state, message, self._identity)
            if kind is Kind.DISPUTES:
                return stages.answer_disputes(state, message)
            if kind is Kind.SURVIVORS:
                return self._endorse(state, message)
            opened = stages.open_shares(state, message, self._policy)
            self._history.opened[state.terms.run] = state.session
            self.leave(message)
            return opened

    def prepare(self, message: bytes, *, request: bytes = _ZEROS, model: bytes = _ZEROS) -> None:
        """Take the message that asks for the vector, before the vector is made.

        All that can be wrong with the server's side of it is found here. Afterwards the client is
        in stage ``TRAINING`` and takes this message no second time. Keep ``to_bytes`` before the
        vector is made: else a server could have it made again and again.

        Parameters
        ----------
        message : bytes
        request : bytes
            A digest, 32 bytes, of what this client received beside the protocol: it must be the one
            in the terms.
        model : bytes
            A digest, 32 bytes, of that alone which makes vectors of different rounds alike, such as
            the model's values. Default: all rounds are alike.

        Raises
        ------
        RefusedError
            As ``answer``; ``DifferentRequestsError`` if the request is another one; against a
            malicious server ``RepeatedModelError`` if for this model the client has endorsed the
            sum of other clients than these, or has given its vector to a round over others since
            this one began, or to one that it is still in.
        """
        with self._leaving_if_refused(message):
            self._prepare(self._at(message), message, request, model)

    def masked(self, message: bytes, vector: Vector) -> bytes:
        """Answer the message that ``prepare`` took.

        Parameters
        ----------
        message : bytes
        vector : ndarray of integers, shape (size,)
            This client's contribution. One that is not as the terms say counts as zeros, and only
            the client's own log tells: any other answer would tell the server of it.

        Raises
        ------
        StaleMessageError
            If the client has left that round meanwhile; it stays in those that it is in.
        """
        state = self._round_of(message)
        if (
            state is None
            or state.stage is not ClientStage.TRAINING
            or bound_to(message) != state.session
        ):
            raise StaleMessageError("the client has left the round for which it made its vector")
        return stages.mask(state, vector, self._identity)

    def leave(self, message: bytes) -> None:
        """Leave the round that a message belongs to, if it is in it, and forget its secrets."""
        state = self._round_of(message)
        if state is not None:
            del self._rounds[state.terms.run]

    def _round_of(self, message: bytes) -> RoundState | None:
        """The round, of those that it is in, to whose terms or roster a message is bound."""
        try:
            binding = bound_to(message)
        except MalformedMessageError:
            return None
        for state in self._rounds.values():
            if binding == state.terms.digest:
                return state
            if state.stage is not ClientStage.SHARING and binding == state.session:
                return state
        return None

    def _prepare(self, state: RoundState, message: bytes, request: bytes, model: bytes) -> None:
        for name, value in (("request", request), ("model", model)):
            arguments.exact_bytes(name, value, len(_ZEROS))
        if request != state.terms.request:
            raise DifferentRequestsError(
                "what came to make the vector from is not what was announced"
            )
        if asked_of(state.terms.digest, self._configuration) != state.asked:
            raise DifferentRequestsError("the client's configuration has changed within the round")
        stages.prepare(state, message)
        state.model = model
        if state.terms.malicious:
            group = stages.group_of(state, state.participants)
            self._history.check_same_group(model, group)
            self._check_side_by_side(state, group)
            self._note_given(state, group)

    def _endorse(self, state: RoundState, message: bytes) -> bytes:
        endorsement = stages.endorse(state, message, self._identity)
        group = stages.group_of(state, state.survivors)
        self._history.check_same_group(state.model, group)
        self._history.endorsed[state.model] = group
        return endorsement

    def _check_side_by_side(self, state: RoundState, group: bytes) -> None:
        """Of one model, two rounds at once are two sums as two rounds in a row are."""
        given = state.given_elsewhere | {
            (other.model, stages.group_of(other, other.participants))
            for other in self._rounds.values()
            if other is not state
            and other.stage >= ClientStage.TRAINING
            and other.model == state.model
        }
        if any(model == state.model and others != group for model, others in given):
            raise RepeatedModelError(
                "since this round began, or in a round that it is still in, the client has given "
                "its vector of this very model to other clients' sum; the difference of two such "
                "sums would be that of few"
            )

    def _note_given(self, state: RoundState, group: bytes) -> None:
        """Tell the rounds that wait for a vector: this one may be left by then.

        One that begins later needs no telling: whoever endorses this sum gives it nothing, and so
        stands in one of the two alone (docs/explanation/secure-sums.md, "Two sums of one model").
        """
        for run, other in list(self._rounds.items()):
            if other.stage >= ClientStage.TRAINING:
                continue
            other.given_elsewhere.add((state.model, group))
            if len(other.given_elsewhere) > _MOST_GIVEN:
                _log.warning(
                    "This client leaves a round that has waited while it gave %d vectors to "
                    "others, which is the most that it remembers for one.",
                    _MOST_GIVEN,
                )
                del self._rounds[run]

    @contextmanager
    def _leaving_if_refused(self, message: bytes) -> Iterator[None]:
        try:
            yield
        except (WrongRoundError, StaleMessageError, BothSharesError):
            raise  # no part of the round that it is in
        except RefusedError:
            self.leave(message)
            raise
        except MalformedMessageError as error:
            self.leave(message)
            raise MalformedRequestError(str(error)) from error

    def _at(self, message: bytes) -> RoundState:
        """The round that a message belongs to, if it is one that it is in, and at this stage."""
        kind, binding = kind_of(message), bound_to(message)
        expected = _EXPECTED.get(kind)
        if expected is None:
            raise MalformedRequestError(f"a server does not send {kind.name}")
        if kind is Kind.OPENING_REQUEST and binding in self._history.opened.values():
            raise BothSharesError(
                "shares of this round were opened before; for another set of survivors they "
                "would give away both kinds"
            )
        if not self._rounds:
            raise WrongStageError(f"{kind.name} came, but the client is in no round")
        state = self._round_of(message)
        first = expected is ClientStage.SHARING  # the only stage before there is a roster
        if state is None or binding != (state.terms.digest if first else state.session):
            raise WrongRoundError(
                f"{kind.name} is bound to another round or roster than the client's"
            )
        if state.stage > expected:
            raise StaleMessageError(
                f"{kind.name} came, but the client is past that: {state.stage.name}"
            )
        if state.stage < expected:
            raise WrongStageError(f"{kind.name} came where {state.stage.name} is next")
        self._rounds[state.terms.run] = self._rounds.pop(state.terms.run)  # heard of last
        return state

    @staticmethod
    def _is_invitation(message: bytes) -> bool:
        try:
            return kind_of(message) is Kind.INVITATION
        except MalformedMessageError:
            return False

    def _accept(self, message: bytes) -> bytes:
        try:
            (encoded,) = decode(message, Kind.INVITATION, [None])
            terms = RoundTerms.from_bytes(encoded)
        except MalformedMessageError as error:
            raise MalformedRequestError(str(error)) from error
        if bound_to(message) != terms.digest:
            raise WrongRoundError("an invitation that is bound to other terms than its own")
        if terms.server is not self._policy.adversary.server:
            raise UnacceptableTermsError(
                f"the round is made for a {terms.server.value} server; this client expects a "
                f"{self._policy.adversary.server.value} one"
            )
        if terms.min_clients < self._policy.min_clients:
            raise CohortTooSmallError(
                f"the round opens the sum of {terms.min_clients} clients; this client wants at "
                f"least {self._policy.min_clients}"
            )
        self._history.begin(terms)
        asked = asked_of(terms.digest, self._configuration)
        begun, advertisement = stages.advertise(terms, asked, self._identity, self._randomness)
        self._rounds.pop(terms.run, None)
        if len(self._rounds) >= _MOST_OPEN:
            _log.warning(
                "This client is in rounds of %d runs at once, which is the most: it leaves the "
                "round that it has not heard of for longest.",
                _MOST_OPEN,
            )
            del self._rounds[next(iter(self._rounds))]
        self._rounds[terms.run] = begun
        return advertisement

    def to_bytes(self) -> bytes:
        """All that it remembers, but for its policy and identity.

        It holds the secrets of its rounds and must not leave the client. Its SHA-256 keeps a
        damaged one from being taken, which would forget what was endorsed and opened.
        """
        rounds = [state.to_bytes() for state in self._rounds.values()]
        fields = [*self._history.to_fields(), *rounds, *[b""] * (_MOST_OPEN - len(rounds))]
        return encode(Kind.STATE, digest(b"state", *fields), *fields)

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
        """Take up what ``to_bytes`` put away; ``UnreadableStateError`` if it is not that."""
        arguments.of_kind("state", state, bytes, "what to_bytes wrote")
        client = cls(policy, identity=identity, configuration=configuration, randomness=randomness)
        try:
            fields = decode(state, Kind.STATE, [None] * (2 + _MOST_OPEN))
            if bound_to(state) != digest(b"state", *fields):
                raise MalformedMessageError("the state does not have its digest")
            runs, endorsed, *rounds = fields
            client._history = ClientHistory.from_fields(runs, endorsed)
            for encoded in filter(None, rounds):
                round_state = RoundState.from_bytes(encoded)
                client._rounds[round_state.terms.run] = round_state
        except (struct.error, ValueError) as error:  # `MalformedMessageError` is one
            raise UnreadableStateError(
                "what this client remembers was written by another version of secure aggregation, "
                "or is damaged"
            ) from error
        return client
