"""Integers beyond all doubles are refused by name, as other numbers out of range are."""

from typing import Any

import pytest

from privacy.secure_aggregation import Adversary, ClientPolicy


@pytest.mark.parametrize(
    "huge", [10**400, -(10**400), 10**5000], ids=["", "negative", "unwritable"]
)
@pytest.mark.parametrize(
    ("made", "name"),
    [
        (Adversary, "max_corrupt_fraction"),
        (ClientPolicy, "clipping_norm"),
        (ClientPolicy, "weight_cap"),
    ],
)
def test_an_integer_beyond_all_doubles_is_named(made: Any, name: str, huge: int) -> None:
    arguments = {"min_clients": 3} if made is ClientPolicy else {}
    with pytest.raises(ValueError, match=rf"^{name} is an integer of \d+ bits; it must be"):
        made(**arguments, **{name: huge})
