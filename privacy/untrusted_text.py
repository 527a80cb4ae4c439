"""Text of other parties in logs: quoted, cut, and never a line of its own.

A peer may write anything into an error. Unquoted, it could add lines to a log that seem to come
from the log's own program.
"""

_LONGEST = 300


def quoted(words: object) -> str:
    """Text in quotation marks that it cannot close, on one line, cut to 300 characters."""
    text = str(words)
    if len(text) <= _LONGEST:
        return repr(text)
    return f"{text[:_LONGEST]!r} and {len(text) - _LONGEST} characters more"


def error_quoted(error: BaseException) -> str:
    """An error by its kind, with its message quoted: it may hold another party's text."""
    return f"{type(error).__name__}: {quoted(error)}"


def one_line(text: str) -> str:
    """A text that may hold another party's, with unprintable characters escaped."""
    return "".join(letter if letter.isprintable() else repr(letter).strip("'") for letter in text)
