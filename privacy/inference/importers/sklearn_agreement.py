"""The check of an imported estimator against the estimator itself, on drawn inputs."""

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from privacy.inference.decision import decide
from privacy.inference.errors import UnsupportedModelError
from privacy.inference.importers.affine_map import AffineMap, Steps, Vector, inputs

_AGREEMENT = 1e-9
"""By which answers may differ from the estimator's, of the size of the sums behind them."""
_POINTS = 18


def check_agreement(
    module: nn.Sequential,
    steps: Steps,
    estimator: Any,
    model: Any,
    classes: tuple[Any, ...] | None,
) -> bool:
    """Compare the module with the estimator itself, on drawn inputs.

    Returns whether it predicts several labels of one input.
    """
    generator = np.random.default_rng(0)
    points = generator.normal(size=(_POINTS, inputs(steps)))
    points *= np.resize([0.1, 1.0, 100.0], (_POINTS, 1))  # saturated outputs, and others
    with warnings.catch_warnings(), torch.no_grad(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of features without names
        expected = _answers(estimator, model, points)
        predicted = np.asarray(estimator.predict(points))
        outputs = module(torch.from_numpy(points)).numpy()
        room = _AGREEMENT * _sizes(steps, points).max(axis=1, keepdims=True)
        compared = outputs
        if _has_output_function(model):
            compared = _probabilities(outputs, model.out_activation_)
        agree = compared.shape == expected.shape and bool((abs(compared - expected) <= room).all())
        agree = agree and (classes is None or _decides_alike(outputs, predicted, classes, room))
    if not agree:
        raise UnsupportedModelError(
            f"{type(estimator).__name__} answers otherwise than its fitted attributes tell. If "
            "they were changed after fit, fit it again; else this version of scikit-learn writes "
            "them in another way than is known here: please report it"
        )
    return classes is not None and predicted.ndim == 2


def _has_output_function(model: Any) -> bool:
    return type(model).__name__ == "MLPClassifier"


def _answers(estimator: Any, model: Any, points: Vector) -> Vector:
    """The estimator's own, shape (points, outputs)."""
    if _has_output_function(model):
        answers = estimator.predict_proba(points)
        answers = answers[:, 1:] if _outputs(model) == 1 else answers
    elif type(model).__name__ == "MultiOutputClassifier":
        inputs = points if estimator is model else estimator[:-1].transform(points)
        answers = np.stack([part.decision_function(inputs) for part in model.estimators_], axis=1)
    elif hasattr(estimator, "decision_function"):
        answers = estimator.decision_function(points)
    else:
        answers = estimator.predict(points)
    return np.asarray(answers, dtype=np.float64).reshape(len(points), -1)


def _outputs(model: Any) -> int:
    return int(model.n_outputs_)


def _probabilities(outputs: Vector, function: str) -> Vector:
    values = torch.from_numpy(outputs)
    return (values.softmax(1) if function == "softmax" else values.sigmoid()).numpy()


def _sizes(steps: Steps, points: Vector) -> Vector:
    """How large the parts are whose sums the outputs are: what rounding is measured by."""
    sizes = abs(points)
    for step in steps:
        if isinstance(step, AffineMap):
            sizes = sizes @ abs(step.weight).T + abs(step.bias)
        elif step == "logistic":
            sizes = np.ones_like(sizes)
    return sizes + 1.0


def _decides_alike(
    outputs: Vector, predicted: NDArray[Any], classes: tuple[Any, ...], room: Vector
) -> bool:
    """Whether the estimator predicts the classes that the outputs decide for, ties aside."""
    if predicted.ndim == 2:
        clear = abs(outputs) > room
        pairs = [pair if isinstance(pair, tuple) else (0, 1) for pair in classes]
        names = np.array([[pair[side] for pair in pairs] for side in (0, 1)], dtype=object)
        decided = np.where(outputs > 0, names[1], names[0])
        return decided.shape == predicted.shape and bool((decided == predicted)[clear].all())
    if outputs.shape[1] == 1:
        clear = abs(outputs[:, 0]) > room[:, 0]
    else:
        first, second = -np.partition(-outputs, 1, axis=1)[:, :2].T
        clear = first - second > 2 * room[:, 0]
    labels = decide(outputs)
    return all(
        classes[label] == name
        for label, name, is_clear in zip(labels, predicted.tolist(), clear, strict=True)
        if is_clear
    )
