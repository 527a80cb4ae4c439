"""A plan's steps in the clear: what the workers compute on shares, on the integers themselves."""

import numpy as np

from privacy.shared_inference.plan import (
    AffineStep,
    LargestStep,
    LineStep,
    MaximumStep,
    Plan,
    ReluStep,
    Step,
)
from privacy.shared_inference.ring import Ring, as_signed


def in_the_clear(plan: Plan, weights: Ring, inputs: Ring) -> Ring:
    """The last step's integers modulo 2^64, shape (outputs, images).

    Parameters
    ----------
    plan : Plan
    weights : ndarray of uint64, shape (plan.weights,)
        Of all affine steps in a row.
    inputs : ndarray of uint64, shape (plan.inputs, images)
    """
    wires, start = [np.ascontiguousarray(inputs)], 0
    for step in plan.steps:
        if isinstance(step, AffineStep):
            own = weights[start : start + step.weights]
            start += step.weights
            wires.append(affine(step, own, wires))
        else:
            wires.append(_followed(step, wires))
    return wires[-1]


def affine(step: AffineStep, weights: Ring, wires: list[Ring]) -> Ring:
    """The sum of a step's matrices on wires, plus its bias; weights as the plan orders them."""
    images = wires[step.sources[0]].shape[1] if step.sources else wires[0].shape[1]
    total = np.repeat(weights[-step.size :, None], images, axis=1)
    start = 0
    for source, structure in zip(step.sources, step.structures, strict=True):
        structure.multiply(weights[start : start + structure.entries], wires[source], total)
        start += structure.entries
    return total


def _followed(step: Step, wires: list[Ring]) -> Ring:
    if isinstance(step, AffineStep):
        raise TypeError("an affine step has weights")
    values = as_signed(wires[step.source])
    if isinstance(step, MaximumStep):
        larger = np.maximum(values[step.left], values[step.right])
        return np.concatenate([larger, values[step.rest]]).astype(np.uint64)
    if isinstance(step, LargestStep):
        return np.ascontiguousarray(values[step.windows].max(axis=1)).astype(np.uint64)
    short = values >> step.shift
    if isinstance(step, LineStep):
        line = step.offset + step.slope * short
        for knot, turn in zip(step.knots, step.turns, strict=True):
            line += turn * np.maximum(short - knot, 0)
        return line.astype(np.uint64)
    if isinstance(step, ReluStep):
        short = np.maximum(short, 0)
    ring = short.astype(np.uint64)
    return ring if isinstance(step, ReluStep) else ring * ring
