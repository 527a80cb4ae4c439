"""Errors of correlated noise."""


class NoiseSecretError(ValueError):
    """A file of past noise cannot be used; new noise, of a new instance, is needed."""
