"""The errors of the app, by who can act: operator, node's owner, user of a command.

And numbers of things, in the words of their messages.
"""


class SettingError(ValueError):
    """A setting that is wrong; the message names it, its value and the remedy."""


def wrong(name: str, value: object, fault: str) -> SettingError:
    """The error for a setting's value, with its fault and the remedy."""
    return SettingError(f"{name} = {value!r} is wrong; {fault}")


class DataError(ValueError):
    """Data that is missing, corrupt or out of reach; the message names it and the remedy."""


class DeclinedError(Exception):
    """The node does not do what the run asks. The message says why, and may travel to the server.

    It follows from the run's own settings and the owner's word alone, and holds no number of the
    owner's.

    Parameters
    ----------
    reason : str
        What the server is told.
    for_owner : str
        What the node's own log says beside it.
    """

    def __init__(self, reason: str, for_owner: str = "") -> None:
        super().__init__(reason)
        self.for_owner = f"{reason} ({for_owner})" if for_owner else reason


class CommandFailedError(RuntimeError):
    """A command that did not do what it was asked; the message says why, and the remedy."""


class RunFailedError(CommandFailedError):
    """A run that did not finish; the message says why and where to look."""


def counted(number: int, one: str, many: str = "") -> str:
    """``1 image``, ``1,000 images``; ``many`` where the plural is not formed by an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
