"""How noise at each place of a network reaches the logits, to first order.

Errors of CKKS are independent, small and about Gaussian in every slot, so the variance of a logit
is the sum over places of (variance there) x (squared derivatives of the logit). The derivatives are
taken at inputs drawn evenly from the declared range, and once more at the bounds of interval
arithmetic, where they hold for every input.
"""

from dataclasses import dataclass

import numpy as np

from privacy.inference._bounds import Ranges
from privacy.inference._lowering import Network, Vector

_SAMPLES = 16


@dataclass(frozen=True)
class Stage:
    """One affine map; each gain is the largest over the logits.

    Attributes
    ----------
    energy : float
        Mean of x² over its inputs.
    inputs : float
        Gain of a unit variance on each term of its sums, weighted: ΣA².
    outputs : float
        Gain of a unit variance on each of its outputs.
    activated : float
        Gain of a unit variance on each output of the activation after it.
    """

    energy: float
    inputs: float
    outputs: float
    activated: float


@dataclass(frozen=True)
class Sensitivity:
    """Gains by affine map, for typical inputs and for the worst."""

    typical: tuple[Stage, ...]
    worst: tuple[Stage, ...]


def sensitivity(network: Network, bounds: Ranges) -> Sensitivity:
    """Gains of every stage of ``network``."""
    # A fixed seed: a plan must come out the same whenever the same model is compiled, and no
    # secret depends on it.
    generator = np.random.default_rng(0)
    low, high = bounds.inputs.low[0], bounds.inputs.high[0]
    samples = generator.uniform(low, high, (_SAMPLES, network.affines[0].inputs))
    typical = [_at_sample(network, x) for x in samples]
    mean = tuple(
        Stage(*(float(value) for value in np.mean([_fields(one) for one in stage], axis=0)))
        for stage in zip(*typical, strict=True)
    )
    return Sensitivity(mean, _at_bounds(network, bounds))


def _fields(stage: Stage) -> tuple[float, float, float, float]:
    return stage.energy, stage.inputs, stage.outputs, stage.activated


def _at_sample(network: Network, x: Vector) -> tuple[Stage, ...]:
    inputs, slopes = [x], []
    for affine, activation in zip(network.affines, network.activations, strict=False):
        z = affine.matrix @ inputs[-1] + affine.bias
        slopes.append(activation.slope(z))
        inputs.append(activation(z))
    return _backwards(network, inputs, slopes, absolute=False)


def _at_bounds(network: Network, bounds: Ranges) -> tuple[Stage, ...]:
    inputs = [bounds.inputs.magnitude, *(after.magnitude for after in bounds.after)]
    slopes = []
    for activation, before in zip(network.activations, bounds.before, strict=True):
        slopes.append(activation.steepest(before.magnitude))
    return _backwards(network, inputs, slopes, absolute=True)


def _backwards(
    network: Network, inputs: list[Vector], slopes: list[Vector], *, absolute: bool
) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    jacobian = np.eye(network.affines[-1].outputs)
    activated = np.ones((1, 1))
    for index in range(len(network.affines) - 1, -1, -1):
        matrix = network.affines[index].matrix
        squared_rows = np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel()
        stages.append(
            Stage(
                energy=float(np.mean(inputs[index] ** 2)),
                inputs=float((jacobian**2 @ squared_rows).max()),
                outputs=float((jacobian**2).sum(axis=1).max()),
                activated=float((activated**2).sum(axis=1).max()),
            )
        )
        if index:
            activated = (
                (matrix.T @ jacobian.T).T if not absolute else (abs(matrix).T @ jacobian.T).T
            )
            jacobian = activated * slopes[index - 1]
    return tuple(reversed(stages))
