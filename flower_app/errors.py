"""What a command ends with."""


class CommandFailedError(RuntimeError):
    """A command that did not do what it was asked; the message says why, and the remedy."""
