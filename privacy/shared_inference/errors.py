"""Refusals and failures of secret-shared inference."""

from privacy.inference.errors import CannotPlanError as CannotPlanError
from privacy.inference.errors import OutOfRangeError as OutOfRangeError
from privacy.inference.errors import UnsupportedLayerError as UnsupportedLayerError


class MessageError(ValueError):
    """A message or file that is truncated, altered, of another plan or for somebody else."""


class MaterialError(RuntimeError):
    """Material that cannot be used; its message says what to do."""


class MaterialUsedError(MaterialError):
    """A piece of material that was used, or may have been before a crash.

    Attributes
    ----------
    next_question : int
        The first one whose material is fresh.
    """

    def __init__(self, question: int, next_question: int) -> None:
        super().__init__(
            f"the material of question {question} was used, or may have been; ask with that of "
            f"question {next_question}, or a later one"
        )
        self.next_question = next_question


class MaterialSpentError(MaterialError):
    """No material is left; the provider makes more."""


class LinkError(ConnectionError):
    """The other party is gone, or silent; the question under way is lost."""
