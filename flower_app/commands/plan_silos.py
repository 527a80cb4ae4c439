"""``python -m flower_app plan --silos``: what distributed DP-SGD over a few silos would take."""

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from flower_app.errors import SettingError
from flower_app.measurements import AccuracyRange, measured_silos
from flower_app.models.specs import MODELS
from flower_app.plan_advice import Advice, advice, as_document, ledger_words, read_spent
from flower_app.silo_planning import (
    SAMPLING_RATES,
    STEPS,
    SiloOption,
    SiloQuestion,
    expected_accuracy,
    silo_options,
)
from privacy.accounting import Budget, large_delta
from privacy.secure_aggregation import FewSilos

Check = tuple[str, Sequence[Any], Callable[[Any], bool], str]


def checked_budget(options_given: argparse.Namespace, *checks: Check) -> Budget:
    """The budget, once each option's values have passed its check.

    Raises
    ------
    SettingError
        If a number is out of range.
    """
    o = options_given
    for name, values, good, what in (*checks, ("--epsilon", [o.epsilon], math.isfinite, "finite")):
        for value in values:
            if not good(value):
                raise SettingError(f"{name} {value} is wrong; it must be {what}")
    try:
        return Budget(o.epsilon, o.delta)
    except ValueError as error:
        raise SettingError(f"the budget is wrong: {error}") from error


def run(options_given: argparse.Namespace) -> int:
    """Answer, row by row as each is worked out.

    Raises
    ------
    SettingError
        If a number is out of range, or missing.
    """
    o = options_given
    if o.records is None:
        raise SettingError("--records is missing; with --silos give the persons over all of them")
    rates, steps = o.sampling_rates or list(SAMPLING_RATES), o.rounds or [STEPS]
    budget = checked_budget(
        o,
        ("--records", [o.records], lambda n: n >= 1, "at least 1"),
        ("--rounds", steps, lambda n: n >= 1, "at least 1"),
        ("--sampling-rates", rates, lambda p: 0 < p < 1, "in (0, 1)"),
    )
    try:
        silos = FewSilos(o.silos, 1 if o.colluders is None else o.colluders, o.absent)
    except (TypeError, ValueError) as error:
        raise SettingError(f"--silos {o.silos} is wrong; {error}") from error
    question = SiloQuestion(budget, silos, o.records, o.model, o.dataset, o.parameters)
    accuracy = expected_accuracy(question, measured_silos())
    paid = None if o.ledger is None else read_spent(o.ledger, population=None)
    spent = () if paid is None else paid.events
    rows = silo_options(question, rates=rates, steps=steps, spent=spent)
    parameters = o.parameters or MODELS[o.model].parameters
    if problem := large_delta(budget.delta, o.records, unit="person"):
        print(f"warning: {problem}.", file=sys.stderr)
    if o.json:
        document = _document(question, accuracy, worked_out := list(rows))
        document["advice"] = as_document(advice(worked_out, parameters=parameters))
        document["spent"] = None if paid is None else paid.epsilon(budget.delta)
        print(json.dumps(document, ensure_ascii=False))
        return 0
    print(
        f"{o.model}, {silos.silos} silos with N = {o.records:,} persons together, "
        f"ε = {o.epsilon:g} at δ = {o.delta:g} for every person (add or remove one),\n"
        f"against everybody, the server included: {silos}.\n"
    )
    if paid is not None:
        print(textwrap.fill(ledger_words(paid, budget), 88) + "\n")
    print(_HEADER, flush=True)
    worked_out = []
    for option in rows:
        worked_out.append(option)
        print(_line(option), flush=True)
    print(
        "\nbatch: persons a step over all silos, about. z: noise multiplier, of the fewest"
        "\nhonest silos. noise: on each parameter of a step's average, in clipping norms, if all"
        "\nsilos take part; curator: of one trusted with all the data; own noise: of silos that"
        "\neach add all of it alone. Smaller is better. Where every row is another person, N is the"
        "\nrows. Only these settings cost privacy: learning rates do not, unless tuned on the data."
    )
    taken = advice(worked_out, parameters=parameters)
    print("\n" + textwrap.fill(_advice(taken), 88))
    if taken is None or not taken.learns:
        return 0  # a bound by measured runs that learned says nothing of it
    on = f" on {o.dataset}" if accuracy.known else ""
    print(f"\nExpected test accuracy{on}: {accuracy.sentence}.")
    if accuracy.known:
        print("Every measured record is another person's.")
    return 0


def _advice(taken: Advice | None) -> str:
    if taken is None:
        return "Advice: none of these. Raise ε or δ, or leave what is left of the budget unspent."
    if not taken.learns:
        return (
            f"Advice: do not train like this. Over {taken.rounds} steps the noise moves the model "
            f"{1 / taken.signal_to_noise:.3g} times as far as all persons could if they agreed. "
            "Have more persons, or a smaller model."
        )
    return (
        f"Advice: p = {taken.sampling_rate:g} and {taken.rounds} steps. Over all steps persons "
        f"could move the model {taken.signal_to_noise:.3g} times as far as the noise does, if they "
        "agreed. S: on public data. δ: below 1/N."
    )


_HEADER = (
    f"{'p':>6} {'steps':>7} {'batch':>8} {'z':>8} {'noise':>9} {'curator':>9} {'own noise':>10} "
    f"{'MB/step/silo':>13}"
)


def _line(option: SiloOption) -> str:
    start = f"{option.sampling_rate:>6g} {option.steps:>7} {option.batch:>8.0f}"
    if option.noise_multiplier is None or option.step_bytes is None:
        return f"{start}  no noise fits this budget"
    return (
        f"{start} {option.noise_multiplier:>8.3f} {option.noise_share:>9.5f} "
        f"{option.curator_share:>9.5f} {option.own_noise_share:>10.5f} "
        f"{option.step_bytes / 1e6:>13.3f}"
    )


def _document(
    question: SiloQuestion, accuracy: AccuracyRange, rows: list[SiloOption]
) -> dict[str, Any]:
    document = asdict(question)
    document["silos"]["server"] = question.silos.server.value
    return {
        "question": document,
        "options": [asdict(option) for option in rows],
        "accuracy": accuracy.as_dict(),
    }
