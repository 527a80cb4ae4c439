"""The app's own command line: ``python -m flower_app --help``."""

import argparse
import signal
import sys

from flower_app import (
    ask,
    certify,
    check_data,
    deploy_demo,
    launch,
    plan,
    population_file,
    serve,
    tokens,
)
from flower_app.data import DataError
from flower_app.settings import SettingError


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m flower_app",
        description="Private federated learning on MNIST, and encrypted questions to the result.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for command in (
        launch,
        plan,
        certify,
        serve,
        ask,
        tokens,
        deploy_demo,
        check_data,
        population_file,
    ):
        command.add_command(commands)
    options = parser.parse_args(arguments)
    # Ended from outside, we still end what we have started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        return int(options.run(options))
    except (SettingError, DataError, launch.RunFailed, ask.AskError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
