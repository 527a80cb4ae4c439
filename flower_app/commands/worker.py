"""``python -m flower_app worker``: alice or bob, one of two workers that compute on shares."""

from typing import Any

from flower_app.shared.worker_process import DESCRIPTION, add_arguments, run


def add_command(commands: Any) -> None:
    """Add ``worker`` to the app's command line."""
    parser = commands.add_parser("worker", description=DESCRIPTION)
    add_arguments(parser)
    parser.set_defaults(run=run)
