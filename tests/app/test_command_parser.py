"""Command lines take arguments in any order, and tell misuse with the usage of the command."""

import argparse
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flower_app.__main__ import main as flower_app_main
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
def test_misuse_is_told_with_the_usage_of_the_command_that_was_given(
    main: object, arguments: list[str], usage: str, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert re.match(rf"usage: python -m (privacy\.)?{usage} \[-h\]", said)
    assert re.search(error, said)
