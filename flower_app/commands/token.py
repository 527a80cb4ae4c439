"""``python -m flower_app token``: who may ask a service."""

import argparse
from pathlib import Path
from typing import Any

from flower_app.errors import SettingError, counted
from privacy.inference_service import TokenFile
from privacy.inference_service.questions import Questions


def add_command(commands: Any) -> None:
    """Add ``token`` to the app's command line."""
    parser = commands.add_parser(
        "token",
        description="Keeps the file of tokens that `serve --tokens FILE` reads, as hashes and mode "
        "0600. A running service sees changes at once.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="make a token and show it, once")
    remove = verbs.add_parser("remove", help="take a token back")
    show = verbs.add_parser("list", help="show who has one")
    for verb in (add, remove, show):
        verb.add_argument("file", type=Path, metavar="FILE", help="of tokens")
    for verb in (add, remove):
        verb.add_argument("name", metavar="NAME", help="of the owner")
    add.add_argument(
        "--operator", action="store_true", help="for reading /metrics instead of asking"
    )
    add.add_argument("--hours", type=float, metavar="N", help="after which nobody knows it")
    add.add_argument("--questions", type=int, metavar="N", help="that may be asked under it")
    add.add_argument(
        "--link", metavar="URL", help="of a service's page: show a link for a browser instead"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Add, remove or list tokens.

    Raises
    ------
    SettingError
        If the file or the name cannot be used.
    """
    tokens = TokenFile(options.file)
    try:
        if options.verb == "add":
            token = tokens.add(
                options.name,
                role="operator" if options.operator else "owner",
                hours=options.hours,
                questions=options.questions,
            )
            # What stands behind "#" is not sent with the request for the page.
            print(f"{options.link.rstrip('/')}/#token={token}" if options.link else token)
        elif options.verb == "remove":
            tokens.remove(options.name)
        else:
            questions = Questions(tokens.questions_file)
            for caller in tokens.callers():
                line = f"{caller.name}\t{caller.role}"
                if caller.questions is not None:
                    asked = questions.asked(caller)
                    line += f"\t{asked} of {counted(caller.questions, 'question')} asked"
                print(line)
    except ValueError as error:
        raise SettingError(str(error)) from error
    except OSError as error:
        if error.filename is None:
            raise
        raise SettingError(f"{options.file} cannot be used: {error.strerror}") from error
    return 0
