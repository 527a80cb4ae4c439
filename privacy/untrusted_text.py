"""Other people's words, as they may stand in a log: quoted, cut, and never a line of their own.

Who is at the other end of a wire may write whatever it likes into an error. Where that reached a
log as it is, it could hold lines that the log's own program seems to have written, and blame
others in them.
"""

_LONGEST = 300


def quoted(words: object) -> str:
    """Words in quotation marks that they cannot close, on one line, cut to 300 characters."""
    text = str(words)
    if len(text) <= _LONGEST:
        return repr(text)
    return f"{text[:_LONGEST]!r} and {len(text) - _LONGEST} characters more"


def error_quoted(error: BaseException) -> str:
    """An error by its kind, with its words quoted: they may hold somebody else's."""
    return f"{type(error).__name__}: {quoted(error)}"


def one_line(text: str) -> str:
    """A text of our own that may hold somebody else's; what does not print is escaped."""
    return "".join(letter if letter.isprintable() else repr(letter).strip("'") for letter in text)
