"""``python -m flower_app provider``: letters, certificates and material for inference in shares."""

import argparse
from datetime import timedelta
from pathlib import Path
from typing import Any

from flower_app.errors import CommandFailedError, counted
from flower_app.shared.folders import read_plan
from flower_app.shared.session import STATE, begin_session, deal
from privacy.arguments import whole
from privacy.shared_inference.errors import MaterialError

_MOST_DAYS = 36_525
_GIVE_DAYS = f"1 to {_MOST_DAYS:,}, a century"


def add_command(commands: Any) -> None:
    """Add ``provider`` to the app's command line."""
    parser = commands.add_parser(
        "provider",
        description="Makes what two workers need to compute on shares, and sees neither the model "
        "nor questions nor answers; it must collude with neither worker. `provider begin` makes a "
        "folder for each party, with its letter and TLS certificate: copy each to its party over "
        "a safe channel, and then remove it here. `provider deal` makes material for questions: "
        "copy each party's files into `material` of its folder, at any time; workers take it in "
        "while they run.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="begin|deal")
    begin = verbs.add_parser("begin", help="make the parties' folders for a plan")
    deal = verbs.add_parser("deal", help="make material for more questions")
    begin.add_argument("plan", type=Path, metavar="PLAN", help="from `share plan`")
    for verb in (begin, deal):
        verb.add_argument("folder", type=Path, metavar="FOLDER", help="the provider's own")
    for name in ("alice", "bob"):
        begin.add_argument(
            f"--{name}",
            default="localhost",
            metavar="HOST",
            help=f"where {name} listens, for the certificate (localhost)",
        )
    begin.add_argument("--days", type=int, default=90, help="for which certificates are valid (90)")
    deal.add_argument(
        "--questions", type=int, required=True, metavar="N", help="to make material for"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Begin a session, or deal.

    Raises
    ------
    CommandFailedError
        If a file is missing, damaged or there already.
    """
    return _begin(options) if options.verb == "begin" else _deal(options)


def _begin(options: argparse.Namespace) -> int:
    plan = read_plan(options.plan)
    folder: Path = options.folder
    try:
        days = whole("--days", options.days, least=1, most=_MOST_DAYS, give=_GIVE_DAYS)
    except ValueError as error:
        raise CommandFailedError(str(error)) from error
    if (folder / STATE).exists():
        raise CommandFailedError(f"{folder} has a session already; give another folder")
    lifetime = timedelta(days=days)
    for own in begin_session(plan, folder, alice=options.alice, bob=options.bob, lifetime=lifetime):
        print(f"wrote {own.path}, for that party alone")
    print(f"certificates are valid for {counted(days, 'day')}")
    return 0


def _deal(options: argparse.Namespace) -> int:
    folder: Path = options.folder
    if options.questions < 1:
        raise CommandFailedError(f"--questions is {options.questions}; give 1 or more")
    if not (folder / STATE).exists():
        raise CommandFailedError(f"{folder} has no session; make one with `provider begin`")
    try:
        written = deal(folder, options.questions)
    except (MaterialError, OSError) as error:
        raise CommandFailedError(str(error)) from error
    for path in written:
        print(f"wrote {path} ({path.stat().st_size:,} bytes)")
    return 0
