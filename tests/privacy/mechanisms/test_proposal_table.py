"""Proposals: the table pays every cell its weight, and doubles decide as exact numbers do."""

import math
from dataclasses import replace
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.mechanisms import (
    SeededRandomness,
    _rejection_sampling,
    add_discrete_gaussian,
    add_rounded_gaussian,
)
from privacy.mechanisms._exact_arithmetic import (
    KnownPlace,
    LazyUniform,
    Settled,
    exp_bounds,
    leading_zeros,
    lies_under,
    nearest,
    weight_bounds,
)
from privacy.mechanisms._proposal_table import CODES, REAL, TAIL_BLOCK, Grid, table_for
from privacy.mechanisms._rejection_sampling import Sampler

FALSE_ALARM = 1e-6

POINTS = [Grid(Fraction(1, 2), 0), Grid(Fraction(6), 0), Grid(2 * Fraction(300.7), 0)]
GRIDS = [REAL, *POINTS, Grid(Fraction(32_766), 0), Grid(Fraction(8192), 1), Grid(Fraction(9e3), 19)]


def weight(grid, x):
    """exp(−x²/step), to 60 digits."""
    return mpmath.exp(-(mpmath.mpf(x) ** 2) * grid.step.denominator / grid.step.numerator)


@pytest.mark.parametrize("grid", GRIDS)
@mpmath.workdps(60)
def test_every_cell_gets_its_weight(grid):
    """What takes a cell is never too much, and what questions it leaves room for the rest."""
    table, scale = table_for(grid), mpmath.mpf(table_for(grid).scale.numerator)
    scale /= table_for(grid).scale.denominator
    points = grid.place_bits == 0
    assert table.taken == table.paid.sum() <= CODES
    assert table.selectors.sum() == CODES
    codes = [0, *np.cumsum(table.paid[: table.tail]).tolist()]
    selectors = [0, *np.cumsum(table.selectors).tolist()]
    mirrored: dict[int, list[int]] = {}
    for e in range(table.tail):
        n, k = int(table.inner[e]), int(table.paid[e])
        envelope = mpmath.mpf(int(table.selectors[e])) * (CODES - table.taken) / CODES
        assert table.envelope(e) == Fraction(int(table.selectors[e]) * (CODES - table.taken), CODES)
        assert k <= scale * weight(grid, n if points else n + 1)
        assert scale * weight(grid, n) - k <= envelope
        # Taken and questioned, each by as many values as that.
        assert (table.by_code[codes[e] : codes[e + 1]] == table.cells[e]).all()
        assert (table.by_selector[selectors[e] : selectors[e + 1]] == e).all()
        mirrored.setdefault(n, []).append(int(table.sign[e]))
    assert all(sorted(signs) == [-1, 1] for n, signs in mirrored.items() if n or not points)
    assert sorted(mirrored) == list(range(table.beyond))
    assert not points or mirrored[0] == [1]
    tail = mpmath.mpf(int(table.selectors[table.tail])) * (CODES - table.taken) / CODES
    for block in range(50):
        share = tail / 2 / TAIL_BLOCK / 2 ** (block + 1)
        assert scale * weight(grid, table.beyond + TAIL_BLOCK * block) <= share
    # From there on at most half as much remains with each block, for good.
    steepest = (2 * TAIL_BLOCK * table.beyond + TAIL_BLOCK**2) / mpmath.mpf(float(grid.step))
    assert mpmath.exp(-steepest) <= 0.5


def replayed(count, seed, grid, excess=None):
    """The draws of a seed's bits, by exact numbers alone: (j, T's bits as the words have them)."""
    source, more = SeededRandomness(seed), SeededRandomness(seed + 1)
    size = count + (count // 64 + 16 if excess is None else excess)
    while True:
        accepted = accepted_of(size, source, more, grid)
        behind = [i for i in accepted if i >= count]
        holes = [i for i in range(count) if i not in accepted]
        if len(behind) >= len(holes):
            filled = accepted | {i: accepted[j] for i, j in zip(holes, behind, strict=False)}
            return [filled[i] for i in range(count)]


def accepted_of(size, source, more, grid):
    """The proposals that are accepted, by their number."""
    table = table_for(grid)
    raw = source.bytes(10 * size)
    words = [int(word) for word in np.frombuffer(raw, np.uint64, size)]
    codes = np.frombuffer(raw, np.uint16, size, 8 * size)
    asked = np.flatnonzero(codes >= table.taken).tolist()
    questioned = {i: at for at, i in enumerate(asked)}
    raw = source.bytes(6 * len(questioned))
    bits, selectors = raw[: 4 * len(questioned)], raw[4 * len(questioned) :]
    accepted = {}
    ends = np.cumsum(table.paid[: table.tail])
    for i in range(size):
        number = int(np.searchsorted(ends, codes[i], side="right"))
        if number == table.tail:
            at = questioned[i]
            selector = int.from_bytes(selectors[2 * at : 2 * at + 2], "little")
            number = int(table.by_selector[selector])
            if number > table.tail:
                continue
            assert number != table.tail  # once in 2²²
            unit = int.from_bytes(bits[4 * at : 4 * at + 4], "little")
            if not lies_under(
                LazyUniform(unit, 32, more),
                table.envelope(number),
                int(table.inner[number]),
                place_of(words[i], int(table.sign[number]), grid, more),
                step=grid.step,
                scale=table.scale,
                paid=int(table.paid[number]),
            ):
                continue
        sign, inner = int(table.sign[number]), int(table.inner[number])
        mirrored = -inner if grid.place_bits == 0 else -inner - 1
        accepted[i] = (inner if sign > 0 else mirrored, words[i])
    return accepted


def place_of(word, sign, grid, more):
    if grid.place_bits is None:
        word ^= 1 << 63
        return LazyUniform(word if sign > 0 else (1 << 64) - 1 - word, 64, more)
    place = Fraction(word >> (64 - grid.place_bits), 1 << grid.place_bits)
    return KnownPlace(1 - place if sign < 0 and grid.place_bits else place)


@pytest.mark.parametrize("grid", GRIDS)
def test_doubles_decide_as_exact_numbers(grid):
    draws = Sampler(SeededRandomness(16), grid).draw(10_000)
    assert pairs(draws, grid) == replayed(10_000, 16, grid)


def pairs(draws, grid):
    cells = draws.cells.astype(np.float64)
    if grid is REAL:
        cells = (cells * 2.0**-63 - 1) / 2
    return list(zip(cells.astype(int).tolist(), draws.words.tolist(), strict=True))


@pytest.mark.parametrize("grid", [REAL, GRIDS[-1]])
def test_where_the_excess_runs_out_all_is_drawn_anew(grid, monkeypatch):
    """With one proposal in excess for 300 draws, of which two in three chunks miss one or more."""
    monkeypatch.setattr(_rejection_sampling, "_proposals", lambda count: count + 1)
    for seed in range(40, 60):
        draws = Sampler(SeededRandomness(seed), grid).draw(300)
        assert not draws.settled
        assert pairs(draws, grid) == replayed(300, seed, grid, excess=1)


@pytest.mark.parametrize("grid", [REAL, GRIDS[-1], POINTS[-1]])
def test_near_a_threshold_doubles_leave_the_decision_to_exact_numbers(grid, monkeypatch):
    """V's 32 bits up to three units beside the threshold, in cells near zero and far out."""
    table, draw, beside = table_for(grid), np.random.default_rng(25), range(-3, 4)
    numbers = np.repeat(draw.integers(0, table.tail, 150), len(beside))
    words = draw.integers(0, 1 << 64, 150, np.uint64)
    words[::2] |= np.uint64(0xFFC << 52)  # of a lattice, places at a cell's end
    words = np.repeat(words, len(beside))
    bounds = [
        thresholds(table, number, place_of(word, int(table.sign[number]), grid, None))
        for number, word in zip(numbers.tolist(), words.tolist(), strict=True)
    ]
    units = [
        min(max(0, math.floor(low) + beside[i % len(beside)]), (1 << 32) - 1)
        for i, (low, _) in enumerate(bounds)
    ]
    selectors = [int(np.flatnonzero(table.by_selector == number)[0]) for number in numbers]
    asked = np.array(units, np.uint32).tobytes() + np.array(selectors, np.uint16).tobytes()

    class Given(SeededRandomness):
        def bytes(self, count):
            return asked if count == len(asked) else super().bytes(count)

    sampler, exactly = Sampler(Given(0), grid), set()
    decide = sampler._decide
    monkeypatch.setattr(sampler, "_decide", lambda *bits: exactly.add(bits) or decide(*bits))
    cells = np.empty(len(numbers), table.cells.dtype)
    refused, _ = sampler._question(np.arange(len(numbers)), cells, words.copy())
    straddle = 0
    for i, (unit, (low, high)) in enumerate(zip(units, bounds, strict=True)):
        if unit + 1 <= low or unit >= high:
            assert (i in refused) == (unit >= high)
        else:  # V's further bits say
            straddle += 1
            assert (int(numbers[i]), unit, int(words[i])) in exactly
    assert straddle > 50


def thresholds(table, number, place):
    """Bounds on 2³² times the V below which a questioned proposal is accepted."""
    weights = (
        Fraction(
            exp_bounds((int(table.inner[number]) + end) ** 2 / table.grid.step, 200)[k], 1 << 200
        )
        for k, end in enumerate((place.high, place.low))
    )
    paid, envelope = int(table.paid[number]), table.envelope(number)
    return [2**32 * (table.scale * weight - paid) / envelope for weight in weights]


@pytest.mark.parametrize(
    "draw",
    [
        lambda out: add_rounded_gaussian(out, sigma=9.0, randomness=SeededRandomness(26)),
        lambda out: add_discrete_gaussian(out, variance=7, randomness=SeededRandomness(26)),
        lambda out: add_discrete_gaussian(out, variance=1e9, randomness=SeededRandomness(26)),
    ],
    ids=["rounded", "points", "lattice"],
)
def test_draws_keep_their_places_where_all_questions_are_settled_exactly(draw, monkeypatch):
    expected, out = np.zeros((2, 60_000), dtype=np.int64)
    draw(expected)

    def blind(grid):
        table = table_for(grid)
        return replace(table, slack=np.where(table.above < -1, 0.0, 4.0))

    monkeypatch.setattr(_rejection_sampling, "table_for", blind)
    draw(out)
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("grid", [REAL, POINTS[-1], GRIDS[-1]])
def test_what_doubles_leave_open_is_decided_by_the_same_bits(grid):
    """As if doubles could tell nothing: every question goes the exact way, and the draws stay."""
    expected = Sampler(SeededRandomness(16), grid).draw(10_000)
    sampler = Sampler(SeededRandomness(16), grid)
    blind = np.where(sampler.table.above < -1, 0.0, 4.0)
    sampler.table = replace(sampler.table, slack=blind)
    draws = sampler.draw(10_000)
    assert len(draws.settled) > 10
    assert np.array_equal(draws.cells, expected.cells)
    assert np.array_equal(draws.words, expected.words)


@pytest.mark.parametrize("number", [0, 100, 222, 300, 385 + 7, 385 + 200])
@mpmath.workdps(30)
def test_without_a_known_bit_a_question_has_its_probability(number):
    table, more, count = table_for(), SeededRandomness(18), 1_000
    n, k, envelope = (int(table.inner[number]), int(table.paid[number]), table.envelope(number))
    yes = sum(
        lies_under(
            LazyUniform(0, 0, more),
            envelope,
            n,
            LazyUniform(0, 0, more),
            step=REAL.step,
            scale=table.scale,
            paid=k,
        )
        for _ in range(count)
    )
    mean = mpmath.quad(lambda t: weight(REAL, n + t), [0, 1]) * float(table.scale)
    probability = float((mean - k) / float(envelope))
    assert 0 < probability < 1
    assert stats.binomtest(yes, count, probability).pvalue > FALSE_ALARM


def test_without_a_known_bit_roundings_have_their_probabilities():
    more, width, offset = SeededRandomness(24), Fraction(7, 5), Fraction(1, 3)
    values = [nearest(Settled(-1, 2, LazyUniform(0, 0, more)), width, offset) for _ in range(3_000)]
    # −1.4·(2 + T) + 1/3 is uniform from −3.8667 to −2.4667.
    shares = {k: length / 1.4 for k, length in {-4: 11 / 30, -3: 1.0, -2: 1 / 30}.items()}
    counts = [values.count(k) for k in shares]
    assert sum(counts) == len(values)
    expected = np.array(list(shares.values())) * len(values)
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("grid", [REAL, GRIDS[-1], POINTS[-1]])
def test_no_tail_is_cut(grid):
    """Beyond the table draws fall off as the normal law does there, on both sides."""
    sampler = Sampler(SeededRandomness(19), grid)
    table, source = sampler.table, SeededRandomness(20)
    # Only such V as can be accepted, or nearly all of them would not be.
    most = 4 * TAIL_BLOCK * table.scale * Fraction(float(weight(grid, table.beyond)))
    shift = int(-np.log2(float(most / table.envelope(table.tail))))
    assert shift >= 0
    accept = (np.frombuffer(source.bytes(4 * 1_500), np.uint32) >> shift).tolist()
    words = source.uint64(len(accept)).tolist()
    settled = [
        draw
        for bits, word in zip(accept, words, strict=True)
        if (draw := sampler._decide(table.tail, bits, word)) is not None
    ]
    assert len(settled) > 60
    signs = sum(draw.sign for draw in settled)
    assert abs(signs) < 5 * len(settled) ** 0.5
    for bit in range(4):  # a side says nothing of the cell
        both = sum(draw.sign * (1 - 2 * (draw.cell - table.beyond >> bit & 1)) for draw in settled)
        ones = sum(1 - 2 * (draw.cell - table.beyond >> bit & 1) for draw in settled)
        assert abs(both) < 5 * len(settled) ** 0.5 or abs(ones) > len(settled) / 2
    width = float(2 / grid.step) ** 0.5
    inner = np.array([draw.cell for draw in settled])
    assert inner.min() == table.beyond
    if grid.place_bits == 0:
        weights = np.exp(-(np.arange(table.beyond, 2 * table.beyond) ** 2) / float(grid.step))
        edges = [0, 1, 2, 4, 8, len(weights)]
    else:
        ends = np.arange(table.beyond, 2 * table.beyond + 1) * width
        weights = -np.diff(stats.norm.sf(ends))
        edges = [0, 1, 2, 4, 8, 16, 32, len(weights)]
    share = np.add.reduceat(weights, edges[:-1]) / weights.sum()
    counts = np.histogram(inner - table.beyond, edges)[0]
    assert stats.chisquare(counts, share * len(inner)).pvalue > FALSE_ALARM


def test_a_draw_beyond_the_table_takes_the_place_that_it_fills():
    """Three of 40 are rejected, and all in excess lie beyond six standard deviations."""
    table, count, holes = table_for(), 40, [3, 17, 39]
    nothing, tail = (int(np.flatnonzero(table.by_selector == table.tail + k)[0]) for k in (1, 0))

    class Given(SeededRandomness):
        def fill(self, out):
            out[:] = np.frombuffer(super().bytes(len(out)), np.uint8)
            codes = out[len(out) // 10 * 8 :].view(np.uint16)
            codes[:count], codes[count:] = 0, CODES - 1
            codes[holes] = CODES - 1

        def bytes(self, count):
            if count < 16:
                return super().bytes(count)
            asked = count // 6
            selectors = [nothing] * len(holes) + [tail] * (asked - len(holes))
            return bytes(4 * asked) + np.array(selectors, np.uint16).tobytes()

    out = np.zeros(count, dtype=np.int64)
    add_rounded_gaussian(out, sigma=100.0, randomness=Given(27))
    assert np.flatnonzero(np.abs(out) > 590).tolist() == holes


def test_coins_show_zeros_as_often_as_they_must():
    source = SeededRandomness(21)
    zeros = np.array([leading_zeros(source) for _ in range(20_000)])
    counts = np.bincount(np.minimum(zeros, 9), minlength=10)
    expected = 2.0 ** -np.array([*range(1, 10), 9]) * len(zeros)
    assert zeros.max() > 9
    assert stats.chisquare(counts, expected).pvalue > FALSE_ALARM


@settings(deadline=None)
@given(x=st.fractions(0, 20, max_denominator=10**6), precision=st.integers(8, 200))
def test_exponential_bounds_enclose(x, precision):
    low, high = exp_bounds(x, precision)
    with mpmath.workprec(precision + 60):
        exact = mpmath.exp(-mpmath.mpf(x.numerator) / x.denominator) * 2**precision
    assert low <= exact <= high
    assert high - low <= 64


@pytest.mark.parametrize("step", [Fraction(1, 2), Fraction(17, 3), Fraction(300.7), Fraction(8192)])
@pytest.mark.parametrize("precision", [64, 128])
def test_weight_bounds_enclose(precision, step):
    lows, highs = weight_bounds(step, 800, precision)
    with mpmath.workprec(precision + 3000):
        exact_step = mpmath.mpf(step.numerator) / step.denominator
        for n in range(0, 800, 7):
            exact = mpmath.exp(-mpmath.mpf(n * n) / exact_step) * 2**precision
            assert lows[n] <= exact <= highs[n]
            assert highs[n] - lows[n] <= 2
