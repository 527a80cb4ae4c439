"""Checks of arguments: each error names the parameter, its value and the remedy."""

import ast
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from privacy.arguments import delta, lasting_file, number, shown, text, whole

ROOT = Path(__file__).parents[2]
PLAIN = {"number", "maybe_infinite", "whole", "delta", "sizes", "interval"}


def checked_in_vain(file: Path) -> list[int]:
    """The lines of a module on which a check's plain number is thrown away."""
    calls = [
        statement.value
        for statement in ast.walk(ast.parse(file.read_text()))
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    ]
    names = [(call, ast.unparse(call.func).rpartition(".")[2]) for call in calls]
    return [call.lineno for call, name in names if name in PLAIN]


def test_what_a_check_returns_is_what_is_worked_with() -> None:
    """An array of one number passes the check, and fails where only a number will do."""
    files = [
        f for part in ("privacy", "strategies", "flower_app") for f in (ROOT / part).rglob("*.py")
    ]
    assert files
    assert {str(file): lines for file in files if (lines := checked_in_vain(file))} == {}


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.int8(3), np.array(3.0), torch.tensor(3), Fraction(3)]
)
def test_numbers_of_every_library_are_taken(value: Any) -> None:
    taken = number("z", value, above=0, most=3)
    assert type(taken) is float
    assert taken == 3


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), torch.tensor(3)])
def test_whole_numbers_of_every_library_are_taken(value: Any) -> None:
    taken = whole("rounds", value, least=1)
    assert type(taken) is int
    assert taken == 3


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (math.nan, {}, "z is nan; it must be a finite number"),
        (0, {"above": 0}, "z is 0; it must be a finite number above 0"),
        (-1, {"least": 0}, "z is -1; it must be a finite number of at least 0"),
        (1.0, {"least": 0, "below": 1}, "z is 1.0; it must be a number in [0, 1)"),
        (0.0, {"above": 0, "most": 1}, "z is 0.0; it must be a number in (0, 1]"),
        (10**400, {}, "z is an integer of 1329 bits; it must be a finite number"),
        (-(10**400), {"most": 1}, "z is an integer of 1329 bits; it must be a finite number of at"),
        (2, {"most": 1, "give": "a smaller one"}, "z is 2; give a smaller one"),
    ],
)
def test_numbers_out_of_range_are_named(value: Any, bounds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r"^z is") as caught:
        number("z", value, **bounds)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "value",
    ["3", True, None, [3], np.array([3]), np.ma.masked, float, torch.empty((), device="meta")],
)
def test_what_is_no_number_is_named(value: Any) -> None:
    for check in (number, whole):
        with pytest.raises(TypeError, match=r"^z is .*; it must be a"):
            check("z", value)


def test_whole_numbers_are_counted() -> None:
    with pytest.raises(
        TypeError, match=r"rounds is 40\.0; it must be a whole number of at least 1"
    ):
        whole("rounds", 40.0, least=1)
    with pytest.raises(
        ValueError, match=r"radius is 0; it must be a whole number in \[1, 1048576\]"
    ):
        whole("radius", 0, least=1, most=1 << 20)


def test_a_delta_has_an_inverse() -> None:
    assert delta("target_delta", 1e-5) == 1e-5
    for value in (0, 1, 1e-310, math.nan):
        with pytest.raises(
            ValueError, match=r"^target_delta is .*; give a number in \[2\.3e-308, 1\)"
        ):
            delta("target_delta", value)


def test_texts_are_not_empty() -> None:
    assert text("run", "a") == "a"
    with pytest.raises(ValueError, match="run is ''; give the name of the run"):
        text("run", "", "the name of the run")
    with pytest.raises(TypeError, match="run is 3; give a name, as text"):
        text("run", 3)


def test_secrets_and_long_values_are_not_shown(tmp_path: Path) -> None:
    assert shown(b"secret") == "6 bytes"
    assert shown([0.5] * 100) == "of type list"
    assert shown(float) == "the class float"
    assert lasting_file("ledger", tmp_path / "ledger") == tmp_path / "ledger"
