"""What silos are asked for crosses whole, and is refused where it does not fit the round."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import RoundTerms
from privacy.secure_aggregation.errors import MalformedMessageError, UnacceptableTermsError
from privacy.statistics import TableQuery
from strategies.distributed_dpsgd.accuracy import (
    ACCURACY_NORM,
    person_vectors,
    read_accuracy,
)
from strategies.distributed_dpsgd.requests import (
    AccuracySum,
    GradientSum,
    SumRequest,
    TableSum,
    read_request,
    reordered,
)

MECHANISM = SiloGaussian(5, 2)
STEP = GradientSum(
    unit="person",
    persons=1000,
    clipping_norm=0.5,
    sampling_rate=0.02,
    noise_multiplier=1.5,
    mechanism=MECHANISM,
    planned=7,
)
ANSWERS = AccuracySum(unit="row", persons=1000, noise_multiplier=10.0, mechanism=MECHANISM)


def written(request: SumRequest) -> ConfigRecord:
    record = ConfigRecord({"message": b""})
    request.write_into(record)
    return record


TABLE = TableSum(
    unit="person",
    persons=1000,
    noise_multiplier=4.0,
    mechanism=MECHANISM,
    query=TableQuery(bounds=[(0.0, 120.0), (-1.0, 1.0)], classes=3, bins=5),
)


@pytest.mark.parametrize("request_", [STEP, ANSWERS, TABLE])
def test_a_request_crosses_as_it_is(request_: SumRequest) -> None:
    assert read_request(written(request_)) == request_


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sum-of", "secrets"),
        ("sum-of", 1),
        ("unit", "ward"),
        ("persons", 0),
        ("persons", 1.0),
        ("clipping-norm", float("inf")),
        ("clipping-norm", 1),
        ("sampling-rate", 1.5),
        ("noise-multiplier", 0.0),
        ("noise-multiplier", float("nan")),
        ("min-silos", 2),
        ("colluders", 0),
        ("radius", 0),
        ("planned", 0),
    ],
)
def test_what_is_no_request_is_refused(name: str, value: Any) -> None:
    record = written(STEP)
    record[name] = value
    with pytest.raises(MalformedMessageError):
        read_request(record)


@pytest.mark.parametrize("name", list(written(STEP))[1:])
def test_a_request_without_one_of_its_fields_is_refused(name: str) -> None:
    record = written(STEP)
    del record[name]
    with pytest.raises(MalformedMessageError):
        read_request(record)


def terms(**changes: Any) -> RoundTerms:
    fitting = {"size": 27, "bound": STEP.bound(27), "min_clients": 5}
    return RoundTerms(run=bytes(16), number=1, **(fitting | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"min_clients": 4}, "sized for 5 silos, but the sum of 4"),
        ({"size": 28}, "27 numbers, the terms 28"),
        ({"bound": STEP.bound(27) - 1}, "is needed"),
    ],
)
def test_terms_under_which_the_noise_or_the_sum_does_not_fit_are_refused(
    changes: dict[str, int], words: str
) -> None:
    STEP.check(terms(), 27)
    with pytest.raises(UnacceptableTermsError, match=words):
        STEP.check(terms(**changes), 27)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lowest", [0.0]),
        ("lowest", [0.0, 2.0]),
        ("highest", "ends"),
        ("classes", -1),
        ("bins", 1.5),
    ],
)
def test_what_is_no_query_is_refused(name: str, value: Any) -> None:
    record = written(TABLE)
    record[name] = value
    with pytest.raises(MalformedMessageError):
        read_request(record)


def test_an_accuracy_with_another_norm_would_be_noised_for_less_than_a_person_adds() -> None:
    record = written(ANSWERS)
    record["clipping-norm"] = 0.1
    bound = ANSWERS.bound(27)
    with pytest.raises(UnacceptableTermsError, match="another length"):
        read_request(record).check(terms(size=2, bound=bound), 27)


@given(
    st.lists(st.lists(st.booleans(), min_size=1, max_size=4), max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_person_moves_an_accuracy_by_one_norm_whatever_rows_they_have(
    right: list[list[bool]], shuffling: Any
) -> None:
    rows = [(person, answer) for person, answers in enumerate(right) for answer in answers]
    shuffling.shuffle(rows)
    owners = np.array([person for person, _ in rows], dtype=np.int64)
    answered = np.array([answer for _, answer in rows], dtype=bool)
    vectors = person_vectors(answered, owners, len(right))
    assert vectors.shape == (len(right), 2)
    assert (np.linalg.norm(vectors, axis=1) <= ACCURACY_NORM * (1 + 1e-12)).all()
    if right:
        read = read_accuracy(vectors.sum(axis=0), noise_multiplier=1e-9)
        assert read["persons"] == pytest.approx(len(right))
        shares = np.mean([np.mean(answers) for answers in right])
        assert read["accuracy"] == pytest.approx(shares)


def test_an_accuracy_that_would_be_noise_alone_is_not_given() -> None:
    assert "accuracy" not in read_accuracy(np.array([1.0, 10.0]), noise_multiplier=10.0)


@given(st.permutations(range(4)), st.lists(st.integers(1, 5), min_size=4, max_size=4))
def test_arrays_are_reordered_by_name(order: list[int], sizes: list[int]) -> None:
    own = [(f"a{i}", size) for i, size in enumerate(sizes)]
    parts = {name: np.full(size, i) for i, (name, size) in enumerate(own)}
    names = [f"a{i}" for i in order]
    whole = np.concatenate(list(parts.values()))
    np.testing.assert_array_equal(
        reordered(whole, own, names), np.concatenate([parts[name] for name in names])
    )
