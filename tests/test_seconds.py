"""Every number of seconds to wait is one that clocks, locks and sockets of all systems take."""

import argparse
import importlib
import inspect
import math
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from flower_app.__main__ import COMMANDS, command_parser, main
from privacy.accounting import Ledger
from privacy.inference import EvaluatorProcess
from privacy.inference_service import ServiceClient, ServiceLimits, ServiceServer, TokenFile
from privacy.shared_inference import Address, Link, RemoteWorkers, WorkerLimits
from privacy.statistics import TableQuery
from privacy.training import DataPolicy
from strategies import Budget, EncryptedRound, PublicMetrics, SecureAggregation
from tests.privacy.inference_service.serving import small_model
from tests.strategies.distributed_dpsgd.silos import strategy_of
from tests.strategies.federation import grid_of, model, noiseless
from tests.test_plain_numbers import PACKAGES, POLICY_OF_DATA

# A socket waits 0.3 s where it is told 2^32 milliseconds and 300.
WRONG = [math.inf, math.nan, 1e300, 2**32 / 1000 + 0.3, 2_147_484, 10**400, -1.0]
WAITING = re.compile("timeout|seconds|patience|hours|days|minutes|deadline|lifetime|interval")
# Of a result, and of a grid on which every answer is there at once.
NOT_WAITED = {("RoundProgress", "seconds"), ("InProcessGrid.send_and_receive", "timeout")}


def linked(folder: Path, **given: Any) -> None:
    one, other = socket.socketpair()
    with one, other:
        Link(one, **given)


def served(folder: Path, **given: Any) -> None:
    app = FastAPI()
    app.state.limits = ServiceLimits()
    ServiceServer(app, **given)


def asked(folder: Path, **given: Any) -> None:
    owner: Any = None
    RemoteWorkers(owner, alice=Address("a", 1), bob=Address("b", 1), context=owner, **given)


def encrypted(folder: Path, **given: Any) -> None:
    EncryptedRound(
        population=4,
        start_evaluator=lambda: pytest.fail("an evaluator was started"),
        images=2,
        metrics=PublicMetrics(),
        budget=Budget(math.inf, 1e-5),
    ).run(grid_of(4), **given)


def set_anew(folder: Path, timeout: Any) -> None:
    object.__new__(EvaluatorProcess).timeout = timeout


QUERY = TableQuery(bounds=[(0.0, 1.0)])
DOORS: dict[tuple[str, str], Callable[..., object]] = {
    ("EvaluatorProcess", "timeout"): lambda _, **given: EvaluatorProcess(["true"], **given),
    ("EvaluatorProcess.timeout", "timeout"): set_anew,
    ("Ledger.open", "timeout"): lambda folder, **given: Ledger.open(
        folder / "ledger.jsonl", population="p", **given
    ),
    ("ServiceClient", "timeout"): lambda _, **given: ServiceClient("https://localhost:1", **given),
    ("ServiceServer", "shutdown_seconds"): served,
    ("ServiceLimits", "head_seconds"): lambda _, **given: ServiceLimits(**given),
    ("ServiceLimits", "body_seconds"): lambda _, **given: ServiceLimits(**given),
    ("ServiceLimits", "key_hours"): lambda _, **given: ServiceLimits(**given),
    ("TokenFile.add", "hours"): lambda folder, **given: TokenFile(folder / "tokens").add(
        "ada", **given
    ),
    ("Link", "timeout"): linked,
    ("RemoteWorkers", "timeout"): asked,
    ("WorkerLimits", "idle_seconds"): lambda _, **given: WorkerLimits(**given),
    ("WorkerLimits", "patience"): lambda _, **given: WorkerLimits(**given),
    ("WorkerLimits", "exchange_seconds"): lambda _, **given: WorkerLimits(**given),
    ("DataPolicy", "answer_seconds"): lambda _, **given: DataPolicy(**POLICY_OF_DATA | given),
    ("DPFedAvg.start", "timeout"): lambda folder, **given: noiseless(folder).start(
        grid_of(4), model(), **given
    ),
    ("SecureAggregation", "stage_timeout"): lambda _, **given: SecureAggregation(
        min_clients=3, **given
    ),
    ("DistributedDPSGD", "stage_timeout"): strategy_of,
    ("DistributedDPSGD.start", "timeout"): lambda folder, **given: strategy_of(folder).start(
        grid_of(4), model(), **given
    ),
    ("DistributedDPSGD.statistics", "timeout"): lambda folder, **given: strategy_of(
        folder
    ).statistics(grid_of(4), QUERY, noise_multiplier=8.0, **given),
    ("EncryptedRound.run", "timeout"): encrypted,
}
ZERO_IS_AT_ONCE = {("Ledger.open", "timeout"), ("DataPolicy", "answer_seconds")}
LASTING = {("ServiceLimits", "key_hours"), ("TokenFile.add", "hours")}


def parameters() -> Iterator[tuple[str, str]]:
    """Functions, methods and classes that the packages list, with each of their parameters."""
    for package in map(importlib.import_module, PACKAGES):
        for name in {*dir(package), *getattr(package, "__all__", ())}:
            member = getattr(package, name)
            called = {name: member} if inspect.isfunction(member) else {}
            if inspect.isclass(member):
                called[name] = member.__init__
                for method, _ in inspect.getmembers(member, callable):
                    if not method.startswith("_"):
                        called[f"{name}.{method}"] = getattr(member, method)
            for one, function in called.items():
                try:
                    taken = inspect.signature(function).parameters
                except ValueError:  # of C
                    continue
                yield from ((one, parameter) for parameter in taken)


def test_every_public_number_of_seconds_is_listed() -> None:
    waiting = {(name, given) for name, given in parameters() if WAITING.search(given)}
    assert waiting - NOT_WAITED <= set(DOORS)


@pytest.mark.parametrize("door", DOORS, ids="-".join)
def test_only_seconds_that_can_be_waited_are_taken(door: tuple[str, str], tmp_path: Path) -> None:
    name = door[1]
    wrong = [value for value in WRONG if door not in LASTING or value not in WRONG[3:5]]
    for value in [*wrong, *([] if door in ZERO_IS_AT_ONCE else [0])]:
        with pytest.raises(ValueError, match=f"^{name} is .*give "):
            DOORS[door](tmp_path, **{name: value})
    with pytest.raises(TypeError, match=f"^{name} is "):
        DOORS[door](tmp_path, **{name: "60"})


# Commands -----------------------------------------------------------------------------------------

OPTIONS: dict[tuple[str, ...], list[str]] = {
    ("serve", "--answer-seconds"): ["serve", "{}/model"],
    ("serve", "--key-hours"): ["serve", "{}/model"],
    ("token", "add", "--hours"): ["token", "add", "{}/tokens.json", "ada"],
    ("worker", "--idle-seconds"): ["worker", "bob", "{}"],
    ("worker", "--patience"): ["worker", "bob", "{}"],
    ("worker", "--exchange-seconds"): ["worker", "bob", "{}"],
}
WHOLE_DAYS = {("provider", "begin", "--days")}
"""With a test of their own."""


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, ...]]:
    """The options of a command line, each after the names of its command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from ((name, *rest) for rest in options(command))
        else:
            yield from ((option,) for option in action.option_strings)


def test_every_option_of_seconds_is_listed() -> None:
    waiting = {path for path in options(command_parser(*COMMANDS)) if WAITING.search(path[-1])}
    assert waiting == {*OPTIONS} | WHOLE_DAYS


@pytest.mark.parametrize("option", OPTIONS, ids="-".join)
@pytest.mark.parametrize("value", ["inf", "nan", "1e300", "-1", "0"])
def test_an_option_of_seconds_is_refused_in_a_sentence(
    option: tuple[str, ...],
    value: str,
    compiled: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [word.replace("{}", str(compiled)) for word in OPTIONS[option]]
    assert main([*given, f"{option[-1]}={value}"]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    name = option[-1].strip("-").replace("-", "[-_]")
    assert re.match(f"error: (--)?{name} is .*; give .* above 0, at most", output.err)
    assert len(output.err.splitlines()) == 1
    assert {path.name for path in compiled.iterdir()} == {"model"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compiled model."""
    folder = tmp_path_factory.mktemp("compiled")
    small_model().save(folder / "model")
    return folder
