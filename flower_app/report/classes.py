"""A classifier's right and wrong answers, class by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def confusion(
    answers: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], *, names: Sequence[str]
) -> dict[str, Any]:
    """The confusion matrix, for ``metrics.json``: ``counts[true][answered]``.

    Parameters
    ----------
    answers, labels : ndarray of int, shape (n,)
        Classes from 0 on.
    names : sequence of str
        Of all classes.
    """
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (labels, answers), 1)
    return {"classes": list(names), "counts": counts.tolist()}


def by_class(matrix: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each class: its recall, precision, count, and its cells with a shade."""
    counts = np.array(matrix["counts"])
    of_class, of_answer = counts.sum(axis=1), counts.sum(axis=0)
    rows = []
    for k, name in enumerate(matrix["classes"]):
        right = int(counts[k, k])
        rows.append(
            {
                "name": name,
                "recall": right / int(of_class[k]) if of_class[k] else None,
                "precision": right / int(of_answer[k]) if of_answer[k] else None,
                "count": int(of_class[k]),
                "cells": [
                    # The root, so that the few errors show beside the many right answers.
                    {"count": int(v), "shade": f"{0.75 * (v / max(1, of_class[k])) ** 0.5:.2f}"}
                    for v in counts[k]
                ],
            }
        )
    return rows


def commonest_class(matrix: dict[str, Any]) -> float:
    """The share of the commonest class: the accuracy of always answering it."""
    of_class = np.array(matrix["counts"]).sum(axis=1)
    return float(of_class.max() / max(1, of_class.sum()))
