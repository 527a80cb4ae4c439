"""The app's own command line: ``python -m flower_app --help``."""

import argparse
import importlib
import signal
import sys

from flower_app.data import DataError
from flower_app.errors import CommandFailed
from flower_app.settings import SettingError

COMMANDS = {
    "run": ("launch", "train in a local simulation, then ask encrypted questions"),
    "plan": (
        "plan",
        "say which noise, rounds and sampling rates fit a budget, before any training",
    ),
    "certify": ("certify", "compare a trained model's encrypted answers with its own"),
    "serve": ("serve", "answer encrypted questions to a trained model over HTTPS"),
    "ask": ("ask", "classify images with a service that sees none of them"),
    "token": ("tokens", "make, list and take back tokens of a service"),
    "deploy-demo": (
        "deploy_demo",
        "the same on a real SuperLink and three SuperNodes, over loopback",
    ),
    "check-data": ("check_data", "say what is wrong with which file of a SuperNode's data folder"),
    "population": (
        "population_file",
        "write the file that lists a deployment's clients",
    ),
}
"""Each command's module of this folder, and what it is for.

Only the module of the command that was given is imported: some bring PyTorch with them.
"""


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="python -m flower_app",
        description="Private federated learning on MNIST, and encrypted questions to the result.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (module, purpose) in COMMANDS.items():
        if given[:1] == [name]:
            importlib.import_module(f"flower_app.{module}").add_command(commands)
        else:
            commands.add_parser(name, help=purpose)
    for command in commands.choices.values():
        command.allow_abbrev = False  # a slip of the pen is not the option that it begins like
    options = parser.parse_args(given)
    # Ended from outside, we still end what we have started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(options.run(options))
    except (SettingError, DataError, CommandFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
