"""What a model is refused with."""


class UnsupportedLayerError(ValueError):
    """A layer that CKKS cannot evaluate; the message names it and offers what can."""


class CannotPlanError(ValueError):
    """No parameters at 128-bit security hold this model; the message says what crossed the line."""
