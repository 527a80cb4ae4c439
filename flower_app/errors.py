"""What a command ends with."""


class CommandFailed(RuntimeError):
    """A command that did not do what it was asked; the message says why, and the remedy."""
