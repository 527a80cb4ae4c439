"""Keyed hashes of ids: one person is one name in every silo, and nobody without the key tells."""

import hashlib
import hmac
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privacy.training import Persons, in_earlier_silos, keyed_person_ids

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


def test_it_is_hmac_sha_256() -> None:
    expected = hmac.new(KEY, b"tAnn", hashlib.sha256).hexdigest()
    assert keyed_person_ids(["Ann"], KEY) == [expected]
    assert (
        keyed_person_ids(["0042", 42], KEY)
        == [hmac.new(KEY, b"n42", hashlib.sha256).hexdigest()] * 2
    )
    assert keyed_person_ids(["Ann"], OTHER) != [expected]


@given(st.lists(st.integers(-(2**60), 2**60) | st.text(max_size=8) | st.none(), max_size=30))
def test_names_group_rows_as_the_ids_did(ids: list[int | str | None]) -> None:
    names = keyed_person_ids(ids, KEY)
    usable = [name for name in names if name]
    if not usable:
        return
    rows = (torch.zeros(len(ids), 1), torch.zeros(len(ids), 1))
    by_id, by_name = Persons(rows, ids), Persons(rows, names)
    assert np.array_equal(by_id.person_of_row, by_name.person_of_row)


@pytest.mark.parametrize(
    "alike",
    [(7, "7", "007", 7.0, np.int64(7)), ("Zoë", "Zoe\N{COMBINING DIAERESIS}"), ("x", " x ")],
)
def test_what_is_one_id_is_one_name(alike: tuple[Any, ...]) -> None:
    assert len(set(keyed_person_ids(alike, KEY))) == 1


def test_a_number_and_a_text_of_the_same_letters_are_two() -> None:
    assert len(set(keyed_person_ids(["7", "n7", "t7", "", "nan", None], KEY))) == 4


def test_who_is_in_two_silos_is_left_out_of_the_later_one_alone() -> None:
    silos = [["ann", "bob", None], ["bob", "eve", "bob"], ["eve", "ann", "kim", ""]]
    left_out = in_earlier_silos([keyed_person_ids(ids, KEY) for ids in silos])
    assert left_out == [set(keyed_person_ids(ids, KEY)) for ids in ([], ["bob"], ["ann", "eve"])]


@pytest.mark.parametrize(
    ("ids", "key", "words"),
    [
        ([1], "secret" * 6, "key is str; give bytes"),
        ([1], b"secret", "key has 6 bytes; give at least 32"),
        ("ann", KEY, "give one id a row"),
        (7, KEY, "give one id a row"),
    ],
)
def test_a_wrong_key_and_ids_are_refused(ids: Any, key: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words) as error:
        keyed_person_ids(ids, key)
    assert "secretsecret" not in str(error.value)
