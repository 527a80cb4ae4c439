"""The app's own command line: ``python -m flower_app --help``."""

import contextlib
import importlib
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from flower_app.errors import CommandFailedError, DataError, SettingError
from privacy.command_line import CommandParser
from privacy.errors import MissingExtraError
from privacy.imports import needing

COMMANDS = {
    "new": ("new", "write a project for your own data: a task.toml, and a table to try"),
    "run": ("run", "train in a local simulation, then ask encrypted questions"),
    "plan": (
        "plan",
        "show which noise, rounds and sampling rates fit a budget, before any training",
    ),
    "certify": ("certify", "compare a trained model's encrypted answers with its own"),
    "export": ("export", "describe a run's results for archives, as an RO-Crate"),
    "serve": ("serve", "answer encrypted questions to a trained model over HTTPS"),
    "ask": ("ask", "classify images with a service that sees none of them"),
    "share": ("share", "split a trained model between two workers, of whom neither learns it"),
    "provider": ("provider", "make what the two workers compute with: letters, keys, material"),
    "worker": ("worker", "be one of the two workers, alice or bob"),
    "page": ("page", "write a copy of the page on which owners ask from a browser"),
    "token": ("token", "make, list and revoke tokens of a service"),
    "deploy-demo": (
        "deploy_demo",
        "the same on a real SuperLink and three SuperNodes, over loopback",
    ),
    "check-data": ("check_data", "list the faults in a node's data, or in a task's"),
    "population": (
        "population",
        "write the file that lists a deployment's clients",
    ),
}
"""Each command's module in ``flower_app.commands``, and its purpose.

Only the module of the given command is imported: some import PyTorch.
"""

_EXTRAS = {
    **dict.fromkeys(("ask", "worker", "provider"), "owner"),
    **dict.fromkeys(("page", "serve", "token"), "service"),
}
"""What brings all that a command needs; the whole app's does for the others."""


class OutputLostError(Exception):
    """Output cannot be written; without a message if its reader closed the pipe.

    It is no OSError, which commands take for a fault of a file of theirs.
    """


class _Output:
    """An output stream whose errors are ``OutputLostError``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._lost():
            return self._stream.write(text)

    def flush(self) -> None:
        with self._lost():
            self._stream.flush()

    @contextlib.contextmanager
    def _lost(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            with Path(os.devnull).open("w") as nowhere:  # for the rest of the buffer
                os.dup2(nowhere.fileno(), self._stream.fileno())
            closed = isinstance(error, BrokenPipeError)
            why = "" if closed else f"the output cannot be written: {error.strerror}"
            raise OutputLostError(why) from error


def _output(stream: TextIO | None) -> Any:
    if stream is None:  # closed by the caller
        return None
    # A terminal without ε, or a file name that is no text, gets escapes.
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return _Output(stream)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status, 0 if all was done and its output written."""
    out, err = _output(sys.stdout), _output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            try:
                return _command(sys.argv[1:] if arguments is None else arguments)
            finally:
                if out is not None:
                    out.flush()  # here, so that an error is handled
        except OutputLostError as error:
            if str(error):
                print(f"error: {error}", file=sys.stderr)
            return 1


@contextlib.contextmanager
def _compilations_told() -> Iterator[None]:
    """Say on the standard error when kernels are compiled: a command then waits for seconds."""
    log, handler = logging.getLogger("privacy.kernels"), logging.StreamHandler(sys.stderr)
    level, passed_on = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = passed_on


def _command(given: list[str]) -> int:
    name = given[0] if given else ""
    try:
        with needing(f"python -m flower_app {name}", extra=_EXTRAS.get(name, "app")):
            return _run(given)
    except MissingExtraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def command_parser(*chosen: str) -> CommandParser:
    """The app's command line, with the options of the chosen commands."""
    parser = CommandParser(
        prog="python -m flower_app",
        description="Private federated learning, and encrypted questions to the result.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, purpose) in COMMANDS.items():
        if name in chosen:
            importlib.import_module(f"flower_app.commands.{module}").add_command(commands)
        else:
            commands.add_parser(name, help=purpose)
    return parser


def _run(given: list[str]) -> int:
    options = command_parser(*given[:1]).parse_args(given)
    # SIGTERM too ends the processes that we have started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with _compilations_told():
            return int(options.run(options))
    except (SettingError, DataError, CommandFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
