"""The server's side of a round: it relays, adds up, and opens the sum or nothing."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from privacy import arguments
from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import _server_stages as stages
from privacy.secure_aggregation._messages import Kind, bound_to, encode
from privacy.secure_aggregation._server_state import ServerRound, ServerStage
from privacy.secure_aggregation.errors import (
    MalformedMessageError,
    RefusedError,
    RejectedMessageError,
    TooFewClientsError,
)
from privacy.secure_aggregation.terms import Adversary, RoundTerms, check_adversary, pinned_keys

_TAKE = {
    ServerStage.SHARING: stages.take_shares,
    ServerStage.CHECKING: stages.take_complaints,
    ServerStage.DISPUTING: stages.take_disputed_shares,
    ServerStage.MASKING: stages.take_masked,
    ServerStage.ENDORSING: stages.take_endorsement,
    ServerStage.OPENING: stages.take_openings,
}
_BEGIN_NEXT = {
    ServerStage.ADVERTISING: stages.begin_sharing,
    ServerStage.SHARING: stages.begin_checking,
    ServerStage.CHECKING: stages.begin_disputing,
    ServerStage.DISPUTING: stages.begin_masking,
    ServerStage.MASKING: stages.begin_endorsing,
    ServerStage.ENDORSING: stages.begin_opening,
}


@arguments.renamed(dropout="max_dropout_fraction", identities="client_public_keys")
class SecureServer:
    """One round of secure aggregation.

    Send ``invitation`` to the cohort; then, stage by stage, give each reply to ``receive`` and send
    what ``advance`` returns; when that is nothing more, ``open`` the sum. Clients may vanish at any
    stage: whose reply is missing when ``advance`` is called has dropped out. Vectors are sent in
    stage ``MASKING``, when it is known that all who take part can be opened: nobody trains before
    that.

    **Guarantee.** What a client sends costs that client only. One that shares its secrets wrongly
    is left out before anybody masks; one that accuses others of it falsely changes nothing. Each is
    in ``offences``.

    **Assumptions.** Clients that lie about the shares that they hold, or do not open them, are
    among the share that may drop out.

    **Not covered.** A false vector: the server cannot see it.

    Parameters
    ----------
    terms : RoundTerms
    adversary : Adversary
        Whom it must withstand; its server model is that of the terms.
    max_dropout_fraction : float or None
        The share of the clients that may vanish after they advertised their keys, in [0, 1).
        None, for few clients: as many as leave ``terms.min_clients``.
    cohort : int
        How many were drawn, invited or not: the adversary's share is of these.
    client_public_keys : iterable of bytes, optional
        Who may take part, as pinned Ed25519 public keys. Default: anybody.
    randomness : Randomness, optional
        Default: the operating system's. A seeded one is for tests.

    Raises
    ------
    TypeError, ValueError
        If one is of the wrong kind or out of range, or the server models differ.
    """

    def __init__(
        self,
        terms: RoundTerms,
        *,
        adversary: Adversary,
        max_dropout_fraction: float | None,
        cohort: int,
        client_public_keys: Iterable[bytes] = (),
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
        if max_dropout_fraction is not None:
            max_dropout_fraction = arguments.number(
                "max_dropout_fraction", max_dropout_fraction, least=0, below=1
            )
        self._round = ServerRound(
            terms,
            adversary,
            max_dropout_fraction,
            arguments.whole("cohort", cohort, least=0),
            pinned_keys(client_public_keys),
            SystemRandomness() if randomness is None else randomness,
        )
        self._awaited: set[int] = set()  # indices whose reply of this stage is missing
        self._remaining = self._round.cohort

    @property
    def stage(self) -> ServerStage:
        """Which answers it is waiting for."""
        return self._round.stage

    @property
    def survivors(self) -> list[int]:
        """The nodes in whose sum, for the operator's log."""
        return [self._round.clients[index].node for index in self._round.survivors]

    @property
    def cohort(self) -> int:
        """How many were drawn."""
        return self._round.cohort

    @property
    def remaining(self) -> int:
        """How many have answered whatever they were asked so far, for the operator's log."""
        return self._remaining

    @property
    def offences(self) -> dict[int, list[str]]:
        """Breaches of the protocol, by node, for the operator's log.

        Where two nodes dispute shares that are right, both are named, and one of them lies.
        """
        state = self._round
        offences = {state.clients[i].node: list(texts) for i, texts in state.offences.items()}
        return offences | {
            node: ["was configured otherwise than most"] for node in state.misconfigured
        }

    def invitation(self) -> bytes:
        """The first message, for the whole cohort."""
        terms = self._round.terms
        return encode(Kind.INVITATION, terms.digest, terms.to_bytes())

    def receive(self, node: int, message: bytes) -> None:
        """Take one client's reply.

        Raises
        ------
        RejectedMessageError
            If it cannot be used: the client has dropped out, the round goes on.
        """
        state = self._round
        try:
            if state.stage is ServerStage.ADVERTISING:
                stages.take_advertised_keys(state, node, message)
                return
            index = state.index.get(node)
            if index is None or index not in self._awaited:
                raise RejectedMessageError(f"nothing is awaited from node {node} at this stage")
            if bound_to(message) != state.session:
                raise RejectedMessageError(f"node {node} answered another round")
            self._awaited.discard(index)  # one try each
            _TAKE[state.stage](state, index, message)
            state.answered.add(index)
        except (MalformedMessageError, RefusedError) as error:
            raise RejectedMessageError(f"node {node}: {error}") from error

    def advance(self) -> dict[int, bytes]:
        """End the stage and begin the next.

        Returns
        -------
        dict of int to bytes
            What to send to each node that is still in the round; empty once the sum can be opened.

        Raises
        ------
        RoundAbortedError
            If too few are left: nothing of the round was or will be opened.
        RuntimeError
            If the round is over.
        """
        state = self._round
        if state.stage is ServerStage.OPENING:
            return {}
        if state.stage is ServerStage.OVER:
            raise RuntimeError("the round is over")
        self._count_remaining()
        try:
            messages = _BEGIN_NEXT[state.stage](state)
        except TooFewClientsError:
            state.stage = ServerStage.OVER
            raise
        self._awaited = {state.index[node] for node in messages}
        state.answered = set()
        return messages

    def _count_remaining(self) -> None:
        if self._round.stage is ServerStage.ADVERTISING:
            self._remaining = len(self._round.clients)
        elif self._round.stage is not ServerStage.DISPUTING:  # which asks few
            self._remaining = len(self._round.answered)

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
        if self._round.stage is not ServerStage.OPENING:
            raise RuntimeError(f"the sum cannot be opened in stage {self._round.stage.name}")
        self._count_remaining()
        self._round.stage = ServerStage.OVER
        return stages.unmask(self._round)
