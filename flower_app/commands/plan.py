"""``python -m flower_app plan``: what a private run would take, before any training."""

import argparse
import json
import math
import sys
import textwrap
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from flower_app.commands import plan_silos
from flower_app.commands.plan_silos import checked_budget
from flower_app.data import DATASETS
from flower_app.errors import SettingError, counted
from flower_app.measurements import AccuracyRange, measured_rounds
from flower_app.models.specs import MODELS, RECIPES
from flower_app.plan_advice import Advice, advice, as_document, ledger_words, read_spent
from flower_app.planning import (
    COMPARED,
    RATES_IN_TURNS,
    SAMPLING_RATES,
    Option,
    OwnModel,
    Question,
    expected_accuracy,
    options,
)
from flower_app.settings import MECHANISMS, Settings
from flower_app.tasks import build_for, parameters_of, read_task
from privacy.accounting import large_delta

_ROUNDS = 100  # of a model that has no recipe


def add_command(commands: Any) -> None:
    """Add ``plan`` to the app's command line."""
    parser = commands.add_parser(
        "plan",
        description="Works out, for a budget, the noise that each sampling rate and number of "
        "rounds needs, the bytes it moves, and the accuracy where comparable runs were measured. "
        "Nothing is trained and no data are read.",
    )
    parser.add_argument(
        "--task", type=Path, metavar="FILE", help="task.toml of your own data: what it says"
    )
    parser.add_argument(
        "--epsilon", type=float, help="ε of a client, or with --silos of a person (3)"
    )
    parser.add_argument("--delta", type=float, help="δ (1e-5)")
    units = parser.add_mutually_exclusive_group()
    units.add_argument("--population", type=int, help="N, how many clients (the ledger's)")
    units.add_argument(
        "--silos", type=int, help="how many silos of persons, in distributed DP-SGD instead"
    )
    parser.add_argument(
        "--records",
        type=int,
        help="records a client holds, about (50); with --silos the persons, or records, over all",
    )
    parser.add_argument(
        "--colluders", type=int, help="with --silos: how many may pool what they know (1)"
    )
    parser.add_argument(
        "--absent", type=int, help="with --silos: how many may miss a step (one in five)"
    )
    parser.add_argument("--dataset", help=" or ".join(DATASETS) + ", or your own (mnist)")
    parser.add_argument("--model", choices=list(MODELS), help="of the app (hog-linear)")
    parser.add_argument(
        "--parameters",
        type=int,
        metavar="D",
        help="a model of your own instead: how many parameters it has",
    )
    parser.add_argument(
        "--rounds", type=int, nargs="+", help="numbers of rounds, or steps, to look at"
    )
    parser.add_argument("--sampling-rates", type=float, nargs="+", metavar="Q")
    parser.add_argument(
        "--ledger", metavar="FILE", help="what the same clients have paid already, to plan the rest"
    )
    parser.add_argument(
        "--mechanism",
        choices=(*MECHANISMS, "all"),
        default=MECHANISMS[0],
        help="banded, blt: noise that is correlated over the rounds, for clients that take part in "
        "turns, every 1/Q rounds; no cohort needs to be secret; blt in less memory; all: compare "
        "them, amplified too (lattice: independent noise)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.set_defaults(run=run)


def run(options_given: argparse.Namespace) -> int:
    """Answer, row by row as each is worked out.

    Raises
    ------
    SettingError
        If a number is out of range.
    """
    o = options_given
    own = _own_model(o)
    o.epsilon = 3.0 if o.epsilon is None else o.epsilon
    o.delta = 1e-5 if o.delta is None else o.delta
    if o.silos is not None:
        if o.mechanism != MECHANISMS[0]:
            raise SettingError(f"--mechanism {o.mechanism} is wrong; it goes with --population")
        return plan_silos.run(o)
    for name in ("colluders", "absent"):
        if getattr(o, name) is not None:
            raise SettingError(f"--{name} {getattr(o, name)} is wrong; it goes with --silos")
    paid = None if o.ledger is None else read_spent(o.ledger, population=o.population)
    if o.population is None and paid is not None:
        o.population = paid.clients
    if o.population is None:
        raise SettingError(
            "--population is missing; give N, or --silos and how many there are"
            + (", or write clients under [privacy] in task.toml" if o.task else "")
        )
    o.records = 50 if o.records is None else o.records
    in_turns = o.mechanism != MECHANISMS[0]
    compared = o.mechanism == "all"
    usual = (0.1,) if compared else RATES_IN_TURNS if in_turns else SAMPLING_RATES
    o.sampling_rates = o.sampling_rates or list(usual)
    rounds = o.rounds or [RECIPES[o.model].rounds]
    budget = checked_budget(
        o,
        ("--population", [o.population], lambda n: n >= 1, "at least 1"),
        ("--records", [o.records], lambda n: n >= 1, "at least 1"),
        ("--rounds", rounds, lambda n: n >= 1, "at least 1"),
        ("--sampling-rates", o.sampling_rates, lambda q: 0 < q <= 1, "in (0, 1]"),
        *(
            [("--sampling-rates", o.sampling_rates, _is_one_over_groups, "1/2, 1/3, … as decimals")]
            if in_turns
            else []
        ),
    )
    question = Question(budget, o.population, o.records, o.dataset, o.model)
    # Measured with cohorts that stay secret.
    accuracy = AccuracyRange(None, None) if in_turns else expected_accuracy(question)
    spent = () if paid is None else paid.events
    mechanisms = COMPARED if compared else (o.mechanism,)
    rows = (
        option
        for count, rate in product(rounds, o.sampling_rates)
        for mechanism in mechanisms
        for option in options(
            question, rates=[rate], rounds=[count], spent=spent, own=own, mechanism=mechanism
        )
    )
    parameters = own.parameters if own else MODELS[o.model].parameters
    if problem := large_delta(budget.delta, o.population):
        print(f"warning: {problem}.", file=sys.stderr)
    if o.json:
        document = _document(question, accuracy, worked_out := list(rows))
        taken = None if compared else advice(worked_out, parameters=parameters)
        document["advice"] = as_document(taken)
        document["question"]["mechanism"] = o.mechanism
        document["spent"] = None if paid is None else paid.epsilon(budget.delta)
        print(json.dumps(document, ensure_ascii=False))
        return 0
    print(
        f"{o.model} on {o.dataset}, N = {o.population:,} clients, ε = {o.epsilon:g} at "
        f"δ = {o.delta:g} for every client (add or remove one)\n"
    )
    if paid is not None:
        print(textwrap.fill(ledger_words(paid, budget), 88) + "\n")
    print(_HEADER + ("  way" if compared else ""), flush=True)
    worked_out = []
    for option in rows:
        worked_out.append(option)
        print(_line(option) + (f"  {option.way}" if compared else ""), flush=True)
    if compared:
        print("\n" + textwrap.fill(_comparison(worked_out), 88))
        return 0
    if in_turns:
        print(
            "\nCorrelated noise: each client is asked every 1/q rounds, and who is asked is no"
            "\nsecret. noise: of independent noise that would leave as much in the models."
        )
        if any(round(1 / option.sampling_rate) > option.rounds for option in worked_out):
            print("Where 1/q is more than the rounds, some clients are never asked.")
    print(
        "\nz: noise multiplier. ε unamplified: against whoever learns who was drawn;"
        "\nN is public either way. noise: on each parameter of a"
        "\nround's average, in clipping norms; smaller is better, and more rounds average it out."
        "\nOnly these settings cost privacy: learning rates and local steps do not, unless they"
        "\nwere tuned on clients' data."
    )
    clipping_norm = own.clipping_norm if own else RECIPES[o.model].clipping_norm
    taken = advice(worked_out, parameters=parameters)
    print("\n" + textwrap.fill(_advice(taken, clipping_norm), 88))
    if taken is not None and taken.learns:
        print("\n" + textwrap.fill(_secret(o.mechanism, taken, worked_out), 88))
    if taken is None or not taken.learns:
        return 0  # bounds by measured runs that learned say nothing of it
    on = f" on {o.dataset}" if accuracy.known else ""
    elsewhere = "; runs in turns are in docs/how-to/correlated-noise.md" if in_turns else ""
    print(f"\nExpected test accuracy{on}: {accuracy.sentence}{elsewhere}.")
    if accuracy.known:
        print("Measured clients share no records and know one or two labels each.")
    known = [m for m in measured_rounds() if m.model == o.model]
    if known:
        print(f"Seconds a round: scaled from a simulation on {known[0].where}.")
    else:
        print("Seconds a round: not known, no round of this model was measured.")
    return 0


def _own_model(o: argparse.Namespace) -> OwnModel | None:
    """The user's own model, of a task or of so many parameters; fills in what was not given."""
    if o.parameters is not None:
        if o.task or o.model:
            raise SettingError("--parameters contradicts --task and --model; give one of them")
        if o.parameters < 1:
            raise SettingError(f"--parameters {o.parameters} is wrong; it must be at least 1")
        o.model = f"a model of {counted(o.parameters, 'parameter')}"
        o.dataset, o.rounds = o.dataset or "data of yours", o.rounds or [_ROUNDS]
        return OwnModel(1, o.parameters, server_momentum=0.0, clipping_norm=None)
    if o.task:
        return _take_task(o)
    o.model, o.dataset = o.model or "hog-linear", o.dataset or "mnist"
    return None


def _take_task(o: argparse.Namespace) -> OwnModel:
    """Fill in from a task what was not given; returns its model's figures."""
    settings = Settings.from_config({"task": str(o.task)})
    task = read_task(o.task)
    arrays, parameters = len(build_for(task).state_dict()), parameters_of(task)
    if o.model or o.dataset:
        raise SettingError("--task names the model and the data; leave --model and --dataset out")
    o.model, o.dataset, o.parameters = task.model, task.name, parameters
    o.epsilon = settings.epsilon if o.epsilon is None else o.epsilon
    o.delta = settings.delta if o.delta is None else o.delta
    o.rounds = o.rounds or [settings.rounds]
    if o.silos is None and o.population is None:
        if settings.has_silos:
            o.silos, o.colluders = settings.silos, o.colluders or settings.colluders
            o.records = o.records or settings.records
        else:
            o.population = settings.population or None
    return OwnModel(arrays, parameters, settings.server_momentum, settings.clipping_norm)


def _advice(taken: Advice | None, clipping_norm: float | None) -> str:
    if taken is None:
        return "Advice: none of these. Raise ε or δ, or leave what is left of the budget unspent."
    if not taken.learns:
        return (
            f"Advice: do not train like this. Over {taken.rounds} rounds the noise moves the model "
            f"{1 / taken.signal_to_noise:.3g} times as far as all clients could if they agreed: so "
            "few cannot be hidden in each other. Have more clients or a smaller model, or hide "
            "records instead of clients: --silos and --records."
        )
    bound = "a few times below the length of an update, and the server's learning rate, both chosen"
    if clipping_norm is not None:
        bound = f"that of the recipe ({clipping_norm:g}), or one chosen"
    return (
        f"Advice: q = {taken.sampling_rate:g} and {taken.rounds} rounds; a larger q costs bytes "
        "and lowers the noise little. Over all rounds clients could move the model "
        f"{taken.signal_to_noise:.3g} times as far as the noise does, if they agreed. S: "
        f"{bound} on public data. δ: below 1/N."
    )


def _comparison(rows: list[Option]) -> str:
    """The ways with the least noise: whoever learns the cohorts, and while nobody does."""
    lengths = {
        index: row.noise_share / math.sqrt(row.rounds)
        for index, row in enumerate(rows)
        if row.noise_share is not None
    }
    words = [
        "noise: where it is correlated, of independent noise that would leave as much in the "
        "models; smaller is better. ε unamplified: against whoever learns who was drawn."
    ]
    for whom, secret in (("whoever learns who was asked", False), ("while nobody does", True)):
        those = [index for index in lengths if secret or not rows[index].secret]
        if those:
            least = rows[min(those, key=lambda index: lengths[index])]
            words.append(f"Least noise, {whom}: {least.way}, {least.rounds} rounds.")
    return " ".join(words) if lengths else "No noise fits this budget."


def _secret(mechanism: str, taken: Advice, rows: list[Option]) -> str:
    """Whether the advice rests on cohorts that nobody learns, and how to take it."""
    q = taken.sampling_rate
    if mechanism != MECHANISMS[0]:
        groups = round(1 / q)
        noise = "BLT()" if mechanism == "blt" else f"BandedMF({groups})"
        return (
            f"Take CyclicGroups({groups}) with {noise}; in the app mechanism={mechanism} "
            f"sampling-rate={q:g}. No cohort needs to be secret. Where all of them can "
            "stay secret, compare the table without --mechanism."
        )
    if q == 1:
        return "Take Full(); in the app sampling-rate=1. No cohort needs to be secret."
    row = next(r for r in rows if (r.sampling_rate, r.rounds) == (q, taken.rounds))
    plain = row.epsilon_without_amplification
    return (
        f"Take Poisson({q:g}); in the app sampling-rate={q:g}. ε holds only while nobody learns "
        f"who was drawn; against whoever does it is {'∞' if plain is None else f'{plain:.3g}'}. "
        "Where that cannot be promised: --mechanism banded, or blt."
    )


def _is_one_over_groups(rate: float) -> bool:
    return rate <= 0.5 and abs(round(1 / rate) * rate - 1) < 1e-3


_HEADER = (
    f"{'q':>6} {'rounds':>7} {'clients':>8} {'z':>8} {'ε unamplified':>13} {'noise':>9} "
    f"{'MB/round':>9} {'MB/client':>10} {'s/round':>8}"
)


def _line(option: Option) -> str:
    start = f"{option.sampling_rate:>6g} {option.rounds:>7} {option.cohort:>8.0f}"
    if option.noise_multiplier is None or option.noise_share is None:
        return f"{start}  no noise fits this budget"
    plain = option.epsilon_without_amplification
    unamplified = "∞" if plain is None else f"{plain:.3g}"
    seconds = "" if option.round_seconds is None else f"{option.round_seconds:.2f}"
    return (
        f"{start} {option.noise_multiplier:>8.3f} {unamplified:>13} {option.noise_share:>9.4f} "
        f"{option.round_bytes / 1e6:>9.2f} {option.client_bytes / 1e6:>10.3f} {seconds:>8}"
    )


def _document(question: Question, accuracy: AccuracyRange, rows: list[Option]) -> dict[str, Any]:
    return {
        "question": asdict(question),
        "options": [asdict(option) for option in rows],
        "accuracy": accuracy.as_dict(),
    }
