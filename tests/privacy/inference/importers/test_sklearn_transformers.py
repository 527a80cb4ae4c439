"""Transformers in a row, side by side and inside each other are one layer of the model."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from sklearn import compose, decomposition, linear_model, preprocessing
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline

from privacy.inference import decide, from_sklearn
from privacy.inference.errors import UnsupportedModelError

X = np.random.default_rng(0).uniform(-1, 1, (60, 6)) @ np.diag([1, 30, 0.01, 1, 1, 5]) + 2
Y = np.array(["ash", "birch"])[(X[:, 0] + X[:, 3] > 4).astype(int)]
NEW = np.random.default_rng(1).normal(size=(40, 6)) * 3
SINGLE: list[Callable[[], Any]] = [
    preprocessing.StandardScaler,
    preprocessing.MinMaxScaler,
    preprocessing.RobustScaler,
    preprocessing.FunctionTransformer,
    lambda: decomposition.PCA(1),
    lambda: decomposition.FastICA(1, random_state=0),
    lambda: decomposition.FastICA(whiten=False, random_state=0),
    lambda: decomposition.FactorAnalysis(1),
    lambda: "passthrough",
]
COLUMNS: list[Any] = [
    *([0, 1], [5, 2], [-1, 0], slice(1, 4), slice(-3, None, 2), np.array([3]), []),
    *([True, False, True, False, False, True], lambda x: [0, 2]),
]


def fitted(transformer: Any) -> Pipeline:
    return make_pipeline(transformer, linear_model.LogisticRegression()).fit(X, Y)


def compare(pipeline: Pipeline) -> None:
    model = from_sklearn(pipeline)
    assert len(model) == 1
    inputs = NEW
    with torch.no_grad():
        ours = model(torch.from_numpy(inputs)).numpy()
    theirs = pipeline.decision_function(inputs)
    assert abs(ours[:, 0] - theirs).max() <= 1e-9 * max(1.0, abs(theirs).max())
    assert np.array(model.classes)[decide(ours)].tolist() == pipeline.predict(inputs).tolist()


@st.composite
def trees(draw: Any, depth: int = 2) -> Any:
    kinds = ["one", "row", "columns", "union"] if depth else ["one"]
    kind = draw(st.sampled_from(kinds))
    if kind == "one":
        return SINGLE[draw(st.integers(0, len(SINGLE) - 1))]()
    parts = [(f"p{k}", draw(trees(depth - 1))) for k in range(draw(st.integers(1, 3)))]
    weights = {"p0": draw(st.sampled_from([0.5, -2.0, 1.0]))} if draw(st.booleans()) else None
    if kind == "row":
        return Pipeline([("first", preprocessing.StandardScaler()), *parts])
    if kind == "union":
        return FeatureUnion(parts, transformer_weights=weights)
    return compose.ColumnTransformer(
        [(name, part, [0]) for name, part in parts],
        remainder=draw(st.sampled_from(["drop", "passthrough"])),
        transformer_weights=weights,
    )


@settings(max_examples=60, deadline=None)
@given(trees())
def test_any_composition_is_one_layer(tree: Any) -> None:
    try:
        pipeline = fitted(tree)
    except ValueError:  # scikit-learn's own: FastICA of a column that a step before made constant
        reject()
    compare(pipeline)


@pytest.mark.parametrize(
    "columns", COLUMNS, ids=lambda columns: getattr(columns, "__name__", str(columns))
)
@pytest.mark.parametrize("rest", ["drop", "passthrough", preprocessing.MinMaxScaler()], ids=str)
def test_columns_are_chosen_in_every_way(columns: Any, rest: Any) -> None:
    scaled = ("a", preprocessing.StandardScaler(), columns)
    parts = [scaled, ("b", "passthrough", [4]), ("c", "drop", [3])]
    compare(fitted(compose.ColumnTransformer(parts, remainder=rest)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: compose.ColumnTransformer([("o", preprocessing.OneHotEncoder(), [0])]),
            "step 'columntransformer' .*none of the affine steps.*pipeline\\[:1\\]",
        ),
        (
            lambda: make_pipeline(preprocessing.FunctionTransformer(np.sin)),
            "step 'pipeline' .*none of the affine steps",
        ),
        (
            lambda: FeatureUnion([("q", preprocessing.QuantileTransformer(n_quantiles=5))]),
            "step 'featureunion' .*none of the affine steps",
        ),
        (
            lambda: make_pipeline(preprocessing.MinMaxScaler(clip=True)),
            "step 'pipeline' .*step 'minmaxscaler' .*clip=True",
        ),
        (
            lambda: type("Mine", (compose.ColumnTransformer,), {})(
                [("a", preprocessing.StandardScaler(), [0])]
            ),
            "step 'mine' .*none of the affine steps",
        ),
    ],
)
def test_what_is_inside_and_not_affine_is_refused(make: Callable[[], Any], words: str) -> None:
    pipeline = make_pipeline(make(), linear_model.LogisticRegression()).fit(np.round(X), Y)
    with pytest.raises(UnsupportedModelError, match=words):
        from_sklearn(pipeline)


@pytest.mark.parametrize("columns", [["a", "b"], slice("a", "c"), ["a"]], ids=str)
def test_columns_by_name_are_refused_with_the_way_to_numbers(columns: Any) -> None:
    parts = [("scaled", preprocessing.StandardScaler(), columns)]
    transformer = compose.ColumnTransformer(parts, remainder="passthrough")
    pipeline = make_pipeline(transformer, linear_model.LogisticRegression())
    pandas = pytest.importorskip("pandas")
    pipeline.fit(pandas.DataFrame(X, columns=list("abcdef")), Y)
    with pytest.raises(UnsupportedModelError, match="names its columns; fit the Pipeline on an"):
        from_sklearn(pipeline)


def test_a_composition_that_is_not_fitted_is_refused() -> None:
    transformer = compose.ColumnTransformer([("a", preprocessing.StandardScaler(), [0])])
    with pytest.raises(UnsupportedModelError, match="call its fit first"):
        from_sklearn(make_pipeline(transformer, linear_model.LogisticRegression()))
