"""The process of a worker, alice or bob: one of two that compute on shares.

``python -m flower_app worker`` runs it, and a run's encrypted test starts it by this module's name:
the command line of the app is no part of what Flower sends.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

from flower_app.errors import CommandFailedError, SettingError, counted
from flower_app.processes.listening import listen
from flower_app.shared.folders import PartyFolder
from privacy.shared_inference import (
    Address,
    Party,
    Worker,
    WorkerLimits,
    WorkerServer,
    warm_up,
)
from privacy.shared_inference.errors import MaterialError, MessageError

_DEFAULTS = WorkerLimits()


DESCRIPTION = (
    "Answers questions in shares together with the other worker, over mutual TLS, and learns "
    "neither the model nor questions nor answers, unless the two collude. Bob listens; alice "
    "listens too, and calls bob, again and again where he is away. FOLDER is the one that the "
    "provider made, with the worker's share of the model in it as `model`, and files of material "
    "in its folder `material`, which are taken in as they come."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add a worker's arguments, for :func:`run`."""
    parser.add_argument("name", choices=("alice", "bob"), help="which of the two")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="from `provider begin`")
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        help="for the data owner, and for alice's calls to bob (localhost:7441 for alice, "
        "localhost:7442 for bob); port 0 takes a free one",
    )
    parser.add_argument("--bob", metavar="HOST:PORT", help="for alice: where bob listens")
    limits = parser.add_argument_group("limits")
    for name, text in (
        ("connections", "at a time"),
        ("idle-seconds", "after which a silent data owner's connection is closed"),
        ("patience", "seconds until the other worker must have begun with the same question"),
        ("exchange-seconds", "to wait for each of its messages after that"),
    ):
        default = getattr(_DEFAULTS, name.replace("-", "_"))
        limits.add_argument(
            f"--{name}",
            type=type(default),
            default=default,
            metavar="N",
            help=f"{text} ({default:g})",
        )


def run(options: argparse.Namespace) -> int:
    """Serve until ended.

    Raises
    ------
    SettingError
        If an option is wrong, or the port is taken.
    CommandFailedError
        If a file of the folder is missing, or of another session.
    """
    party, folder = Party[options.name.upper()], PartyFolder(options.folder)
    bob = _bob(options)
    address = _address("--listen", options.listen or f"localhost:{7441 + int(party)}")
    try:
        limits = WorkerLimits(
            connections=options.connections,
            idle_seconds=options.idle_seconds,
            patience=options.patience,
            exchange_seconds=options.exchange_seconds,
        )
    except ValueError as error:
        raise SettingError(str(error)) from error
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO)
    listens = folder.context(listens=True)
    calling = folder.context(listens=False) if bob is not None else None
    try:
        worker = Worker(folder.plan(), folder.letter(), folder.model(), folder.material.absolute())
    except (MessageError, MaterialError) as error:
        raise CommandFailedError(f"{folder.path}: {error}") from error
    if worker.party != party:
        worker.close()
        raise CommandFailedError(f"{folder.path} is {worker.party.name.lower()}'s folder")
    warm_up(worker.plan)
    try:
        listening = listen(address.host, address.port)
    except SettingError:
        worker.close()
        raise
    with WorkerServer(
        worker, listening, listens=listens, calling=calling, bob=bob, limits=limits
    ) as server:
        port = listening.getsockname()[1]
        left = counted(worker.material.left, "question")
        print(f"{options.name} listens on {Address(address.host, port)}, with material for {left}")
        print("Ctrl-C ends it.", flush=True)
        try:
            server.serve()
        except KeyboardInterrupt:
            print("Stopped.")
    return 0


def _bob(options: argparse.Namespace) -> Address | None:
    if options.name == "bob":
        if options.bob is not None:
            raise SettingError("--bob is for alice, who calls bob")
        return None
    return _address("--bob", options.bob or "localhost:7442")


def _address(option: str, text: str) -> Address:
    try:
        return Address.parse(text)
    except ValueError as error:
        raise SettingError(f"{option}: {error}") from error


def main() -> int:
    """Serve until ended, by the arguments of the process; returns its exit status."""
    parser = argparse.ArgumentParser(description=DESCRIPTION)
    add_arguments(parser)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return run(parser.parse_args())
    except (SettingError, CommandFailedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
