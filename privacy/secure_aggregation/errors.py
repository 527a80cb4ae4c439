"""What goes wrong in secure aggregation, each by its name.

A client that raises a ``RefusedError`` answers nothing and leaves the round that the message
belongs to, unless the message is late, or of no round that it is in. A server that raises
``RejectedMessageError`` goes on without one client; with ``RoundAbortedError`` nothing is opened.
"""


class SecureAggregationError(Exception):
    """The root of all of them."""


class MalformedMessageError(SecureAggregationError, ValueError):
    """Bytes that are no message of this version and kind."""


class UnreadableStateError(MalformedMessageError):
    """A client's own memory is another version's, or damaged; only its owner can mend that."""


class RefusedError(SecureAggregationError):
    """A client will not do what the server asks."""


class MalformedRequestError(RefusedError, MalformedMessageError):
    """The server sent a malformed message."""


class UnacceptableTermsError(RefusedError):
    """The round's terms are weaker than the client's own policy."""


class CohortTooSmallError(UnacceptableTermsError):
    """Fewer clients, or survivors, than the client's own minimum."""


class ThresholdTooLowError(UnacceptableTermsError):
    """The graph or threshold does not hold off the adversary that the client assumes."""


class RepeatedRoundError(RefusedError):
    """An invitation to a round of this run that the client was in, or to an earlier one."""


class WrongRoundError(RefusedError):
    """A message of another round, or of other terms, than those the client is in: it stays."""


class WrongStageError(RefusedError):
    """A message of a stage that is not the client's."""


class StaleMessageError(WrongStageError):
    """A message of a stage that the client is past, late or replayed: it stays in its round."""


class BothSharesError(WrongStageError):
    """A second request to open shares; with other survivors it would give away both kinds."""


class UnknownIdentityError(RefusedError):
    """A roster that names somebody who is not among the pinned identities."""


class ForgedSignatureError(RefusedError):
    """A signature that the named identity did not make."""


class InconsistentRosterError(RefusedError):
    """A roster that lists somebody twice, not the client itself, or keys that it did not send."""


class WeakKeyError(RefusedError):
    """A public key of small order."""


class TamperedSharesError(RefusedError):
    """The server relays more or fewer shares than it lists senders."""


class TooFewNeighboursError(RefusedError):
    """Too few neighbours take part, survived, or do not dispute their shares."""


class SplitViewError(RefusedError):
    """The server shows different clients different sets of participants or survivors."""


class DifferentRequestsError(SplitViewError):
    """The server asks clients for different things, or for other things than it announced."""


class RepeatedModelError(RefusedError):
    """A second sum of a model of which the client has let one be opened."""


class MemoryFullError(RefusedError):
    """The client has no room to remember another run or model, and forgets none."""


class UnprotectedRequestError(RefusedError):
    """The server asks for an update, or for metrics, outside the protocol."""


class RejectedMessageError(SecureAggregationError):
    """One client's message cannot be used; the round goes on without it."""


class RoundAbortedError(SecureAggregationError):
    """The round ends and opens nothing."""


class TooFewClientsError(RoundAbortedError):
    """Too few clients are left for the sum to be opened."""
