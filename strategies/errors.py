"""The errors of strategies, and the reasons for which replies are dropped."""

from enum import StrEnum


class BudgetError(ValueError):
    """The budget has no room for a useful round; the run does not begin."""


class SpentBudgetError(BudgetError):
    """The same, since earlier runs have spent the budget, or most of it."""


class CheckpointError(ValueError):
    """A checkpoint is missing, torn, altered, or of another run."""


class PopulationExceededError(ValueError):
    """More clients have connected than the number that is given as the population."""


class NoUsableReplyError(RuntimeError):
    """No reply could be used, and nothing was learned; the run ends."""


class DeclinedError(RuntimeError):
    """A node's owner does not allow what a message asks; the words may travel to the server."""


class Fault(StrEnum):
    """Why replies are dropped, in words that hold nothing a client wrote."""

    ERROR = (
        "the client's app raised an exception; the node's own log (in a simulation the log of the "
        "run) has the traceback"
    )
    RECORDS = (
        "there is not one ArrayRecord with, at most, one MetricRecord beside it "
        "(in an evaluation: one MetricRecord)"
    )
    NAMES = (
        "arrays are missing, extra or named otherwise than the model's; a reply holds every array "
        "of the model under its own name, and ArrayRecord(list) names them 0, 1, …"
    )
    ENCODING = "an array is not in numpy's format, or is cut short or too long"
    DTYPE = "an array is not floating-point where the model's is"
    SHAPE = "an array has another shape than the model's"
    VALUES = "values are NaN, infinite, or too large for the precision of the model"
    WEIGHT = "the number of examples is missing, or is not a finite number above 0"
    REFUSED = (
        "the client refuses the round as its own policy or the protocol's checks say; the "
        "operator's log has the name of the reason"
    )
    NO_MOD = (
        "the client's app answered without the secure-aggregation protocol, by an exception or by "
        "a reply in the clear: it needs ClientApp(mods=[SecureAggregationMod(ClientPolicy(…))]), "
        "see docs/how-to/secure-aggregation.md, or in a run over silos a train function that calls "
        "answer_silo; if it has that, another of its mods failed, and the node's own log has the "
        "traceback"
    )
    PROTOCOL = "it is no message of the secure-aggregation protocol, or not one for this round"
    DECLINED = (
        "the node declines: its owner's rules, what is left of its records' budget, or what its "
        "mods require do not allow what the run asks; its own log and the operator's log say why"
    )
    QUESTIONS = (
        "its keys and questions are not such as the plan asks for, or larger than max_bytes; "
        "nodes and server must run one release"
    )
    EVALUATOR = "the evaluator's process failed over its keys and questions"
    REPORT = "its report is not one finite number"
    UNREADABLE = "it cannot be read"


class ReplyError(ValueError):
    """A reply that is dropped; the message is for the operator's log only.

    Parameters
    ----------
    reason : str
        Why, in words that may be the client's own.
    fault : Fault or None
        Why, for the server's console; None where the client is only offline or late.
    """

    def __init__(self, reason: str, fault: Fault | None = Fault.UNREADABLE) -> None:
        super().__init__(reason)
        self.fault = fault
