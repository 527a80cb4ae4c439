"""Refusals and failures of encrypted inference."""


class UnsupportedLayerError(ValueError):
    """A layer that CKKS cannot evaluate; the message names it and offers what can."""


class LayerInputError(ValueError):
    """A layer or function that does not take its inputs; the message names it and their shape."""


class UnsupportedModelError(ValueError):
    """A model from another library that cannot be taken over; the message names the part."""


class CannotPlanError(ValueError):
    """No parameters at 128-bit security hold this model; the message says what crossed the line."""


class ReplacementError(RuntimeError):
    """Activations' replacement that did not converge; the message says what to change."""


class ModelFileError(ValueError):
    """A file that holds no packed model, or a damaged one; the message names it and the fault."""


class PlanRefusedError(ValueError):
    """A plan that this node does not work with; the message says why, and nothing of its data."""


class MessageError(ValueError):
    """A message that is truncated, altered, of another plan, replayed or of the wrong kind."""


class AnsweredBeforeError(MessageError):
    """A query that was answered, or is so old that nobody knows; its owner encrypts again."""


class KeysDroppedError(MessageError):
    """A query under keys that are no longer held; its owner sends new ones."""


class OutOfRangeError(ValueError):
    """An input outside the range that the plan was proved for."""


class ReleaseError(ValueError):
    """A release that a policy refuses."""


class SecretsError(ValueError):
    """A data owner's secret state that is damaged, or belongs to another plan."""


class EvaluatorFailedError(RuntimeError):
    """The evaluator's process ended."""


class EvaluatorTimeoutError(EvaluatorFailedError):
    """The evaluator's process was ended for taking too long."""
