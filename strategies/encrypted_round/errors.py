"""Why a node takes no part in a round."""


class RoundError(RuntimeError):
    """A round that cannot go on; the message says nothing of the node's data."""


class ReportRefusedError(RuntimeError):
    """The node declines to report: its owner's budget is spent. The message holds no number."""
