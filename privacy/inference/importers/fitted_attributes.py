"""What a fitted scikit-learn estimator computes, read from its public fitted attributes.

scikit-learn is not imported: an estimator is known by the name of its class, and by no more than
the attributes that its documentation lists.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.affine_map import AffineMap, Vector

LINEAR_CLASSIFIERS = frozenset(
    {
        *("LogisticRegression", "LogisticRegressionCV", "LinearSVC", "SGDClassifier"),
        *("Perceptron", "PassiveAggressiveClassifier", "RidgeClassifier", "RidgeClassifierCV"),
        "LinearDiscriminantAnalysis",
    }
)
LINEAR_REGRESSORS = frozenset(
    {
        *("LinearRegression", "Ridge", "RidgeCV", "Lasso", "LassoCV", "ElasticNet", "ElasticNetCV"),
        *("Lars", "LarsCV", "LassoLars", "LassoLarsCV", "LassoLarsIC", "OrthogonalMatchingPursuit"),
        *("OrthogonalMatchingPursuitCV", "MultiTaskLasso", "MultiTaskLassoCV", "BayesianRidge"),
        *("MultiTaskElasticNet", "MultiTaskElasticNetCV", "ARDRegression", "HuberRegressor"),
        *("QuantileRegressor", "TheilSenRegressor", "SGDRegressor", "PassiveAggressiveRegressor"),
        "LinearSVR",
    }
)
KERNELS = frozenset({"SVC", "NuSVC", "SVR", "NuSVR"})
"""Linear too, with kernel="linear"."""
_TREES = "compares inputs with thresholds, which CKKS cannot; use LogisticRegression or Ridge, or \
an MLPClassifier or MLPRegressor"
_KERNEL = "compares each input with every example that it keeps; use LinearSVC, LogisticRegression \
or an MLPClassifier"
_SEARCH = "is a search: give its best_estimator_"
_FILL = "replaces values one by one; fill in missing ones before encryption"
_REMEDIES = {
    **dict.fromkeys(("SVC", "NuSVC", "SVR", "NuSVR", "KNeighborsClassifier"), _KERNEL),
    **dict.fromkeys(("KNeighborsRegressor", "GaussianProcessClassifier", "KernelRidge"), _KERNEL),
    **dict.fromkeys(
        (f"{name}SearchCV" for name in ("Grid", "Randomized", "HalvingGrid", "HalvingRandom")),
        _SEARCH,
    ),
    "CalibratedClassifierCV": "changes probabilities after the decision: give the classifier in it",
    "TransformedTargetRegressor": "changes the output of a regressor: give its regressor_, and "
    "invert its transformer_ after decryption",
    **dict.fromkeys(("SimpleImputer", "KNNImputer", "IterativeImputer"), _FILL),
    "Normalizer": "divides each input by its own length; do so before encryption",
}


def unsupported(estimator: object, label: str) -> UnsupportedModelError:
    """The refusal of an estimator by name."""
    name = type(estimator).__name__
    if any(kind in name for kind in ("Forest", "Tree", "Boost")):
        remedy = _TREES
    else:
        remedy = _REMEDIES.get(
            name,
            "is none of the estimators that are taken: linear models (LogisticRegression, "
            "LinearSVC, Ridge, SGDClassifier, ...), LinearDiscriminantAnalysis, MLPClassifier and "
            "MLPRegressor, alone or in a Pipeline behind scalers, PCA or TruncatedSVD",
        )
    return UnsupportedModelError(f"{label} {remedy}")


def attribute(estimator: object, name: str, label: str) -> Any:
    """A fitted attribute, which is there after ``fit`` alone."""
    if not hasattr(estimator, name):
        raise UnsupportedModelError(f"{label} has no {name}; call its fit first")
    return getattr(estimator, name)


def numbers(values: Any, name: str, label: str, *dimensions: int) -> Vector:
    """Finite numbers in double precision; sparse ones become dense."""
    dense = values.toarray() if hasattr(values, "toarray") else values
    array = np.asarray(dense)
    if array.dtype.kind not in "biuf":
        raise UnsupportedModelError(
            f"{label}: {name} is of {array.dtype}, which are no real numbers; fit it again"
        )
    if not bool(np.isfinite(array).all()):
        kind = "NaN" if bool(np.isnan(array).any()) else "infinity"
        raise UnsupportedModelError(
            f"{label}: {name} holds {kind}; look for missing or huge values in the training data, "
            "and fit it again"
        )
    if array.ndim not in dimensions:
        raise UnsupportedModelError(
            f"{label}: {name} has shape {array.shape}, which no fit leaves; fit it again"
        )
    return array.astype(np.float64)


def linear(estimator: object, label: str) -> AffineMap:
    """The map of ``coef_`` and ``intercept_``: one row an output."""
    weight = np.atleast_2d(numbers(attribute(estimator, "coef_", label), "coef_", label, 1, 2))
    given = numbers(attribute(estimator, "intercept_", label), "intercept_", label, 0, 1)
    if given.size not in (1, len(weight)):
        raise UnsupportedModelError(
            f"{label}: intercept_ has shape {given.shape} and coef_ {weight.shape}; fit it again"
        )
    return AffineMap(weight, np.broadcast_to(given.reshape(-1), len(weight)).copy())


def linear_kernel(estimator: Any, label: str) -> AffineMap:
    """The map of a support vector machine with a linear kernel: two classes, or a regression."""
    if estimator.kernel != "linear":
        raise unsupported(estimator, label)
    if len(getattr(estimator, "classes_", ())) > 2:
        raise UnsupportedModelError(
            f"{label} has a vote for each pair of its {len(estimator.classes_)} classes; use "
            "LinearSVC, or OneVsRestClassifier(LinearSVC())"
        )
    return linear(estimator, label)


def _diagonal(scale: Vector, bias: Vector) -> AffineMap:
    return AffineMap(np.diag(scale), bias)


def _centred(estimator: object, label: str, centre: str, switch: str) -> AffineMap:
    """(x - centre) / scale_, either of which may be switched off."""
    size = features(estimator, label)
    middle, scale = (attribute(estimator, name, label) for name in (centre, "scale_"))
    # StandardScaler(with_mean=False) has a mean_ all the same.
    centred = middle is not None and getattr(estimator, switch, True)
    shift = numbers(middle, centre, label, 1) if centred else np.zeros(size)
    factor = np.ones(size) if scale is None else 1 / _positive(scale, "scale_", label)
    return _diagonal(factor, -shift * factor)


def _positive(values: Any, name: str, label: str) -> Vector:
    scale = numbers(values, name, label, 1)
    if not bool((scale > 0).all()):
        raise UnsupportedModelError(
            f"{label}: {name} holds {float(scale.min()):g}, and divides by it; fit it again "
            "(scikit-learn writes 1 for a constant feature)"
        )
    return scale


def _standard_scaler(estimator: object, label: str) -> AffineMap:
    return _centred(estimator, label, "mean_", "with_mean")


def _robust_scaler(estimator: object, label: str) -> AffineMap:
    return _centred(estimator, label, "center_", "with_centering")


def _refuse_clipping(estimator: object, label: str) -> None:
    if getattr(estimator, "clip", False):
        raise UnsupportedModelError(
            f"{label} has clip=True, which is not linear; fit it with clip=False, and clip the "
            "inputs before encryption"
        )


def _min_max_scaler(estimator: object, label: str) -> AffineMap:
    _refuse_clipping(estimator, label)
    scale, bias = (
        numbers(attribute(estimator, name, label), name, label, 1) for name in ("scale_", "min_")
    )
    return _diagonal(scale, bias)


def _max_abs_scaler(estimator: object, label: str) -> AffineMap:
    _refuse_clipping(estimator, label)
    scale = 1 / _positive(attribute(estimator, "scale_", label), "scale_", label)
    return _diagonal(scale, np.zeros(len(scale)))


def _pca(estimator: object, label: str) -> AffineMap:
    components, mean = (
        numbers(attribute(estimator, name, label), name, label, dimensions)
        for name, dimensions in (("components_", 2), ("mean_", 1))
    )
    if getattr(estimator, "whiten", False):
        given = attribute(estimator, "explained_variance_", label)
        deviation = np.sqrt(numbers(given, "explained_variance_", label, 1))
        # As scikit-learn divides by a component's deviation where that is next to nothing.
        least = float(np.finfo(np.asarray(given).dtype).eps)
        components = components / np.maximum(deviation, least)[:, None]
    return AffineMap(components, -components @ mean)


def _fast_ica(estimator: object, label: str) -> AffineMap:
    unmixing = numbers(attribute(estimator, "components_", label), "components_", label, 2)
    if not getattr(estimator, "whiten", False):
        return AffineMap(unmixing, np.zeros(len(unmixing)))
    mean = numbers(attribute(estimator, "mean_", label), "mean_", label, 1)
    return AffineMap(unmixing, -unmixing @ mean)


def _factor_analysis(estimator: object, label: str) -> AffineMap:
    """The expected factors (Bishop 2006, equation 12.66)."""
    loadings, noise, mean = (
        numbers(attribute(estimator, name, label), name, label, dimensions)
        for name, dimensions in (("components_", 2), ("noise_variance_", 1), ("mean_", 1))
    )
    weighted = loadings / noise
    solved = np.linalg.solve(np.eye(len(loadings)) + weighted @ loadings.T, weighted)
    weight = np.asarray(solved, dtype=np.float64)
    return AffineMap(weight, -weight @ mean)


def _truncated_svd(estimator: object, label: str) -> AffineMap:
    components = numbers(attribute(estimator, "components_", label), "components_", label, 2)
    return AffineMap(components, np.zeros(len(components)))


def _selection(estimator: Any, label: str) -> AffineMap:
    chosen = np.flatnonzero(estimator.get_support())
    weight = np.eye(features(estimator, label))[chosen]
    return AffineMap(weight, np.zeros(len(chosen)))


TRANSFORMERS: dict[str, Callable[[Any, str], AffineMap]] = {
    "StandardScaler": _standard_scaler,
    "RobustScaler": _robust_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "PCA": _pca,
    "IncrementalPCA": _pca,
    "TruncatedSVD": _truncated_svd,
    "FastICA": _fast_ica,
    "FactorAnalysis": _factor_analysis,
    **dict.fromkeys(
        (
            *("VarianceThreshold", "SelectKBest", "SelectPercentile", "SelectFromModel"),
            *("SelectFpr", "SelectFdr", "SelectFwe", "RFE", "RFECV"),
        ),
        _selection,
    ),
}


def features(estimator: object, label: str) -> int:
    """How many features an estimator was fitted to."""
    return int(attribute(estimator, "n_features_in_", label))
