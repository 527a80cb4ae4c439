"""scikit-learn's linear models and multilayer perceptrons as PyTorch modules."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from privacy.arguments import number, shown
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.affine_map import AffineMap, Steps, inputs
from privacy.inference.importers.fitted_attributes import (
    KERNELS,
    LINEAR_CLASSIFIERS,
    LINEAR_REGRESSORS,
    TRANSFORMERS,
    attribute,
    linear,
    linear_kernel,
    numbers,
    unsupported,
)
from privacy.inference.importers.proved_polynomials import ACTIVATIONS, input_bounds, polynomials
from privacy.inference.importers.sklearn_agreement import check_agreement
from privacy.inference.importers.sklearn_transformers import transformation

_PERCEPTRONS = frozenset({"MLPClassifier", "MLPRegressor"})
_ENSEMBLES = frozenset({"OneVsRestClassifier", "MultiOutputClassifier", "MultiOutputRegressor"})


def from_sklearn(
    estimator: Any,
    *,
    input_range: tuple[ArrayLike, ArrayLike] | None = None,
    max_error: float | None = None,
) -> nn.Sequential:
    """A fitted scikit-learn estimator as a PyTorch module for :func:`compile_model`.

    Taken are linear models (LogisticRegression, LinearSVC, LinearRegression, Ridge,
    RidgeClassifier, SGDClassifier and their kin), LinearDiscriminantAnalysis, MLPClassifier and
    MLPRegressor, SVC and SVR with kernel="linear" (of two classes), OneVsRestClassifier,
    MultiOutputClassifier and MultiOutputRegressor of linear models, alone or at the end of a
    Pipeline. Its scalers, PCA, TruncatedSVD and selections of features, also in Pipelines,
    ColumnTransformers and FeatureUnions of their own, are multiplied into the layer behind them.

    The module answers, in double precision, what ``decision_function`` or, of a regressor,
    ``predict`` answers, in shape (inputs, outputs); of an MLPClassifier, the values before its
    softmax or logistic output. One output of a classifier decides between two classes at 0, the
    largest of several decides, as in :func:`decide`. It is compared with the estimator's own
    answers here, class by class. scikit-learn is not imported and nothing is unpickled.

    Its attribute ``classes`` is the tuple of the estimator's own labels, in the order of
    :attr:`Answer.label`; of a multi-label model, one label an output (of a MultiOutputClassifier a
    pair); of a regressor None. ``predicts`` is "classes", "labels" (compile it with
    ``multi_label=True``) or "values" (a regressor's).

    Parameters
    ----------
    estimator : object
        Fitted, of exactly scikit-learn's type.
    input_range : tuple, optional
        The lowest and highest value of an input's elements, or an array of each with one value a
        feature; of the inputs as the Pipeline takes them. With ``max_error`` only.
    max_error : float, optional
        For an MLP with activation "relu", "tanh" or "logistic": they become polynomials of degree
        2 to 7, of the lowest degree at which no output differs from the estimator's by more than
        this, for any input in ``input_range`` (proved by interval arithmetic; the log gives the
        bound). Left out, they stay as they are: the module is exact, and before it can be
        compiled its activations must be replaced and trained (``replace_activations``).

    Raises
    ------
    TypeError
        If ``estimator`` is none of scikit-learn's.
    UnsupportedModelError
        If it is not fitted, cannot be evaluated under encryption, holds numbers that are not
        finite, answers otherwise than its attributes say, or no polynomial is close enough.
    ValueError
        If an argument is out of its range.
    """
    if (input_range is None) != (max_error is None):
        raise ValueError("give input_range and max_error together, or neither")
    _check_kind(estimator)
    label = type(estimator).__name__
    steps = _merged(_steps(estimator, label))
    made = _module(steps)
    model = _end(estimator)
    classes = _classes(model, label)
    several = check_agreement(made, steps, estimator, model, classes)
    if input_range is not None and max_error is not None:
        if len(steps) == 1:
            raise ValueError(
                f"{label} has no activation to replace; leave input_range and max_error out"
            )
        most = number("max_error", max_error, above=0, give="a positive error of an output")
        low, high = input_bounds(input_range, inputs(steps))
        made = nn.Sequential(*polynomials(steps, low, high, most))
    made.classes = classes  # type: ignore[assignment]
    made.predicts = "values" if classes is None else "labels" if several else "classes"  # type: ignore[assignment]
    return made.eval()


def _check_kind(estimator: Any) -> None:
    if isinstance(estimator, type):
        raise TypeError(f"estimator is {shown(estimator)}; give one of it, fitted")
    if _is_sklearn(estimator):
        return
    for base in type(estimator).__mro__[1:]:
        if base.__module__.startswith("sklearn.") and base.__name__ in _TAKEN:
            raise UnsupportedModelError(
                f"{type(estimator).__name__} is a subclass of {base.__name__}, which may answer "
                f"something else; give a fitted {base.__name__}"
            )
    raise TypeError(
        f"estimator is {shown(estimator)}; give a fitted scikit-learn estimator (a PyTorch model "
        "goes to compile_model as it is, an ONNX file to from_onnx)"
    )


def _steps(estimator: Any, label: str) -> Steps:
    name = type(estimator).__name__
    if name == "Pipeline":
        return _pipeline(estimator)
    if name in LINEAR_CLASSIFIERS | LINEAR_REGRESSORS:
        return [linear(estimator, label)]
    if name in KERNELS:
        return [linear_kernel(estimator, label)]
    if name in _PERCEPTRONS:
        return _perceptron(estimator, label)
    if name in _ENSEMBLES:
        return [_ensemble(estimator, label)]
    if name in TRANSFORMERS:
        raise UnsupportedModelError(
            f"{label} predicts nothing; give a Pipeline that ends in a classifier or a regressor"
        )
    raise unsupported(estimator, label)


def _pipeline(pipeline: Any) -> Steps:
    *before, (last_name, last) = pipeline.steps
    steps: Steps = []
    for index, (name, transformer) in enumerate(before):
        if transformer is None or transformer == "passthrough":
            continue
        label = f"step {name!r} ({type(transformer).__name__})"
        known = transformation(transformer, label)
        if known is None:
            raise UnsupportedModelError(
                f"{label} is none of the affine steps that are taken, and is not evaluated. If "
                f"whoever encrypts may know it, let them apply pipeline[:{index + 1}].transform "
                f"first, and give pipeline[{index + 1}:] here"
            )
        steps.append(known)
    if last is None or last == "passthrough":
        raise UnsupportedModelError("the Pipeline ends in no model; give it a last step")
    return [*steps, *_steps(last, f"step {last_name!r} ({type(last).__name__})")]


def _perceptron(estimator: Any, label: str) -> Steps:
    activation = estimator.activation
    weights, biases = (attribute(estimator, name, label) for name in ("coefs_", "intercepts_"))
    if activation not in ("identity", *ACTIVATIONS):
        raise UnsupportedModelError(
            f"{label} has activation {activation!r}; use 'identity', or one of {[*ACTIVATIONS]}"
        )
    steps: Steps = []
    for index, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        if steps and activation != "identity":
            steps.append(activation)
        matrix = numbers(weight, f"coefs_[{index}]", label, 2).T
        steps.append(AffineMap(matrix, numbers(bias, f"intercepts_[{index}]", label, 1)))
    return steps


def _ensemble(estimator: Any, label: str) -> AffineMap:
    """One linear model an output."""
    parts = []
    for index, member in enumerate(attribute(estimator, "estimators_", label)):
        place = f"{label}: estimators_[{index}] ({type(member).__name__})"
        if type(member).__name__ not in LINEAR_CLASSIFIERS | LINEAR_REGRESSORS:
            raise UnsupportedModelError(
                f"{place} is no linear model; a class that is in every example or in none "
                "leaves a constant there, which has no logit"
                if type(member).__name__ == "_ConstantPredictor"
                else f"{place} is no linear model; give each of estimators_ here by itself"
            )
        part = linear(member, place)
        if len(part.weight) > 1:
            raise UnsupportedModelError(
                f"{place} has {len(part.weight)} outputs, and its classes would not be told from "
                "the others'; give each of estimators_ here by itself"
            )
        parts.append(part)
    return AffineMap(
        np.vstack([part.weight for part in parts]), np.concatenate([part.bias for part in parts])
    )


_TAKEN = LINEAR_CLASSIFIERS | LINEAR_REGRESSORS | KERNELS | _PERCEPTRONS | _ENSEMBLES | {"Pipeline"}


def _is_sklearn(estimator: object) -> bool:
    return type(estimator).__module__.partition(".")[0] == "sklearn"


def _end(estimator: Any) -> Any:
    return _end(estimator.steps[-1][1]) if type(estimator).__name__ == "Pipeline" else estimator


def _merged(steps: Steps) -> Steps:
    merged: Steps = []
    for step in steps:
        last = merged[-1] if merged else None
        if isinstance(step, AffineMap) and isinstance(last, AffineMap):
            if last.weight.shape[0] != step.weight.shape[1]:
                raise UnsupportedModelError(
                    f"a step makes {last.weight.shape[0]} features, the next one takes "
                    f"{step.weight.shape[1]}; fit the Pipeline as a whole"
                )
            merged[-1] = last.then(step)
        else:
            merged.append(step)
    return merged


def _module(steps: Steps) -> nn.Sequential:
    return nn.Sequential(
        *(ACTIVATIONS[step].layer() if isinstance(step, str) else step.layer() for step in steps)
    )


def _classes(model: Any, label: str) -> tuple[Any, ...] | None:
    name = type(model).__name__
    if name in LINEAR_REGRESSORS | {"SVR", "NuSVR", "MLPRegressor", "MultiOutputRegressor"}:
        return None
    if name == "MultiOutputClassifier":
        return tuple(tuple(np.asarray(each).tolist()) for each in model.classes_)
    return tuple(np.asarray(attribute(model, "classes_", label)).tolist())
