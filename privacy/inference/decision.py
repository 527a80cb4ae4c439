"""From logits to classes or labels: the largest of several, or each against a threshold."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privacy.arguments import double_array, number


def decide(logits: ArrayLike, *, threshold: float = 0.0) -> NDArray[np.int64]:
    """The class that each row of logits stands for.

    Parameters
    ----------
    logits : array_like
        Of shape (images, logits).
    threshold : float
        Where a single logit decides: class 1 above it, class 0 at it and below. The default, 0,
        is where its sigmoid is a half. Several logits have no threshold: the largest decides, of
        equal ones the first.

    Returns
    -------
    ndarray of int, shape (images,)
    """
    values = double_array("logits", logits, "shape (images, logits)")
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"logits has shape {values.shape}; give (images, logits)")
    threshold = number("threshold", threshold)
    if values.shape[1] > 1:
        if threshold != 0.0:
            raise ValueError(
                f"threshold is {threshold:g}; of {values.shape[1]} logits the largest decides: "
                "leave threshold out"
            )
        return np.asarray(values.argmax(axis=1), dtype=np.int64)
    return (values[:, 0] > threshold).astype(np.int64)


def decide_each(logits: ArrayLike, *, threshold: float = 0.0) -> NDArray[np.bool_]:
    """Which labels hold for each row of logits, each label by itself.

    Parameters
    ----------
    logits : array_like
        Of shape (images, logits): one for each label.
    threshold : float
        A label holds where its logit is above it. The default, 0, is where its sigmoid is a half.

    Returns
    -------
    ndarray of bool, shape (images, logits)
    """
    values = double_array("logits", logits, "shape (images, logits)")
    if values.ndim != 2 or values.shape[1] < 1:
        raise ValueError(f"logits has shape {values.shape}; give (images, logits)")
    return np.asarray(values > number("threshold", threshold))
