"""Command lines that take options and what they are for in any order."""

import argparse
from collections.abc import Sequence
from typing import Any


class CommandParser(argparse.ArgumentParser):
    """An ``ArgumentParser`` for people.

    Options may stand before, after and between other arguments. What a command does not understand
    is told with the usage of that command, not of the program that it belongs to. A slip of the
    pen is never taken for the option that it begins like.

    Parameters
    ----------
    **settings
        Those of ``ArgumentParser``.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"allow_abbrev": False} | settings))
        self._has_commands = self._in_any_order = False

    def add_subparsers(self, **settings: Any) -> Any:
        """Add commands, each with a parser like this one."""
        self._has_commands = True
        return super().add_subparsers(**settings)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse; what a command does not know ends the program."""
        if self._has_commands or self._in_any_order:
            return super().parse_known_args(args, namespace)
        self._in_any_order = True  # it comes back here, once for options and once for the rest
        try:
            options, unknown = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._in_any_order = False
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return options, unknown
