"""Command lines whose options and arguments stand in any order."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

_AS_IT_STANDS = "\0"
"""Before an argument that came after ``--``. No argument of a program can hold it."""


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` for people.

    Options may stand before, after and between other arguments; after ``--`` nothing is an option.
    Words that a command does not know are reported with the usage of that command, not of the
    program. Options are not abbreviated: a typing error is no option that begins like it.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | settings))
        self._has_commands = self._in_any_order = False

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument; a positional one may come after ``--``."""
        if settings.get("action") is None and not (names and names[0].startswith("-")):
            settings["type"] = _unmarked(settings.get("type") or str)
        return super().add_argument(*names, **settings)

    def error(self, message: str) -> NoReturn:
        """End the program with the usage and the error."""
        super().error(message.replace(repr(_AS_IT_STANDS)[1:-1], "").replace(_AS_IT_STANDS, ""))

    def add_subparsers(self, **settings: Any) -> Any:
        """Add commands, each with a parser like this one."""
        self._has_commands = True
        return super().add_subparsers(**settings)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; unknown words end the program."""
        if self._has_commands or self._in_any_order:
            return super().parse_known_args(args, namespace)
        words = list(sys.argv[1:] if args is None else args)
        if "--" in words:  # of which the parser for any order would forget where it stood
            place = words.index("--")
            words[place:] = [_AS_IT_STANDS + word for word in words[place + 1 :]]
        self._in_any_order = True  # it comes back here, once for options and once for the rest
        try:
            options, unknown = self.parse_known_intermixed_args(words, namespace)
        finally:
            self._in_any_order = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown


def _unmarked(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    @wraps(kind)
    def of(word: str) -> Any:
        return kind(word.removeprefix(_AS_IT_STANDS))

    return of
