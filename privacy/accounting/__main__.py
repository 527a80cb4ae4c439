"""``python -m privacy.accounting``: questions about ε from the command line."""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from privacy.accounting import (
    Accountant,
    Adjacency,
    Budget,
    Event,
    FixedSize,
    Full,
    GaussianRelease,
    Poisson,
    Sampling,
    attack_success,
    calibrate_noise_multiplier,
    calibrate_rounds,
    calibrate_sampling_rate,
    epsilon,
    gaussian_dp,
    large_delta,
    read_ledger,
    without_amplification,
)
from privacy.accounting.errors import LedgerError
from privacy.command_line import CommandParser


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer one question; the answer is one JSON object on standard output.

    Parameters
    ----------
    arguments : sequence of str, optional
        By default those of the command line.

    Returns
    -------
    int
        0, or 1 with one sentence on standard error. (A command line that cannot be understood
        exits with 2.)
    """
    options = command_parser().parse_args(arguments)
    try:
        answer = options.answer(options)
    except (ValueError, LedgerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(answer, allow_nan=False))
    return 0


def _epsilon(options: argparse.Namespace) -> dict[str, object]:
    release = GaussianRelease(options.noise_multiplier, _sampling(options))
    events: dict[Event, int] = {release: _at_least_one("rounds", options.rounds)}
    accountants: tuple[Accountant, ...] = ("pld", "rdp")
    if isinstance(release.sampling, FixedSize):
        accountants = ("rdp",)
    answer = {
        accountant: _finite(epsilon(events, delta=options.delta, accountant=accountant))
        for accountant in accountants
    } | _in_other_words(events, options.delta)
    _warn_of_large_delta(options.delta, options.population)
    return answer


def _in_other_words(
    events: Mapping[Event, int], delta: float, adjacency: Adjacency | None = None
) -> dict[str, object]:
    """ε without amplification, as the μ of Gaussian DP, and as an attack's success."""
    plain: Counter[Event] = Counter()
    for event, times in events.items():
        plain[without_amplification(event)] += times
    if adjacency is None and any(
        isinstance(getattr(event, "sampling", None), FixedSize) for event in events
    ):
        adjacency = Adjacency.REPLACE_ONE
    return {
        "without_amplification": _finite(epsilon(plain, delta=delta, adjacency=adjacency)),
        "gaussian_dp_mu": _finite(gaussian_dp(events, delta=delta, adjacency=adjacency)),
        "attack_success": {
            f"{rate:g}": attack_success(
                events, delta=delta, false_alarm_rate=rate, adjacency=adjacency
            )
            for rate in (0.01, 0.1)
        },
    }


def _calibrate(options: argparse.Namespace) -> dict[str, object]:
    budget = Budget(options.epsilon, options.delta)
    given = {
        "noise_multiplier": options.noise_multiplier,
        "rounds": options.rounds,
        "sampling": None if _no_sampling(options) else _sampling(options),
    }
    missing = [name for name, value in given.items() if value is None]
    if len(missing) != 1:
        raise ValueError(
            "calibrate answers for the one of --noise-multiplier, --rounds and --sampling-rate "
            f"that is left out; left out are {len(missing)}"
        )
    accountant: Accountant | None = options.accountant
    noise, rounds, rate = options.noise_multiplier, options.rounds, options.sampling_rate
    sampling: Sampling
    if missing == ["noise_multiplier"]:
        sampling = _sampling(options)
        noise = calibrate_noise_multiplier(
            sampling=sampling, rounds=rounds, budget=budget, accountant=accountant
        )
        answer: dict[str, object] = {"noise_multiplier": noise}
    elif missing == ["rounds"]:
        sampling = _sampling(options)
        rounds = calibrate_rounds(
            noise_multiplier=noise, sampling=sampling, budget=budget, accountant=accountant
        )
        answer = {"rounds": rounds}
    else:
        rate = calibrate_sampling_rate(
            noise_multiplier=noise, rounds=rounds, budget=budget, accountant=accountant
        )
        sampling = Poisson(rate)
        answer = {"sampling_rate": rate}
    _warn_of_large_delta(budget.delta, options.population)
    reached = epsilon(
        {GaussianRelease(noise, sampling): rounds}, delta=budget.delta, accountant=accountant
    )
    return {**answer, "epsilon": _finite(reached), "delta": budget.delta}


def _ledger(options: argparse.Namespace) -> dict[str, object]:
    contents = read_ledger(options.file)
    accountants: tuple[Accountant, ...] = ("pld", "rdp")
    if contents.adjacency is Adjacency.REPLACE_ONE:
        accountants = ("rdp",)
    answer = {
        "population": contents.population,
        "adjacency": contents.adjacency.value,
        "events": len(contents.records),
        "runs": len({record.run for record in contents.records}),
        "delta": options.delta,
        "epsilon": {
            accountant: _finite(contents.epsilon(options.delta, accountant=accountant))
            for accountant in accountants
        },
        "epsilon_against_server": _finite(contents.epsilon_against_server(options.delta)),
    } | _in_other_words(Counter(contents.events), options.delta, contents.adjacency)
    if contents.has_silo_sums:
        by_observer = contents.epsilon_by_observer(options.delta)
        answer["epsilon_by_observer"] = {
            observer.value: _finite(spent) for observer, spent in by_observer.items()
        }
    _warn_of_large_delta(options.delta, contents.clients)
    return answer


def _warn_of_large_delta(delta: float, clients: int | None) -> None:
    """Say on standard error where δ promises next to nothing, as far as N is known."""
    if clients is not None and (problem := large_delta(delta, clients)):
        print(f"warning: {problem}.", file=sys.stderr)


def _no_sampling(options: argparse.Namespace) -> bool:
    return options.sampling_rate is None and options.cohort is None


def _sampling(options: argparse.Namespace) -> Sampling:
    if options.cohort is not None:
        if options.sampling_rate is not None or options.population is None:
            raise ValueError(
                "--cohort needs --population and excludes --sampling-rate: it is a cohort of "
                "fixed size, drawn without replacement"
            )
        return FixedSize(options.cohort, options.population)
    if options.sampling_rate is None:
        raise ValueError("give --sampling-rate, or --cohort and --population")
    return Full() if options.sampling_rate == 1 else Poisson(options.sampling_rate)


def _at_least_one(name: str, value: int) -> int:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
    return value


def _finite(value: float) -> float | str:
    # JSON has no infinity; a string says it plainly and float() reads it.
    return value if math.isfinite(value) else "inf"


def command_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m privacy.accounting",
        description="What federated training costs in client-level privacy, and the reverse. "
        'Answers are one JSON object; an unbounded epsilon is the string "inf".',
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser(
        "epsilon", help="epsilon of a number of equal rounds", description=_epsilon_text
    )
    _mechanism_options(command, required=True)
    command.set_defaults(answer=_epsilon)

    command = commands.add_parser(
        "calibrate",
        help="the noise, the rounds or the sampling rate that fits a target epsilon",
        description=_calibrate_text,
    )
    command.add_argument("--epsilon", type=float, required=True, help="the target")
    command.add_argument("--accountant", choices=("pld", "rdp"), help="default: the tightest")
    _mechanism_options(command, required=False)
    command.set_defaults(answer=_calibrate)

    command = commands.add_parser(
        "ledger", help="epsilon of a ledger file", description=_ledger_text
    )
    command.add_argument("file", metavar="FILE", help="the ledger")
    command.add_argument("--delta", type=float, required=True, help="e.g. 1e-5")
    command.set_defaults(answer=_ledger)
    return parser


def _mechanism_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--delta", type=float, required=True, help="e.g. 1e-5")
    parser.add_argument(
        "--noise-multiplier",
        type=float,
        required=required,
        help="z: the noise on the sum has standard deviation z times the clipping norm",
    )
    parser.add_argument("--rounds", type=int, required=required, help="how many equal rounds")
    parser.add_argument(
        "--sampling-rate",
        type=float,
        help="q: each client joins a round with this probability (1: everyone takes part)",
    )
    parser.add_argument(
        "--cohort", type=int, help="instead: cohorts of exactly this size, without replacement"
    )
    parser.add_argument("--population", type=int, help="registered clients, which --cohort needs")


_epsilon_text = (
    "Epsilon of ROUNDS rounds under add-or-remove-one adjacency, by privacy loss distributions "
    "(pld, the tightest) and Renyi (rdp). Cohorts of fixed size are under replace-one, where "
    "one client moves the sum by twice the clipping norm, and have rdp only. Beside it: epsilon "
    "against someone who learns who was drawn (without_amplification); the mu of Gaussian "
    "differential privacy at this delta and above; and how often an attack with a false-alarm rate "
    "of 1 % and 10 % finds, at most, that a client took part."
)
_calibrate_text = (
    "Leave out one of --noise-multiplier, --rounds and --sampling-rate: the answer is the "
    "value of it that fits the target, never one that passes it."
)
_ledger_text = (
    "Epsilon of everything a ledger holds, from the file alone. A damaged ledger is refused "
    "and the line named. Where the ledger tells how many clients there are, a delta of one over "
    "that or more is warned of on standard error."
)

if __name__ == "__main__":
    sys.exit(main())
