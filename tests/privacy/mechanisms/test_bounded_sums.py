"""No client moves a sum by more than the clipping norm, whatever it sends."""

import math
import sys
import tracemalloc
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from privacy.mechanisms import (
    ClippingGeometry,
    ContinuousGaussian,
    LatticeGaussian,
    SystemRandomness,
)
from privacy.mechanisms import _blockwise_updates as _blocks
from privacy.mechanisms.errors import UpdateError

RADIUS = 1 << 20
DTYPES = [np.float16, np.float32, np.float64]
NORMS = st.one_of(st.floats(1e-12, 1e12), st.floats(1e-30, 1e30))


def flat(norm: float, arrays: int = 1) -> ClippingGeometry:
    return ClippingGeometry((norm,), (0,) * arrays)


def open_sum(
    mechanism: Any,
    reference: list[Any],
    geometry: ClippingGeometry,
    z: float = 0.0,
    *,
    compiled: bool = False,
) -> Any:
    """A sum in numpy, or one by kernels."""
    total = mechanism.open(reference, geometry, noise_multiplier=z, randomness=SystemRandomness())
    total._blocks.loaded = _blocks.load_kernels() if compiled else None
    assert compiled == (total._blocks.loaded is not None)
    return total


def exact_square(arrays: list[Any]) -> Fraction:
    return sum((Fraction(float(x)) ** 2 for a in arrays for x in np.ravel(a)), Fraction(0))


def cells(total: Any) -> list[int]:
    """The lattice sum as Python integers, without noise."""
    spilled = 0 if total._spilled is None else total._spilled
    return [int(x) for x in total._sum + spilled]


def nasty(dtype: Any) -> st.SearchStrategy[Any]:
    """NaN, infinities, subnormals, the largest numbers, sparse and dense, and ordinary ones."""
    info = np.finfo(dtype)
    bits = 8 * np.dtype(dtype).itemsize
    special = [0.0, -0.0, float(info.max), -float(info.max), float(info.tiny), math.inf, math.nan]
    special += [float(info.smallest_subnormal), float(info.max) / 2, math.sqrt(float(info.max))]
    element = st.one_of(
        st.floats(width=bits),  # type: ignore[arg-type]
        st.sampled_from([float(dtype(x)) for x in special]),
        st.floats(-10, 10, width=bits),  # type: ignore[arg-type]
    )
    size = st.integers(0, 600)
    return size.flatmap(lambda n: hnp.arrays(dtype, n, elements=element, fill=element))


@st.composite
def updates(draw: st.DrawFn) -> tuple[list[Any], list[Any]]:
    """A model and a reply of several arrays of several dtypes."""
    reference, reply = [], []
    for _ in range(draw(st.integers(1, 4))):
        array = draw(st.sampled_from(DTYPES).flatmap(nasty))
        finite = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=-1.0)
        reference.append(draw(st.sampled_from([np.zeros_like(array), finite])))
        reply.append(array)
    return reference, reply


@settings(max_examples=300, deadline=None)
@given(updates(), NORMS, st.floats(1e-6, 1.0), st.booleans())
def test_influence_on_the_lattice_is_at_most_the_norm(
    update: tuple[list[Any], list[Any]], norm: float, weight: float, compiled: bool
) -> None:
    """In exact integers: the squares of the cells sum to at most R², whatever was sent."""
    reference, reply = update
    total = open_sum(LatticeGaussian(), reference, flat(norm, len(reference)), compiled=compiled)
    honest = [np.asarray(r + r.dtype.type(0.5)) for r in reference]
    try:
        total.add(honest, weight=1.0)
    except UpdateError:  # 0.5 more than the largest number is infinite
        honest = reference
    before = cells(total)
    try:
        total.add(reply, weight=weight)
    except UpdateError:
        assert cells(total) == before
        return
    moved = [after - b for after, b in zip(cells(total), before, strict=True)]
    assert sum(x * x for x in moved) <= RADIUS**2
    assert sum(x * x for x in moved) <= (weight * RADIUS) ** 2 * (1 + 2.0**-40)


@settings(max_examples=200, deadline=None)
@given(updates(), NORMS, st.floats(1e-6, 1.0), st.booleans())
def test_influence_on_the_continuous_sum_is_at_most_the_norm(
    update: tuple[list[Any], list[Any]], norm: float, weight: float, compiled: bool
) -> None:
    """In exact rationals."""
    reference, reply = update
    total = open_sum(ContinuousGaussian(), reference, flat(norm, len(reference)), compiled=compiled)
    try:
        total.add(reply, weight=weight)
    except UpdateError:
        assert not total._sum.any()
        return
    assert exact_square([total._sum]) <= Fraction(norm) ** 2


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_a_factor_too_small_for_single_precision_keeps_to_the_norm(mechanism: Any) -> None:
    """The smallest norm and huge updates: the factor that clips is subnormal in float32."""
    norm = 1e-30
    for value in np.geomspace(1e8, 1e18, 200, dtype=np.float32):
        total = open_sum(mechanism, [np.zeros(3, np.float32)], flat(norm))
        total.add([np.array([value, -value, value], np.float32)], weight=1.0)
        (moved,) = total.release()
        square = exact_square([moved])
        assert square <= Fraction(norm) ** 2
        assert square >= Fraction(norm) ** 2 / 2


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(DTYPES).flatmap(nasty), st.sampled_from([0, 1, -3]), st.booleans())
def test_the_computed_norm_is_never_below_the_exact_one(
    block: Any, model: int, compiled: bool
) -> None:
    reference = np.full_like(block, model)
    blocks = _blocks.Blocks([reference], (0,))
    blocks.loaded = _blocks.load_kernels() if compiled else None
    with blocks.update([block]):
        assert (blocks.kernels is not None) == (compiled and block.dtype == np.float32)
        (computed,) = blocks.measure()
    if math.isfinite(computed):
        exact = exact_square([np.subtract(block, reference, dtype=blocks.dtype)])
        assert Fraction(computed) >= exact
        assert Fraction(computed) <= exact * (1 + Fraction(1, 2**14)) + Fraction(1, 2**110)
    else:
        assert not np.isfinite(block).all() or np.abs(block).max() > 1e18


def test_a_length_that_single_precision_does_not_hold_is_infinite() -> None:
    """However it was summed: of each row the square is finite, and of all of them it is not."""
    block = np.full(1024, 1e18, np.float32)
    for kernels in (None, _blocks.load_kernels()):
        blocks = _blocks.Blocks([np.zeros_like(block)], (0,))
        blocks.loaded = kernels
        with blocks.update([block[:]]):
            assert blocks.measure() == [math.inf]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 255, 256, 257, 65_536, 65_537, 700_000])
def test_the_norm_is_bounded_and_tight_at_every_size(dtype: Any, size: int) -> None:
    """Both paths, one thread and several; a clipped update keeps its length but for 2⁻¹⁴."""
    rng = np.random.default_rng(size)
    array = (rng.standard_normal(size) * 3).astype(dtype)
    total = open_sum(LatticeGaussian(), [np.zeros(size, dtype)], flat(0.01))
    assert total.add([array], weight=1.0)
    moved = total._sum.astype(object if size < 300 else np.float64)
    length = math.sqrt(float((moved * moved).sum()))
    lost = math.sqrt(size)  # each coordinate is rounded toward zero by less than a cell
    assert RADIUS * (1 - 2.0**-14) - lost <= length <= RADIUS


def test_rounding_is_toward_zero() -> None:
    norm = float(RADIUS)  # a cell is 1
    total = open_sum(LatticeGaussian(), [np.zeros(6, np.float64)], flat(norm))
    total.add([np.array([0.99, -0.99, 1.5, -1.5, 7.0001, -7.0001])], weight=1.0)
    assert cells(total) == [0, 0, 1, -1, 7, -7]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_lying_norm_is_caught_in_exact_integers(
    compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the bound in floating point wrong, the exact check would keep the update out."""
    size = 600_000
    reference = [np.zeros(size, np.float32)]
    total = open_sum(LatticeGaussian(), reference, flat(1.0), compiled=compiled)
    total.add([np.full(size, 0.5, np.float32)], weight=0.5)
    before = cells(total)

    monkeypatch.setattr(total, "_factors", lambda squares, weight: ([1.0], False))
    for huge in (1.0, 1e18):  # 1e18 overflows the cells themselves
        with pytest.raises(UpdateError, match="outside"):
            total.add([np.full(size, huge, np.float32)], weight=1.0)
        assert cells(total) == before


@settings(max_examples=200, deadline=None)
@given(updates(), st.data(), st.booleans())
def test_no_scale_whatever_it_is_adds_more_than_the_norm(
    update: tuple[list[Any], list[Any]], data: st.DataObject, compiled: bool
) -> None:
    """What is added decides, and not what was computed before of how long it would be."""
    reference, reply = update
    groups = tuple(data.draw(st.integers(0, 1)) for _ in reference)
    geometry = ClippingGeometry((1.0, 2.0), groups)
    total = open_sum(LatticeGaussian(), reference, geometry, compiled=compiled)
    before = cells(total)
    with total._blocks.update(reply):
        length = math.sqrt(float(sum(np.nan_to_num(total._blocks.measure(), posinf=1e30))))
        about_the_radius = st.floats(1 - 1e-4, 1 + 1e-4).map(lambda x: x * RADIUS / (length or 1.0))
        scale = st.one_of(st.floats(), about_the_radius)
        try:
            total._round_and_add([data.draw(scale), data.draw(scale)])
        except UpdateError:
            assert cells(total) == before
            return
    assert sum(x * x for x in cells(total)) <= RADIUS**2


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-(2**16), 2**16), max_size=1500),
    st.integers(-3, 3),
    st.sampled_from([np.float32, np.float64]),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_the_boundary_is_exact_to_one_cell(
    some: list[int], excess: int, dtype: Any, order: Any, compiled: bool
) -> None:
    """Cells whose squares sum to R² and a little less or more: far within rounding's reach."""
    left = RADIUS**2 + excess
    update = []
    for cell in some:
        if cell * cell <= left:
            update.append(cell)
            left -= cell * cell
    while left:
        update.append(math.isqrt(left))
        left -= math.isqrt(left) ** 2
    order.shuffle(update)
    reference = [np.zeros(len(update), dtype)]
    total = open_sum(LatticeGaussian(), reference, flat(1.0), compiled=compiled)
    with total._blocks.update([np.array(update, dtype)]):
        if excess > 0:
            with pytest.raises(UpdateError, match="outside"):
                total._round_and_add([1.0])
            assert not total._sum.any()
        else:
            total._round_and_add([1.0])
            assert cells(total) == update


@pytest.mark.parametrize("size", [10, 1000, 700_000])
def test_an_ordinary_update_leaves_no_doubt(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of its length decides, so that exact integers are not waited for.

    A step to measure it and one to add it; one for both where none was clipped before, whose
    blocks are taken back in a third where that one has to be.
    """
    total = open_sum(LatticeGaussian(), [np.zeros(size, np.float32)], flat(1.0))
    steps: list[Any] = []
    once = total._blocks.step
    monkeypatch.setattr(total._blocks, "step", lambda work: (steps.append(work), once(work)))
    rng = np.random.default_rng(size)
    expected = {"clipped": 2, "not clipped": 2, "again": 1, "clipped again": 3, "and again": 2}
    for scale, count in zip((1.0, 1e-6, 1e-6, 1e6, 1.0), expected.values(), strict=True):
        steps.clear()
        total.add([scale * rng.standard_normal(size, dtype=np.float32)], weight=1.0)
        assert len(steps) == count


@st.composite
def singles(draw: st.DrawFn) -> tuple[list[Any], list[Any], float]:
    """A model and a reply in single precision, and a norm: nasty, or ordinary and near the norm."""
    if draw(st.booleans()):
        reference, reply = draw(updates())
        with np.errstate(over="ignore"):
            reference, reply = ([a.astype(np.float32) for a in each] for each in (reference, reply))
        return [np.nan_to_num(a, posinf=1, neginf=1) for a in reference], reply, draw(NORMS)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes = draw(st.lists(st.integers(0, 600), min_size=1, max_size=4))
    reference = [rng.standard_normal(n, dtype=np.float32) for n in sizes]
    reply = [r + rng.standard_normal(r.size, dtype=np.float32) for r in reference]
    return reference, reply, draw(st.floats(0.5, 2)) * (sum(sizes) or 1) ** 0.5


def outcome_of(total: Any, reply: list[Any], weight: float) -> tuple[bytes, bool | str]:
    """What a sum holds then, and whether the update was clipped, or why it was refused."""
    try:
        outcome: bool | str = total.add(reply, weight=weight)
    except UpdateError as error:
        outcome = str(error)
    return total._sum.tobytes(), outcome


@settings(max_examples=200, deadline=None)
@given(singles(), st.floats(1e-6, 1.0), st.sampled_from([LatticeGaussian(), ContinuousGaussian()]))
def test_kernels_add_the_same_bits(
    update: tuple[list[Any], list[Any], float], weight: float, mechanism: Any
) -> None:
    """As numpy, for the same length; their own is another bound of it."""
    reference, reply, norm = update
    plain, compiled = (
        open_sum(mechanism, reference, flat(norm, len(reference)), compiled=compiled)
        for compiled in (False, True)
    )
    with plain._blocks.update(reply):
        length = plain._blocks.measure()
    compiled._blocks.measure = lambda: length
    assert outcome_of(plain, reply, weight) == outcome_of(compiled, reply, weight)
    for mine, other in zip(plain.release(), compiled.release(), strict=True):
        assert mine.tobytes() == other.tobytes()


@settings(max_examples=200, deadline=None)
@given(singles(), st.floats(1e-6, 1.0), st.booleans())
def test_measured_before_or_taken_back_where_wrong_the_same_bits_are_added(
    update: tuple[list[Any], list[Any], float], weight: float, compiled: bool
) -> None:
    reference, reply, norm = update
    before, once = (
        open_sum(LatticeGaussian(), reference, flat(norm, len(reference)), compiled=compiled)
        for _ in "ab"
    )
    once._last_was_clipped = False
    assert outcome_of(before, reply, weight) == outcome_of(once, reply, weight)


def test_kernels_are_loaded_for_a_servers_sums_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client bounds one update a message, and must not wait for numba."""
    monkeypatch.delitem(sys.modules, _blocks._KERNELS, raising=False)
    reference = [np.zeros(1 << 20, np.float32)]
    total = LatticeGaussian().open(
        reference, flat(1.0), noise_multiplier=0.0, randomness=SystemRandomness()
    )
    for updates_before in range(_blocks._WORTH_KERNELS >> 20):
        assert total._blocks.loaded is None, updates_before
        total.add(reference, weight=1.0)
    assert total._blocks.loaded is not None


@pytest.mark.parametrize("length", [0.2, 1.1, 30.0, math.nan])
@pytest.mark.parametrize(("threads", "compiled"), [(1, False), (3, False), (3, True)])
def test_a_long_update_that_is_read_once_adds_the_same(
    length: float, threads: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its blocks are added before it is known to be too long; the others never."""
    monkeypatch.setattr(_blocks, "_threads", lambda: threads)
    rng = np.random.default_rng(1)
    reply = rng.standard_normal(700_001, dtype=np.float32)
    reply *= length / np.linalg.norm(reply)
    added = []
    for last_was_clipped in (True, False):
        reference = [np.zeros_like(reply)]
        total = open_sum(LatticeGaussian(), reference, flat(1.0), compiled=compiled)
        total.add([np.full_like(reply, 1e-4)], weight=1.0)
        before = total._sum.copy()
        total._last_was_clipped = last_was_clipped
        if math.isnan(length):
            with pytest.raises(UpdateError, match="NaN"):
                total.add([reply], weight=0.3)
            np.testing.assert_array_equal(total._sum, before)
        else:
            assert total.add([reply], weight=0.3) == (length > 1)
        added.append(total._sum)
    np.testing.assert_array_equal(*added)


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_threads_change_nothing(mechanism: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    sizes = [400_000, 3, 300_000]
    reference = [rng.standard_normal(n, dtype=np.float32) for n in sizes]
    replies = [[r + rng.standard_normal(r.size, dtype=np.float32) for r in reference] for _ in "ab"]
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_blocks, "_threads", lambda n=threads: n)
        total = open_sum(mechanism, reference, ClippingGeometry((1.0, 2.0), (0, 1, 0)))
        for reply in replies:
            total.add(reply, weight=0.7)
        found.append(total.release())
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_a_small_models_sum_takes_less_than_three_models_of_memory(mechanism: Any) -> None:
    """Noise too, whose draws take as much as the sum if all are made at once."""
    reference, reply = [np.zeros(100_000, np.float32)], [np.ones(100_000, np.float32)]

    def whole_round() -> None:
        total = open_sum(mechanism, reference, flat(1.0), z=1.0, compiled=True)
        total.add(reply, weight=1.0)
        total.release()

    whole_round()  # what is imported, compiled and cached
    tracemalloc.start()
    whole_round()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * reference[0].nbytes


def test_more_updates_than_32_bits_hold() -> None:
    """One cell at full radius, 5,000 times: far beyond 2³¹."""
    total = open_sum(LatticeGaussian(), [np.zeros(2, np.float64)], flat(1.0))
    for _ in range(5000):
        total.add([np.array([1e9, 0.0])], weight=1.0)
    (out,) = total.release()
    np.testing.assert_allclose(out, [5000.0, 0.0], rtol=1e-4)


def test_groups_are_clipped_apart() -> None:
    geometry = ClippingGeometry((3.0, 4.0), (0, 1))
    assert geometry.total_norm == 5.0
    total = open_sum(LatticeGaussian(), [np.zeros(1), np.zeros(1)], geometry)
    total.add([np.array([100.0]), np.array([1.0])], weight=1.0)
    (a,), (b,) = total.release()
    assert a == pytest.approx(3.0, rel=1e-4)
    assert b == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
@pytest.mark.parametrize(
    "bad",
    [
        [np.array([np.nan, 0.0])],
        [np.array([np.inf, 0.0])],
        [np.array([1e300, 0.0])],
        [np.zeros(3)],
        [np.zeros(1)],
        [np.zeros((2, 1))],
        [np.zeros(2, np.int64)],
        [],
        [np.zeros(2), np.zeros(2)],
    ],
)
def test_what_cannot_be_bounded_is_rejected(mechanism: Any, bad: list[Any]) -> None:
    total = open_sum(mechanism, [np.zeros(2)], flat(1.0))
    total.add([np.array([0.5, 0.0])], weight=1.0)
    with pytest.raises(UpdateError):
        total.add(bad, weight=1.0)
    np.testing.assert_allclose(total.release()[0], [0.5, 0.0], rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.0000001, math.nan, math.inf])
def test_weights_outside_zero_and_one_are_rejected(weight: float) -> None:
    total = open_sum(LatticeGaussian(), [np.zeros(2)], flat(1.0))
    with pytest.raises(UpdateError):
        total.add([np.ones(2)], weight=weight)


@pytest.mark.parametrize("mechanism", [LatticeGaussian(), ContinuousGaussian()])
def test_a_sum_is_released_once_and_then_closed(mechanism: Any) -> None:
    total = open_sum(mechanism, [np.zeros(2)], flat(1.0))
    (out,) = total.release()
    with pytest.raises(RuntimeError, match="already released"):
        total.release()
    with pytest.raises(RuntimeError, match="already released"):
        total.add([np.ones(2)], weight=1.0)
    assert not out.any()


def test_settings_out_of_range_are_refused() -> None:
    for norm in (0.0, -1.0, math.nan, math.inf, 1e-31, 1e31):
        with pytest.raises(ValueError, match="clipping norm"):
            ClippingGeometry((norm,), (0,))
    with pytest.raises(ValueError, match="group"):
        ClippingGeometry((1.0,), (1,))
    with pytest.raises(ValueError, match="noise_multiplier"):
        open_sum(LatticeGaussian(), [np.zeros(1)], flat(1.0), z=2.0**21)
    with pytest.raises(ValueError, match="noise_multiplier"):
        open_sum(ContinuousGaussian(), [np.zeros(1)], flat(1.0), z=-1.0)
    with pytest.raises(ValueError, match="2 arrays"):
        open_sum(LatticeGaussian(), [np.zeros(1)] * 2, flat(1.0))
