"""The data, and a logistic regression as two arrays."""

import warnings
from functools import lru_cache

import numpy as np
from flwr.app import Array, ArrayRecord
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import SGDClassifier

# Public ranges of the thirty measurements, from the literature: they depend on no patient here.
_MEANS = [14, 19, 92, 650, 0.1, 0.1, 0.09, 0.05, 0.18, 0.06]
_ERRORS = [0.4, 1.2, 2.9, 40, 0.007, 0.025, 0.03, 0.012, 0.02, 0.004]
_WORST = [16, 26, 107, 880, 0.13, 0.25, 0.27, 0.11, 0.29, 0.08]
_SCALE = np.array([*_MEANS, *_ERRORS, *_WORST])


@lru_cache(maxsize=1)
def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Patients for training and for testing."""
    x, y = load_breast_cancer(return_X_y=True)
    x = (x / _SCALE - 1).astype(np.float64)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order[:469]], y[order[:469]], x[order[469:]], y[order[469:]]


def practice(partition: int, partitions: int) -> tuple[np.ndarray, np.ndarray]:
    """The patients of one practice."""
    x, y, _, _ = load()
    return x[partition::partitions], y[partition::partitions]


def classifier(arrays: ArrayRecord) -> SGDClassifier:
    """A scikit-learn classifier that stands where the arrays say."""
    model = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, alpha=1e-3)
    model.classes_ = np.array([0, 1])
    model.coef_ = arrays["coef"].numpy()
    model.intercept_ = arrays["intercept"].numpy()
    model.t_ = 1.0
    return model


def train(arrays: ArrayRecord, x: np.ndarray, y: np.ndarray) -> ArrayRecord:
    """Two passes over a practice's patients."""
    model = classifier(arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            model.partial_fit(x, y)
    return record(model.coef_, model.intercept_)


def record(coef: np.ndarray, intercept: np.ndarray) -> ArrayRecord:
    """The model as Flower sends it."""
    return ArrayRecord({"coef": Array(coef), "intercept": Array(intercept)})


def accuracy(arrays: ArrayRecord) -> float:
    """On patients that nobody trained on."""
    _, _, x, y = load()
    return float(classifier(arrays).score(x, y))
