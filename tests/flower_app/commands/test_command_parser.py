"""Command lines take arguments in any order, and tell misuse with the usage of the command."""

import argparse
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flower_app.__main__ import main as flower_app_main
from flower_app.commands import plan
from privacy.accounting.__main__ import main as accounting_main
from privacy.audit.__main__ import main as audit_main
from privacy.command_line import CommandParser

PIECES = [["URL"], ["a.png"], ["-"], ["b.png"], ["--file", "F"], ["--once"], ["--many", "1", "2"]]


def parser() -> argparse.ArgumentParser:
    program = CommandParser(prog="program")
    ask = program.add_subparsers(required=True).add_parser("ask")
    ask.add_argument("url")
    ask.add_argument("images", nargs="+")
    ask.add_argument("--file", required=True)
    ask.add_argument("--once", action="store_true")
    ask.add_argument("--many", nargs=2)
    return program


@given(st.permutations(range(len(PIECES))))
def test_options_stand_anywhere_between_what_they_are_for(order: list[int]) -> None:
    given_ = [word for index in order for word in PIECES[index]]
    positional = [PIECES[index][0] for index in order if index < 4]
    options = parser().parse_args(["ask", *given_])
    assert [options.url, *options.images] == positional
    assert (options.file, options.once, options.many) == ("F", True, ["1", "2"])


AFTER = st.sampled_from(["-dash.png", "--once", "--file", "--", "-", "", "-h", "plain"])


@given(st.permutations(range(len(PIECES))), st.integers(0, 4), st.lists(AFTER, min_size=1))
def test_after_two_dashes_nothing_is_an_option(
    order: list[int], left: int, after: list[str]
) -> None:
    """However many of the positional arguments come before, and wherever the options are."""
    order = [index for index in order if index < left or index >= 4]
    positional = [PIECES[index][0] for index in order if index < 4] + after
    assume(len(positional) >= 2)
    words = [word for index in order for word in PIECES[index]]
    options = parser().parse_args(["ask", *words, "--", *after])
    assert [options.url, *options.images] == positional
    assert (options.file, options.once, options.many) == ("F", True, ["1", "2"])


@pytest.mark.parametrize("words", [["-5"], ["--", "-5"]])
def test_what_comes_after_two_dashes_is_read_as_what_it_is_for(words: list[str]) -> None:
    command = CommandParser(prog="count")
    command.add_argument("number", type=int)
    assert command.parse_args(words).number == -5


def test_misuse_after_two_dashes_is_quoted_as_it_was_written(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = CommandParser(prog="count")
    command.add_argument("number", type=int)
    command.add_argument("kind", choices=["a"], nargs="?")
    for words, told in (
        (["--", "-x"], "argument number: invalid int value: '-x'"),
        (["--", "1", "-x"], "invalid choice: '-x'"),
        (["--", "1", "a", "-x"], "unrecognized arguments: -x"),
        (["--"], "required: number"),
    ):
        with pytest.raises(SystemExit):
            command.parse_args(words)
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--", "f.tok", "-n"], ["f.tok", "--", "-n"], ["--operator", "--", "f.tok", "--operator"]],
)
def test_an_unknown_name_is_refused_as_that(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert flower_app_main(["token", "add", *words]) == 1
    assert f"'{words[-1]}' is not a name for a token" in capsys.readouterr().err


def test_images_that_begin_with_a_dash_are_asked_about_after_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the service's token is missed first."""
    token = ["--token-file", str(tmp_path / "T"), "--one-time-keys"]
    assert flower_app_main(["ask", *token, "--", "https://localhost:1", "-x.png"]) == 1
    assert "the token cannot be read" in capsys.readouterr().err


def test_an_image_may_be_appended_to_the_command_that_a_service_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = ["ask", "https://localhost:1", "--token-file", str(tmp_path / "T")]
    assert flower_app_main([*printed[:2], "a.png", *printed[2:], "--one-time-keys", "/x.png"]) == 1
    assert "the token cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("main", "arguments", "usage", "error"),
    [
        (flower_app_main, ["run", "--node", "10"], "flower_app run", "unrecognized.*: --node"),
        (flower_app_main, ["run", "rounds=2", "--node=10", "x=1"], "flower_app run", "--node=10"),
        (flower_app_main, ["ask", "https://x", "--tok"], "flower_app ask", "--tok"),
        (flower_app_main, ["token", "add", "f", "n", "--op"], "flower_app token add", "--op"),
        (flower_app_main, ["token", "ad"], "flower_app token", "invalid choice"),
        (flower_app_main, ["frob"], "flower_app", "invalid choice"),
        (accounting_main, ["ledger", "f", "--delta=1e-5", "-x"], "accounting ledger", "-x"),
        (audit_main, ["bound", "--canaries", "3", "f"], "audit bound", "required: --correct"),
    ],
)
def test_misuse_is_answered_with_the_usage_of_the_command_that_was_given(
    main: object, arguments: list[str], usage: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.match(rf"usage: python -m (privacy\.)?{usage} \[-h\]", said)
    assert re.search(error, said)


def test_commands_say_when_kernels_are_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logging.getLogger("privacy.kernels")

    def add_command(commands: Any) -> None:
        waiting = commands.add_parser("plan")
        waiting.set_defaults(run=lambda _: log.info("compiling kernels") or 0)

    monkeypatch.setattr(plan, "add_command", add_command)
    assert flower_app_main(["plan"]) == 0
    assert capsys.readouterr().err == "compiling kernels\n"
    log.info("to whoever listens")
    assert capsys.readouterr().err == ""
