"""Fitted transformers of scikit-learn as affine maps: single ones, in a row, and side by side."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.affine_map import AffineMap
from privacy.inference.importers.fitted_attributes import (
    TRANSFORMERS,
    attribute,
    features,
)


def transformation(transformer: Any, label: str) -> AffineMap | None:
    """What a transformer computes; None if it is none of the affine ones that are taken.

    Raises
    ------
    UnsupportedModelError
        If it is one, and not fitted or with a setting that is not affine.
    """
    name = type(transformer).__name__
    if type(transformer).__module__.partition(".")[0] != "sklearn":
        return None
    if name == "Pipeline":
        return _in_a_row(transformer, label)
    if name == "ColumnTransformer":
        return _columns(transformer, label)
    if name == "FeatureUnion":
        return _union(transformer, label)
    if name == "FunctionTransformer":
        return _identity(features(transformer, label)) if transformer.func is None else None
    known = TRANSFORMERS.get(name)
    return None if known is None else known(transformer, label)


def _identity(size: int) -> AffineMap:
    return AffineMap(np.eye(size), np.zeros(size))


def _in_a_row(pipeline: Any, label: str) -> AffineMap | None:
    maps = []
    for name, step in pipeline.steps:
        if step is not None and step != "passthrough":
            made = transformation(step, f"{label}, step {name!r} ({type(step).__name__})")
            if made is None:
                return None
            maps.append(made)
    return reduce(AffineMap.then, maps) if maps else None


def _columns(transformer: Any, label: str) -> AffineMap | None:
    """Each transformer on its columns, what they make one below the other."""
    size, rows = features(transformer, label), np.eye(features(transformer, label))
    weights = transformer.transformer_weights or {}
    maps = []
    for name, part, chosen in attribute(transformer, "transformers_", label):
        place = f"{label}, part {name!r} ({type(part).__name__})"
        columns = _places(chosen, size, place)
        if len(columns) == 0 or (isinstance(part, str) and part == "drop"):
            continue
        selection = AffineMap(rows[columns], np.zeros(len(columns)))
        if not isinstance(part, str):
            made = transformation(part, place)
            if made is None:
                return None
            selection = selection.then(made)
        maps.append(_weighted(selection, weights.get(name)))
    return _stacked(maps, label)


def _places(chosen: Any, size: int, label: str) -> NDArray[np.int64]:
    """The numbers of the columns that are chosen."""
    sliced = isinstance(chosen, slice)
    given = [chosen.start, chosen.stop] if sliced else np.atleast_1d(np.asarray(chosen)).tolist()
    if any(isinstance(each, str) for each in given):
        raise UnsupportedModelError(
            f"{label} names its columns; fit the Pipeline on an array, with the columns' numbers"
        )
    if not sliced and not given:
        return np.zeros(0, dtype=np.int64)
    return np.asarray(np.arange(size)[chosen if sliced else np.array(given)], dtype=np.int64)


def _union(union: Any, label: str) -> AffineMap | None:
    """Every transformer on all columns, what they make one below the other."""
    weights = union.transformer_weights or {}
    maps = []
    for name, part in union.transformer_list:
        if isinstance(part, str) and part == "drop":
            continue
        if isinstance(part, str):
            made: AffineMap | None = _identity(features(union, label))
        else:
            made = transformation(part, f"{label}, part {name!r} ({type(part).__name__})")
        if made is None:
            return None
        maps.append(_weighted(made, weights.get(name)))
    return _stacked(maps, label)


def _weighted(made: AffineMap, weight: float | None) -> AffineMap:
    return made if weight is None else AffineMap(weight * made.weight, weight * made.bias)


def _stacked(maps: Sequence[AffineMap], label: str) -> AffineMap:
    if not maps:
        raise UnsupportedModelError(f"{label} makes no features; give it a transformer")
    return AffineMap(
        np.vstack([made.weight for made in maps]), np.concatenate([made.bias for made in maps])
    )
