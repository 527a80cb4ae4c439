"""Bound ε from below by an attack's result: ``python -m privacy.audit --help``."""

import argparse
import json
import math
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from privacy.accounting import Adjacency, read_ledger
from privacy.accounting.errors import LedgerError
from privacy.audit.experiment import Scores, judge
from privacy.audit.statistics import epsilon_lower_bound
from privacy.audit.trade_off import PrivacyCurve, mu_lower_bound
from privacy.command_line import CommandParser
from privacy.json_text import read_json


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, answer as JSON; exit 1 if a claim is contradicted, 2 if misused."""
    options = command_parser().parse_args(arguments)
    try:
        return int(options.answer(options))
    except (ValueError, OSError, LedgerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _bound(options: argparse.Namespace) -> int:
    counts = {
        "canaries": options.canaries,
        "guesses": options.canaries if options.guesses is None else options.guesses,
        "correct": options.correct,
        "confidence": options.confidence,
    }
    answer = {
        "epsilon_lower": epsilon_lower_bound(**counts, delta=options.delta),
        "mu_lower": mu_lower_bound(**counts),
        "delta": options.delta,
        "confidence": options.confidence,
    }
    print(json.dumps(answer))
    return 0


def _scores(options: argparse.Namespace) -> int:
    included, scores = read_scores(options.file)
    claimed, curve = options.claimed_epsilon, None
    if options.ledger is not None:
        ledger = read_ledger(options.ledger)
        claimed = ledger.epsilon(options.delta)
        # A canary is there or not; where a client is replaced the curve is no claim about that.
        if ledger.adjacency is not Adjacency.REPLACE_ONE:
            curve = PrivacyCurve.of_events(
                ledger.events, delta=options.delta, adjacency=ledger.adjacency
            )
    result = judge(
        {"scores": scores},
        included,
        claimed_epsilon=claimed,
        delta=options.delta,
        confidence=options.confidence,
        guesses=options.guesses,
        curve=curve,
    )
    print(json.dumps(result.as_dict(), ensure_ascii=False))
    return 0 if result.passed else 1


def read_scores(file: Path) -> tuple[NDArray[np.bool_], Scores]:
    """The coins and the scores of as many canaries that a file holds.

    Raises
    ------
    ValueError
        Naming the file, if it holds anything else.
    OSError
        If it cannot be read.
    """
    try:
        document = read_json(file.read_bytes())
        if not isinstance(document, dict) or not {"included", "scores"} <= document.keys():
            raise ValueError('it must hold an object with "included" and "scores"')
        coins, given = document["included"], document["scores"]
        if not isinstance(coins, list) or not coins or any(coin not in (0, 1) for coin in coins):
            raise ValueError('"included" must be a list of true and false')
        if not isinstance(given, list) or len(given) != len(coins):
            raise ValueError(
                f'"scores" must be a list of as many numbers as "included", {len(coins)}'
            )
        if any(type(score) not in (int, float) or math.isnan(score) for score in given):
            raise ValueError('"scores" must be a list of numbers')
        return np.array(coins, dtype=np.bool_), np.array([float(score) for score in given])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{file}: {error}") from error


def command_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m privacy.audit",
        description="A lower bound on epsilon from one training run with canaries (Steinke, Nasr "
        "and Jagielski 2023). Exits with 1 if a claim is contradicted.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("bound", help="the bound that a number of right guesses shows")
    command.add_argument("--canaries", type=int, required=True, help="m, each in by a fair coin")
    command.add_argument("--guesses", type=int, help="r, fixed ahead (default: all canaries)")
    command.add_argument("--correct", type=int, required=True, help="v, how many were right")
    _common(command)
    command.set_defaults(answer=_bound)

    command = commands.add_parser(
        "scores",
        help="audit a file of scores against a claim",
        description='FILE holds {"included": [true, ...], "scores": [0.1, ...]}: each canary\'s '
        "coin, and a score that is higher where it was rather included.",
    )
    command.add_argument("file", type=Path, metavar="FILE")
    claim = command.add_mutually_exclusive_group(required=True)
    claim.add_argument("--claimed-epsilon", type=float, help="what is claimed at delta")
    claim.add_argument("--ledger", type=Path, help="take the claim from this ledger")
    command.add_argument(
        "--guesses", type=int, help="r, fixed before looking at the scores (default: half)"
    )
    _common(command)
    command.set_defaults(answer=_scores)
    return parser


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delta", type=float, required=True, help="e.g. 1e-5")
    parser.add_argument("--confidence", type=float, default=0.95, help="default: 0.95")


if __name__ == "__main__":
    sys.exit(main())
