"""Sources of randomness, and the draws that decide who is in a cohort."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms import (
    KeyedRandomness,
    Randomness,
    SeededRandomness,
    SystemRandomness,
)

FALSE_ALARM = 1e-6


class Scripted(Randomness):
    """Gives out the 64-bit words it was made with."""

    private = False

    def __init__(self, *words):
        self._words = list(words)

    def bytes(self, count):
        words = [self._words.pop(0) for _ in range(count // 8)]
        return np.array(words, dtype=np.uint64).tobytes()


def test_only_the_system_is_private():
    assert SystemRandomness().private
    assert not SeededRandomness(0).private


@pytest.mark.parametrize("source", [SystemRandomness(), SeededRandomness(3)])
def test_bits_are_balanced_and_fresh(source):
    count = 100_000
    words = source.uint64(count)
    bits = int(np.unpackbits(words.view(np.uint8)).sum())
    # For the system's source: a false alarm once in 10⁹ runs.
    limit = -stats.norm.ppf(1e-9 / 2)
    assert abs(bits - 32 * count) < limit * np.sqrt(16 * count)
    assert len(np.unique(words)) == count
    uniform = source.uniform(count)
    assert stats.kstest(uniform, "uniform").pvalue > 1e-9
    assert uniform.min() >= 0
    assert uniform.max() < 1


@pytest.mark.parametrize("count", [1, 2047, 2048, 1 << 20])
def test_every_draw_is_keyed_by_the_operating_system_alone(count, monkeypatch):
    asked = []

    def urandom(size, real=os.urandom):
        asked.append(real(size))
        return asked[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    source = SystemRandomness()
    drawn = [source.bytes(count), source.bytes(count)]
    assert [len(each) for each in drawn] == [count, count]
    assert [len(each) for each in asked] == [32 if count >= 2048 else count] * 2
    if count > 1:
        assert asked[0] != asked[1]
        assert drawn[0] != drawn[1]
    # The same key gives the same draw: nothing else went into it, no state was kept.
    monkeypatch.setattr(os, "urandom", lambda size: asked[0])
    assert SystemRandomness().bytes(count) == source.bytes(count) == drawn[0]
    room = np.zeros(count, dtype=np.uint8)
    source.fill(room)
    assert room.tobytes() == drawn[0]


@pytest.mark.parametrize("make", [lambda: SeededRandomness(3), lambda: KeyedRandomness(bytes(32))])
def test_bytes_written_to_an_array_are_those_that_would_be_returned(make):
    source, other = make(), make()
    for count in (0, 5, 1 << 16, 150_001):
        room = np.zeros(count, dtype=np.uint8)
        source.fill(room)
        assert room.tobytes() == other.bytes(count)


@pytest.mark.parametrize(
    "source", [SystemRandomness(), SeededRandomness(3), KeyedRandomness(bytes(32))]
)
@pytest.mark.parametrize(
    "out",
    [np.zeros((50, 70), np.uint8), np.zeros(4096, np.uint64), np.zeros(9000, np.uint8)[::2]],
    ids=["two rows", "other numbers", "gaps"],
)
def test_only_bytes_in_a_row_are_written_to(source, out):
    with pytest.raises(ValueError, match="contiguous uint8"):
        source.fill(out)
    assert not out.any()


def test_the_cipher_is_aes_256_in_counter_mode(monkeypatch):
    monkeypatch.setattr(os, "urandom", bytes)
    drawn = SystemRandomness().bytes(4096)
    # AES-256 of the zero block under the zero key; every block has its own counter.
    assert drawn[:16].hex() == "dc95c078a2408989ad48a21492842087"
    assert len({drawn[i : i + 16] for i in range(0, 4096, 16)}) == 256


@pytest.mark.parametrize("rate", [0.0354715, 0.5, 0.999, 2.0**-12])
def test_bernoulli_frequencies(rate):
    count = 4_000_000
    hits = int(SeededRandomness(4).bernoulli(rate, count).sum())
    assert stats.binomtest(hits, count, rate).pvalue > FALSE_ALARM


@given(st.floats(0, 1))
def test_bernoulli_is_decided_by_the_bits_of_the_rate_itself(rate):
    # Below the first 64 bits of the rate: in. Above: out. Equal: what follows decides.
    scaled = int(rate * 2**64) if rate < 1 else 2**64
    if scaled > 0:
        assert Scripted(scaled - 1).bernoulli(rate, 1)[0]
    if 0 <= scaled < 2**64 - 1 and rate < 1:
        assert not Scripted(scaled + 1).bernoulli(rate, 1)[0]


def test_bernoulli_below_64_bits():
    # 3·2⁻⁶⁶ is 0 in its first 64 bits and 3/4 in what follows.
    rate = 3 * 2.0**-66
    assert Scripted(0, 2**63).bernoulli(rate, 1)[0]
    assert Scripted(0, 2**63 + 2**62 - 1).bernoulli(rate, 1)[0]
    assert not Scripted(0, 2**63 + 2**62, 1).bernoulli(rate, 1)[0]
    assert not Scripted(1).bernoulli(rate, 1)[0]


def test_bernoulli_at_the_ends_and_beyond():
    randomness = SeededRandomness(5)
    assert not randomness.bernoulli(0.0, 1000).any()
    assert randomness.bernoulli(1.0, 1000).all()
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="rate is"):
            randomness.bernoulli(rate, 1)


def test_a_seed_determines_its_stream():
    assert SeededRandomness(7).bytes(100) == SeededRandomness(7).bytes(100)
    assert SeededRandomness(7).bytes(100) != SeededRandomness(8).bytes(100)
    source = SeededRandomness(7)
    assert source.bytes(100) != source.bytes(100)
    with pytest.raises(ValueError, match="seed is -1"):
        SeededRandomness(-1)
