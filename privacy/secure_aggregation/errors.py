"""What goes wrong in secure aggregation, each by its name.

A client raises a ``RefusedError`` and answers nothing. It takes no further part in the round that
the message belongs to; a message of no round that it is in, or of a stage that it is past, ends
none. A server raises ``RejectedMessageError`` for one client's message and goes on without that
client, or ``RoundAbortedError``, and nothing of the round is opened.
"""


class SecureAggregationError(Exception):
    """The root of all of them."""


class MalformedMessageError(SecureAggregationError, ValueError):
    """Bytes that are no message of this version and kind."""


class UnreadableStateError(MalformedMessageError):
    """A client's own memory is another version's, or damaged: its owner has to see to it."""


class RefusedError(SecureAggregationError):
    """A client will not do what the server asks."""


class MalformedRequestError(RefusedError, MalformedMessageError):
    """The server sent bytes that are no message of this version and kind."""


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
    """A second request to open shares: with another set of survivors it would give both kinds."""


class UnknownIdentityError(RefusedError):
    """A roster that names somebody who is not among the pinned identities."""


class ForgedSignatureError(RefusedError):
    """A signature that the named identity did not make."""


class InconsistentRosterError(RefusedError):
    """A roster that names somebody twice, or not the client itself, or keys it did not send."""


class WeakKeyError(RefusedError):
    """A public key of small order."""


class TamperedSharesError(RefusedError):
    """The server relays another number of shares than it says."""


class TooFewNeighboursError(RefusedError):
    """Fewer neighbours take part, survived, or do not dispute their shares, than are needed."""


class SplitViewError(RefusedError):
    """The server shows different clients different sets of participants or survivors."""


class DifferentRequestsError(SplitViewError):
    """The server asks different clients for different things, or other things than it announced."""


class RepeatedModelError(RefusedError):
    """Another sum is asked for of a model of which the client has let one be opened."""


class MemoryFullError(RefusedError):
    """The client has no room to remember another run or model, and forgets none that it knows."""


class UnprotectedRequestError(RefusedError):
    """The server asks for an update, or for metrics, outside the protocol."""


class RejectedMessageError(SecureAggregationError):
    """One client's message cannot be used; the round goes on without it."""


class RoundAbortedError(SecureAggregationError):
    """The round ends and opens nothing."""


class TooFewClientsError(RoundAbortedError):
    """Too few clients are left for the sum to be opened."""
