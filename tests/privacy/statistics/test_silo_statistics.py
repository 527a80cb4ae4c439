"""Statistics of tables that nobody sees: right, of persons, bounded, noised and paid for."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import Budget, Full, Poisson, Repeated, calibrate_noise_multiplier
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.mechanisms.person_sums import PersonSum
from privacy.statistics import Statistics, TableQuery, silo_statistics
from privacy.training import ClientLedger
from privacy.training.errors import LocalBudgetError

FALSE_ALARM = 1e-6
MECHANISM = SiloGaussian(3, 1)
PERSONS = 10_000


def noiseless(
    query: TableQuery,
    features: Any,
    labels: Any = None,
    ids: Any = None,
    mechanism: SiloGaussian = MECHANISM,
) -> Any:
    """One silo's sum less its noise, which is the answer of an empty table with the same seed."""

    def answer(table: Any, classes: Any, persons: Any) -> Any:
        return silo_statistics(
            query,
            table,
            classes if query.classes else None,
            persons,
            mechanism=mechanism,
            noise_multiplier=8.0,
            ledger=None,
            persons=PERSONS,
            randomness=SeededRandomness(3),
        )

    nobody = np.zeros((0, query.columns))
    return answer(features, labels, ids) - answer(nobody, np.zeros(0), None)


def table(rows: int = 400) -> tuple[Any, Any]:
    draw = np.random.default_rng(rows)
    ages, yes = draw.normal(40, 12, rows), draw.integers(0, 2, rows)
    return np.column_stack([ages, yes]), draw.integers(0, 3, rows)


QUERY = TableQuery(bounds=[(0, 100), (0, 1)], classes=3, bins=5)


def read(opened: Any, query: TableQuery = QUERY) -> Statistics:
    return query.read(opened, MECHANISM, noise_multiplier=8.0)


def test_without_noise_it_is_what_numpy_says() -> None:
    features, labels = table()
    answer = read(noiseless(QUERY, features, labels))
    within = np.clip(features, [0, 0], [100, 1])
    assert answer.count == pytest.approx(400, abs=0.01)
    assert answer.means == pytest.approx(within.mean(axis=0), abs=0.01)
    assert answer.deviations == pytest.approx(within.std(axis=0), abs=0.02)
    assert answer.class_counts == pytest.approx(np.bincount(labels), abs=0.01)
    for column, ends in enumerate(((0, 100), (0, 1))):
        counts, _ = np.histogram(within[:, column], bins=5, range=ends)
        assert answer.histograms[column] == pytest.approx(counts, abs=0.01)


def test_a_person_counts_once_with_the_mean_of_their_rows() -> None:
    features, labels = table(60)
    ids = np.arange(60) // 4
    answer = read(noiseless(QUERY, features, labels, ids))
    within = np.clip(features, [0, 0], [100, 1]).reshape(15, 4, 2)
    assert answer.count == pytest.approx(15, abs=0.01)
    assert answer.means == pytest.approx(within.mean(axis=(0, 1)), abs=0.01)
    shares = [(labels == one).reshape(15, 4).mean(axis=1).sum() for one in range(3)]
    assert answer.class_counts == pytest.approx(shares, abs=0.01)
    # One who has more rows than all others together counts no more.
    many = [*features[:5], *[features[5]] * 300]
    ids = np.array([*range(5), *[5] * 300])
    plain = TableQuery(bounds=[(0, 100), (0, 1)])
    one_of_six = read(noiseless(plain, np.array(many), None, ids), plain)
    assert one_of_six.means == pytest.approx(within.reshape(60, 2)[:6].mean(axis=0), abs=0.01)


def test_more_rows_than_are_worked_on_at_once() -> None:
    wide = TableQuery(bounds=[(0, 1)] * 100, bins=100)
    features = np.random.default_rng(0).random((300, 100))
    total = noiseless(wide, features)
    as_one = noiseless(wide, features, None, [7] * 300)
    assert np.abs(total / 300 - as_one).max() <= 1
    half = [*[7] * 150, *[8] * 150]
    halves = [noiseless(wide, part, None, [7] * 150) for part in (features[:150], features[150:])]
    assert np.abs(noiseless(wide, features, None, half) - sum(halves)).max() <= 1


def test_values_beyond_the_bounds_missing_ones_and_labels_of_no_class() -> None:
    features = np.array([[math.inf, -math.inf], [math.nan, 5.0], [1e300, math.nan]])
    labels = np.array([0.0, 7.0, -1.0])
    answer = read(noiseless(QUERY, features, labels))
    assert answer.count == pytest.approx(3, abs=0.01)
    assert answer.means == pytest.approx([250 / 3, 0.5], abs=0.01)
    assert answer.class_counts == pytest.approx([1, 0, 0], abs=0.01)
    assert answer.histograms.sum(axis=1) == pytest.approx([3, 3], abs=0.01)
    labels = np.array([math.nan, 1.5, 2.0])
    answer = read(noiseless(QUERY, features, labels))
    assert answer.class_counts == pytest.approx([0, 0, 1], abs=0.01)


ANY = st.one_of(st.floats(), st.floats(-0.5, 1.5), st.sampled_from([0.0, 1.0, 0.5]))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.tuples(ANY, ANY, st.floats(-2, 5)), min_size=1, max_size=9),
    place=st.integers(0, 20),
    classes=st.integers(0, 3),
    bins=st.integers(0, 4),
    bits=st.sampled_from([0, 3, 16]),
)
def test_no_person_moves_the_sum_by_more_than_is_charged(
    rows: list[tuple[float, float, float]], place: int, classes: int, bins: int, bits: int
) -> None:
    """Any values and labels in any number of rows, anywhere among others."""
    query = TableQuery(bounds=[(0, 1), (-3, 7)], classes=classes, bins=bins)
    mechanism = SiloGaussian(3, 1, radius=1 << bits)
    others, labels = table(20)
    person = np.array(rows)
    ids = [*range(place), *[99] * len(rows), *range(place, 20)]
    features = np.concatenate([others[:place], person[:, :2], others[place:]])
    all_labels = np.concatenate([labels[:place], person[:, 2], labels[place:]])
    with_person = noiseless(query, features, all_labels, ids, mechanism)
    moved = with_person - noiseless(query, others, labels, None, mechanism)
    square, size, radius = sum(int(i) ** 2 for i in moved), len(moved), 1 << bits
    beyond = square - radius**2 - size
    assert beyond <= 0 or beyond**2 <= 4 * radius**2 * size
    assert square <= query.event(mechanism, noise_multiplier=8.0).sensitivity ** 2


class Raising:
    """A cell, or a row, that cannot be read."""

    ndim = 1

    def __float__(self) -> float:
        raise RuntimeError

    __len__ = __iter__ = __float__


ODD_CELLS = [
    *("N/A", "", "12", b"0.5", "x" * 1000, "nan", "١"),
    *(None, math.nan, math.inf, 10**400, -(10**400), 3 + 0j, 3 + 4j, np.complex64(1 + 2j)),
    *(True, np.True_, np.float16(0.5), np.int8(-3), np.datetime64("2020-01-01"), Decimal("sNaN")),
    *(Fraction(1, 3), object(), {}, {1}, [1.0], [[1.0]], (), np.zeros(1), np.ma.masked, Raising()),
    *(torch.tensor(0.25, requires_grad=True), torch.tensor([1.0, 2.0], dtype=torch.bfloat16)),
]
PLAIN_ROWS = [
    *([True, 0.5], [np.True_, 2], (False, np.float32(0.1)), [1, 2**60], [0.1, np.float16(0.1)]),
    *("10", np.array([0.25, 0.75]), torch.tensor([0.5, 0.25])),
]


@pytest.mark.parametrize("cell", ODD_CELLS, ids=lambda cell: type(cell).__name__)
@pytest.mark.parametrize("place", range(3))
def test_a_person_of_any_cells_changes_no_other(cell: Any, place: int) -> None:
    """In a list NumPy would seek one kind for the cells of all persons."""
    query = TableQuery(bounds=[(0, 1), (-3, 7)], classes=2, bins=3)
    person, label = [[cell, 0.5], [0.5, cell], cell][place], [1, 0, cell][place]
    rows: list[Any] = [row for row in PLAIN_ROWS if not isinstance(row, str)] * 3
    labels: list[Any] = [True, 0, 1, np.float32(1), 0.0, np.int8(1), False] * 3
    apart = noiseless(query, rows, labels)
    moved = noiseless(query, [*rows[:7], person, *rows[7:]], [*labels[:7], label, *labels[7:]])
    alone = np.zeros_like(apart)
    if _usable(query, person, label):
        alone = noiseless(query, [person, [0.1, 0.1]], [label, 1]) - noiseless(
            query, [[0.1, 0.1]], [1]
        )
    assert np.abs(moved - apart - alone).max() <= 1  # each sum is rounded to whole cells


def _usable(query: TableQuery, person: Any, label: Any) -> bool:
    """Whether a row counts: alone in a table it is refused if it does not."""
    try:
        noiseless(query, [person], [label])
    except ValueError:
        return False
    return True


def test_masked_cells_are_missing_in_arrays_and_lists() -> None:
    query = TableQuery(bounds=[(0, 100)], classes=2)
    masked = np.ma.array([[40.0], [-9999.0], [99.0]], mask=[[False], [True], [True]])
    labels = np.ma.array([1, 0, 0], mask=[False, True, True])
    expected = noiseless(query, [[40.0], [math.nan], [math.nan]], [1, -1, -1])
    assert np.array_equal(noiseless(query, masked, labels), expected)
    assert np.array_equal(noiseless(query, list(masked), list(labels)), expected)
    assert np.array_equal(noiseless(query, masked.astype(object), labels), expected)


def test_a_persons_mean_is_the_same_to_the_last_bit_whoever_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One whose rows are worked on alone, and one whose neighbours' are worked on with theirs."""
    seen: list[Any] = []
    add = PersonSum.add

    def remember(total: PersonSum, vectors: Any) -> None:
        seen.append(np.array(vectors))
        add(total, vectors)

    monkeypatch.setattr(PersonSum, "add", remember)
    draw = np.random.default_rng(0)
    wide = TableQuery(bounds=[(0, 1)] * 100, bins=100)
    most = (1 << 20) // wide.parameters
    own = draw.random((most - 10, 100))
    for others in (1, 5, 40):
        features = np.concatenate([own, draw.random((others, 100))])
        noiseless(wide, features, None, [7] * len(own) + [8] * others)
    firsts = [vectors[0] for vectors in seen if len(vectors)]
    # Twice together with the other's, the third time by itself.
    assert [len(vectors) for vectors in seen if len(vectors)] == [2, 2, 1, 1]
    assert np.array_equal(firsts[0], firsts[1])
    assert np.array_equal(firsts[0], firsts[2])


@pytest.mark.parametrize(("classes", "bins"), [(0, 0), (3, 0), (0, 5), (3, 5)])
def test_a_persons_part_can_be_as_long_as_is_assumed_and_no_longer(classes: int, bins: int) -> None:
    query = TableQuery(bounds=[(0, 1), (0, 1)], classes=classes, bins=bins)
    corners = query.parts(np.array([[0.0, 1.0], [0.3, 0.9]]), np.array([2, 0]))
    norms = np.linalg.norm(corners, axis=1)
    assert norms[0] == pytest.approx(query.clipping_norm, rel=1e-12)
    assert norms[1] <= query.clipping_norm


def test_the_answer_has_the_noise_that_it_says() -> None:
    """Chi-square over the numbers of the fewest honest silos: a false alarm in 10⁶ runs."""
    z, query = 5.0, TableQuery(bounds=[(0, 1)] * 40, classes=20, bins=30)
    answers = [
        silo_statistics(
            query,
            np.zeros((0, 40)),
            np.zeros(0),
            mechanism=MECHANISM,
            noise_multiplier=z,
            ledger=None,
            persons=PERSONS,
        )
        for _ in range(MECHANISM.honest)
    ]
    opened = sum(answers)
    answer = query.read(np.asarray(opened), MECHANISM, noise_multiplier=z)
    assert answer.noise == pytest.approx(z * query.clipping_norm)
    persons = MECHANISM.decode(np.asarray(opened), clipping_norm=query.clipping_norm)
    square, size = float(np.square(persons / answer.noise).sum()), query.parameters
    assert stats.chi2.isf(1 - FALSE_ALARM / 2, size) < square
    assert square < stats.chi2.isf(FALSE_ALARM / 2, size)
    assert np.isfinite(answer.means).all()
    assert (np.abs(answer.means - 0.5) <= 0.5).all()
    assert (answer.deviations >= 0).all()


def test_one_query_and_a_training_are_paid_from_one_budget() -> None:
    ledger = ClientLedger(dataset="ward-7", budget=Budget(3.0, 1e-5))
    steps = MECHANISM.account(parameters=50, noise_multiplier=1.0, sampling=Poisson(0.02))
    z = calibrate_noise_multiplier(
        sampling=Full(),
        rounds=1,
        budget=ledger.budget or Budget(3.0, 1e-5),
        spent=[Repeated(steps, 100)],
        release=lambda z: QUERY.event(MECHANISM, noise_multiplier=z),
    )
    features, labels = table()

    def answer() -> Any:
        return silo_statistics(
            QUERY,
            features,
            labels,
            mechanism=MECHANISM,
            noise_multiplier=z,
            ledger=ledger,
            persons=PERSONS,
        )

    answer()
    assert ledger.events == (QUERY.event(MECHANISM, noise_multiplier=z),)
    ledger.charge(Repeated(steps, 100))
    assert 2.9 < ledger.epsilon(delta=1e-5) <= 3.0
    with pytest.raises(LocalBudgetError):
        answer()


def test_tables_of_other_kinds() -> None:
    features, labels = table(10)
    expected = noiseless(QUERY, features, labels)
    same = (
        (features.tolist(), labels.tolist(), None),
        (torch.from_numpy(features), torch.from_numpy(labels), torch.arange(10)),
        (features, labels.astype(np.uint8), [f"patient {i}" for i in range(10)]),
    )
    for one in same:
        assert np.array_equal(noiseless(QUERY, *one), expected)
    one_column = TableQuery(bounds=[(0, 1)])
    right = read(noiseless(one_column, np.array([[True], [True], [False]])), one_column)
    assert right.means == pytest.approx([2 / 3], abs=1e-3)
    counted = read(noiseless(TableQuery(bounds=[]), np.zeros((7, 0))), TableQuery(bounds=[]))
    assert counted.count == pytest.approx(7, abs=1e-3)


USUAL = {
    "mechanism": MECHANISM,
    "noise_multiplier": 1.0,
    "ledger": None,
    "persons": PERSONS,
}


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"features": np.zeros((3, 1))}, ValueError, r"give \(rows, 2\)"),
        ({"features": np.zeros(3)}, ValueError, r"shape \(3,\)"),
        ({"features": [[1], [2, 3, 4]]}, ValueError, "features has the shape"),
        ({"features": "a"}, ValueError, "features has the shape"),
        ({"labels": None}, ValueError, "3 classes"),
        ({"labels": np.zeros(2)}, ValueError, "one a row"),
        ({"labels": [[1]] * 10}, ValueError, "labels has the shape"),
        ({"person_ids": [1]}, ValueError, "1 ids for 10 rows"),
        ({"query": "all"}, TypeError, "query is"),
        ({"mechanism": 3}, TypeError, "mechanism is"),
        ({"randomness": 3}, TypeError, "randomness is"),
    ],
)
def test_what_is_refused(given: Any, error: Any, match: str) -> None:
    features, labels = table(10)
    usual = {"query": QUERY, "features": features, "labels": labels, **USUAL}
    with pytest.raises(error, match=match):
        silo_statistics(**usual | given)


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"bounds": 3}, TypeError, "bounds is 3"),
        ({"bounds": [3]}, TypeError, r"bounds\[0\] is 3"),
        ({"bounds": [(0, 1), (1, 1)]}, ValueError, r"bounds\[1\].*the lower one first"),
        ({"bounds": [(0, 1, 2)]}, ValueError, "two numbers"),
        ({"bounds": [(0, math.inf)]}, ValueError, r"bounds\[0\]"),
        ({"bounds": [("0", 1)]}, TypeError, r"bounds\[0\]"),
        ({"classes": -1}, ValueError, "classes"),
        ({"bins": 1.5}, TypeError, "bins"),
    ],
)
def test_impossible_queries_are_refused(given: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        TableQuery(**{"bounds": [(0, 1)]} | given)


def test_a_sum_of_another_query_is_refused() -> None:
    with pytest.raises(ValueError, match="of this query it is"):
        read(np.zeros(3, np.int64))


@pytest.mark.parametrize(
    "cell", ["N/A", "", None, "12 years", 10**400, 1j, b"x", {}], ids=lambda cell: repr(cell)[:9]
)
def test_a_cell_that_is_no_number_is_missing_and_changes_no_other(cell: Any, caplog: Any) -> None:
    features, labels = table(6)
    expected = noiseless(QUERY, [*features.tolist(), [math.nan, 1.0]], [*labels.tolist(), -1])
    rows = [*features.tolist(), [cell, 1.0]]
    as_objects = np.empty((7, 2), dtype=object)
    as_objects[:] = rows
    for features_of in (rows, as_objects):
        assert np.array_equal(noiseless(QUERY, features_of, [*labels.tolist(), cell]), expected)
    assert "1 cells of features are missing or no numbers" in caplog.text


def test_numbers_that_became_text_beside_a_text_are_numbers() -> None:
    features, labels = table(6)
    rows = [*features.tolist(), [math.nan, 1.0]]
    text = np.array([*features.tolist(), ["N/A", 1.0]])
    assert text.dtype.kind == "U"
    expected = noiseless(QUERY, rows, [*labels.tolist(), 0])
    assert np.array_equal(noiseless(QUERY, text, [*map(str, labels), "0"]), expected)


@pytest.mark.parametrize(
    "row", [[1.0], [1.0, 2.0, 3.0], [], 5.0, None, [[1.0], 2.0], [[1.0], [2.0]]]
)
@pytest.mark.parametrize("of", [1, 2])
def test_a_row_of_another_shape_adds_nothing(row: Any, of: int) -> None:
    features, labels = table(6)
    expected = noiseless(QUERY, features, labels, np.arange(6))
    ids = [*range(6), *[3] * (of - 1), 99]
    rows = [*features.tolist(), *[row] * of]
    assert np.array_equal(noiseless(QUERY, rows, [*labels.tolist(), *[0] * of], ids), expected)


@pytest.mark.parametrize("odd", [None, math.nan, "", True, 1.5])
def test_a_row_whose_id_cannot_be_used_adds_nothing(odd: Any) -> None:
    features, labels = table(7)
    expected = noiseless(QUERY, features[:6], labels[:6], np.arange(6))
    assert np.array_equal(noiseless(QUERY, features, labels, [*range(6), odd]), expected)
