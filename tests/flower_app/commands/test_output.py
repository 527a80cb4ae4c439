"""What commands print where nobody reads on, where there is no room, or letters are missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PLAN = ["plan", "--population", "1000", "--sampling-rates", "1", "--rounds", "5"]


def command(
    *arguments: str, stdout: int = subprocess.PIPE, **environment: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "flower_app", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], PLAN], ids=["help", "plan"])
def test_a_reader_who_stops_reading_is_no_trouble(arguments: list[str], unbuffered: str) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        ended = command(*arguments, stdout=write, PYTHONUNBUFFERED=unbuffered)
    finally:
        os.close(write)
    assert ended.stderr == ""
    assert ended.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_is_reported(unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        ended = command(*PLAN, stdout=full.fileno(), PYTHONUNBUFFERED=unbuffered)
    assert ended.returncode == 1
    assert ended.stderr == ("error: the output cannot be written: No space left on device\n")


def test_letters_that_a_terminal_has_not_are_written_as_it_can() -> None:
    ended = command(*PLAN, PYTHONIOENCODING="ascii")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "\\u03b5" in ended.stdout
    whole = command(*PLAN, PYTHONIOENCODING="utf-8")
    assert whole.stdout.encode("ascii", "backslashreplace").decode() == ended.stdout
