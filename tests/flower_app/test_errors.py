"""One is told as one."""

import pytest

from flower_app.errors import counted
from strategies import SecureAggregation


@pytest.mark.parametrize(
    ("number", "told"), [(0, "0 cores"), (1, "1 core"), (2, "2 cores"), (1000, "1,000 cores")]
)
def test_one_of_a_kind_has_no_plural(number: int, told: str) -> None:
    assert counted(number, "core") == told


def test_a_plural_may_be_another() -> None:
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


def test_a_kind_of_server_is_printed_in_correct_grammar() -> None:
    assert "a server that is honest-but-curious" in str(SecureAggregation(min_clients=3))
