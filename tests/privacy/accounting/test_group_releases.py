"""Groups that take turns: a client pays what its own group pays, in each instance."""

from pathlib import Path

import pytest

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    CyclicGroups,
    Event,
    Full,
    GaussianRelease,
    GroupRelease,
    Ledger,
    Observer,
    Poisson,
    against,
    against_server,
    attack_success,
    epsilon,
    read_ledger,
    without_amplification,
)
from privacy.accounting.events import event_from_dict, event_to_dict

ONE = GaussianRelease(4.4, Full())
DRAWN = GaussianRelease(3.3, Poisson(0.5))


def rows(count: int, *, instance: str = "a", release: GaussianRelease = ONE) -> list[Event]:
    return [GroupRelease(release, instance, row, 10) for row in range(count)]


@pytest.mark.parametrize("release", [ONE, DRAWN])
@pytest.mark.parametrize("count", [1, 10, 11, 100])
def test_a_client_pays_for_the_turns_of_the_busiest_group(
    count: int, release: GaussianRelease
) -> None:
    turns = CyclicGroups(10).participations(count)
    spent = epsilon(rows(count, release=release), delta=1e-5)
    assert spent == epsilon({release: turns}, delta=1e-5)


def test_a_group_that_missed_or_repeated_its_turn() -> None:
    """Rows that showed nothing are not in the ledger; those that are count for their group."""
    paid = [event for event in rows(30) if event.row != 20]  # type: ignore[union-attr]
    assert epsilon(paid, delta=1e-5) == epsilon({ONE: 3}, delta=1e-5)
    assert epsilon(paid[:20], delta=1e-5) == epsilon({ONE: 2}, delta=1e-5)
    assert epsilon([*paid[:20], paid[0]], delta=1e-5) == epsilon({ONE: 3}, delta=1e-5)


def test_instances_add_up_for_groups_are_others_in_each() -> None:
    both = [*rows(12), *rows(5, instance="b")]
    assert epsilon(both, delta=1e-5) == epsilon({ONE: 3}, delta=1e-5)
    beside = [*both, GaussianRelease(9.0, Full())]
    assert epsilon(beside, delta=1e-5) > epsilon({ONE: 3}, delta=1e-5)


def test_charges_for_presence_are_their_groups() -> None:
    charge = AdditiveDelta(1e-7)
    events = [*rows(20), *(GroupRelease(charge, "a", row, 10) for row in range(20))]
    assert epsilon(events, delta=1e-5) == epsilon({ONE: 2, charge: 2}, delta=1e-5)
    assert against_server(events[-1]) == events[-1]
    assert without_amplification(events[-1]) == events[-1]


def test_who_sees_or_knows_more() -> None:
    event = GroupRelease(DRAWN, "a", 3, 10)
    known = without_amplification(event)
    assert known == GroupRelease(GaussianRelease(3.3, Full()), "a", 3, 10)
    assert against_server(event) == GaussianRelease(0.0, Full())
    assert against(event, Observer.OUTSIDE) == event
    assert without_amplification(rows(1)[0]) == rows(1)[0]
    same = attack_success({ONE: 2}, delta=1e-5, false_alarm_rate=0.1)
    assert attack_success(rows(11), delta=1e-5, false_alarm_rate=0.1) == same


def test_it_is_kept_in_a_ledger(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "ledger", population="p") as ledger:
        for number, event in enumerate(rows(12)):
            ledger.append(event, run="r", round=number + 1)
    contents = read_ledger(tmp_path / "ledger")
    assert list(contents.events) == rows(12)
    assert contents.epsilon(1e-5) == epsilon({ONE: 2}, delta=1e-5)
    for event in (rows(1)[0], GroupRelease(AdditiveDelta(1e-9), "b", 7, 3)):
        assert event_from_dict(event_to_dict(event)) == event


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(TypeError, match="release"):
        GroupRelease(GroupRelease(ONE, "a", 0, 2), "a", 0, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups"):
        CyclicGroups(0)
    with pytest.raises(ValueError, match="rate"):
        CyclicGroups(2, 0.0)
    assert CyclicGroups(4).within == Full()
    assert CyclicGroups(4, 0.5).within == Poisson(0.5)
    with pytest.raises(ValueError, match="Poisson cohort"):
        epsilon(rows(1, release=DRAWN), delta=1e-5, adjacency=Adjacency.REPLACE_ONE)
