"""What goes wrong in secure aggregation, each by its name.

A client raises a ``Refused`` and answers nothing. It takes no further part in the round that the
message belongs to; a message of no round that it is in, or of a stage that it is past, ends none.
A server raises ``RejectedMessage`` for one client's message and goes on without that client, or
``RoundAborted``, and nothing of the round is opened.
"""


class SecureAggregationError(Exception):
    """The root of all of them."""


class Malformed(SecureAggregationError, ValueError):
    """Bytes that are no message of this version and kind."""


class UnreadableState(Malformed):
    """A client's own memory is another version's, or damaged: its owner has to see to it."""


class Refused(SecureAggregationError):
    """A client will not do what the server asks."""


class MalformedRequest(Refused, Malformed):
    """The server sent bytes that are no message of this version and kind."""


class UnacceptableTerms(Refused):
    """The round's terms are weaker than the client's own policy."""


class CohortTooSmall(UnacceptableTerms):
    """Fewer clients, or survivors, than the client's own minimum."""


class ThresholdTooLow(UnacceptableTerms):
    """The graph or threshold does not hold off the adversary that the client assumes."""


class AlreadyTookPart(Refused):
    """An invitation to a round of this run that the client was in, or to an earlier one."""


class WrongRound(Refused):
    """A message of another round, or of other terms, than those the client is in: it stays."""


class WrongStage(Refused):
    """A message of a stage that is not the client's."""


class StaleMessage(WrongStage):
    """A message of a stage that the client is past, late or replayed: it stays in its round."""


class BothShares(WrongStage):
    """A second request to open shares: with another set of survivors it would give both kinds."""


class UnknownIdentity(Refused):
    """A roster that names somebody who is not among the pinned identities."""


class ForgedSignature(Refused):
    """A signature that the named identity did not make."""


class InconsistentRoster(Refused):
    """A roster that names somebody twice, or not the client itself, or keys it did not send."""


class WeakKey(Refused):
    """A public key of small order."""


class TamperedShares(Refused):
    """The server relays another number of shares than it says."""


class TooFewNeighbours(Refused):
    """Fewer neighbours take part, survived, or do not dispute their shares, than are needed."""


class SplitView(Refused):
    """The server shows different clients different sets of participants or survivors."""


class DifferentRequests(SplitView):
    """The server asks different clients for different things, or other things than it announced."""


class SameModelAgain(Refused):
    """Another sum is asked for of a model of which the client has let one be opened."""


class MemoryFull(Refused):
    """The client has no room to remember another run or model, and forgets none that it knows."""


class RejectedMessage(SecureAggregationError):
    """One client's message cannot be used; the round goes on without it."""


class RoundAborted(SecureAggregationError):
    """The round ends and opens nothing."""


class TooFewClients(RoundAborted):
    """Too few clients are left for the sum to be opened."""
