"""Errors of client training; a ledger that cannot be read or written raises ``LedgerError``."""

from collections.abc import Iterable
from dataclasses import dataclass


class LocalBudgetError(RuntimeError):
    """The client declines: the training would overspend its own budget.

    The message carries no number, so that it may travel to the server as the reason.
    """

    def __init__(self) -> None:
        super().__init__("the local privacy budget does not allow this training")


class PolicyError(RuntimeError):
    """The owner of a data set does not allow what is asked, or the policy cannot be used.

    Where a run is declined the message names the rule and no number, so that it may travel.
    """


class GradientError(RuntimeError):
    """Per-example gradients of this model or loss would be wrong: where, why, the remedy."""


@dataclass(frozen=True)
class ModelProblem:
    """Why one layer cannot be trained with per-example clipping.

    Parameters
    ----------
    layer : str
        Its name in the model, as ``named_modules`` spells it; "" is the model itself.
    kind : str
        Its class.
    reason, remedy : str
        Cause and cure.
    replaceable : bool
        Whether ``replace_unsupported`` mends it.
    """

    layer: str
    kind: str
    reason: str
    remedy: str
    replaceable: bool = False

    def __str__(self) -> str:
        return f"'{self.layer or '(model)'}' ({self.kind}): {self.reason}; {self.remedy}"


class UnsupportedModelError(ValueError):
    """The model has layers that break per-example gradients; ``problems`` lists them."""

    def __init__(self, problems: Iterable[ModelProblem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(map(str, self.problems)))
