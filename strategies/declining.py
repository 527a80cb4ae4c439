"""A node's decline: an answer that the server can tell from a crash."""

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

DECLINED = ErrorCode.MOD_FAILED_PRECONDITION
"""Flower's own code for what a node's precondition does not allow."""


def decline(message: Message, reason: str) -> Message:
    """The reply of a node that does not do what it is asked, since its owner does not allow it.

    ``DPFedAvg`` and ``EncryptedRound`` drop it as they drop a client's exception, but tell the
    operator of nodes that decline, which are not to be mended.

    Parameters
    ----------
    message : Message
        What the node was asked.
    reason : str
        Why not, in words that tell nothing of the node's records. They go into the operator's
        log.

    Examples
    --------
    >>> try:
    ...     payment = pay(protection, batches, ledger=ledger)
    ... except LocalBudgetError as spent:  # its message carries no number
    ...     return decline(message, str(spent))
    """
    return Message(Error(DECLINED, reason), reply_to=message)
