"""A short soak: clients fail at random, all rounds are played, and ε is that of the rounds."""

from pathlib import Path

import pytest

from benchmarks.soak import apps
from benchmarks.soak import measure as soak


@pytest.mark.parametrize("turns", [False, True])
def test_a_short_soak_ends_with_the_rounds_epsilon(turns: bool, tmp_path: Path) -> None:
    """Nobody failed so badly that a round was lost; dp-accounting agrees on what they cost."""
    rounds = 6
    way = soak.in_turns if turns else soak.in_process
    figures = way(rounds, tmp_path)  # raises if the ledger says otherwise
    assert figures["rounds"] == rounds
    assert figures["epsilon"] <= apps.EPSILON
    peer = soak.peers_epsilon(figures["noise_multiplier"], rounds, turns=turns)
    assert figures["epsilon"] == pytest.approx(peer, rel=1e-2)
    assert len(figures["megabytes"]) == rounds + 1
    # A fifth of the clients failed: 0.8 ± 0.04 of the whole way. A false alarm: below 1e-6.
    assert 0 < figures["moved"] < soak.ideal(rounds)
