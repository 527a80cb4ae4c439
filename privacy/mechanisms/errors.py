"""Errors of mechanisms."""


class UpdateError(ValueError):
    """An update that cannot be bounded, and so never reaches the sum."""
