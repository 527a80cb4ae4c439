"""From an ``nn.Sequential`` to what CKKS evaluates: affine maps with polynomials between them.

Every linear layer becomes its matrix in double precision, and neighbours are multiplied together.
Each step is compared with PyTorch's own layer on points of the input range.
"""

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from numpy.polynomial import Polynomial as Shifted
from torch import nn

from privacy.inference.arithmetic.network import Activation, Affine, Network, Vector
from privacy.inference.compiler.activations import MAX_DEGREE, Polynomial, Square
from privacy.inference.compiler.forward import MISFITS, LayerRun, reference, run_layers
from privacy.inference.compiler.matrices import entries, matrices
from privacy.inference.compiler.ranges import Interval
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

_MAX_ENTRIES = 30_000_000
"""Of a layer's matrix: some hundred megabytes."""
_SLACK = 1e-9
"""By which a layer's matrix may differ from the layer, of its largest output."""
_AGREEMENT = 1e-6
"""By which the whole may differ from the model, of its largest logit."""
_NEGLIGIBLE = 2.0**-30
"""Largest part of a power in the polynomial at which the power is left out."""


def lower(
    model: nn.Sequential,
    input_shape: Sequence[int],
    input_range: tuple[float, float] = (-1.0, 1.0),
    *,
    widest: int | None = None,
) -> Network:
    """Turn a trained model, of which a copy is used, into affine maps and polynomials.

    Powers of a polynomial that contribute nothing over ``input_range`` are left out. ``widest``
    is the largest number of values that an activation may take.

    Raises
    ------
    UnsupportedLayerError
        If a layer cannot be evaluated under encryption, or differs from its type.
    CannotPlanError
        If a layer is too large.
    ValueError
        If the model does not fit ``input_shape``, has weights that are not finite, or does not
        end in a vector of logits.
    """
    shape = tuple(input_shape)
    steps: list[Affine | Activation] = []
    with torch.no_grad():
        chain = run_layers(reference(model), shape, input_range)
        for place in chain:
            if widest is not None and isinstance(place.layer, Square | Polynomial):
                _check_width(place, widest)
        ends = tuple(chain[-1].outputs.shape[1:]) if chain else shape
        if len(ends) != 1:
            raise ValueError(f"the model ends in shape {ends}; end it in nn.Flatten and nn.Linear")
        span = Interval.over(math.prod(shape), *input_range)
        for place in chain:
            step: Affine | Activation
            with np.errstate(all="ignore"):
                if isinstance(place.layer, Square | Polynomial):
                    step = _activation(place, span)
                    sizes = Activation(tuple(map(abs, step.coefficients)), "")
                    most = sizes(span.magnitude)
                    span = Interval(-most, most)
                else:
                    step = _affine(place)
                    span = span.through(step)
            steps.append(step)
    return _canonical(steps, math.prod(shape))


def check_agreement(
    network: Network, model: nn.Sequential, input_shape: Sequence[int], samples: Vector
) -> None:
    """Compare a lowered network with the model itself, from :func:`reference`.

    ``samples`` are points of the input range, shape (points, inputs).

    Raises
    ------
    UnsupportedLayerError
        If their logits differ.
    """
    with torch.no_grad(), np.errstate(all="ignore"):
        expected = model(torch.from_numpy(samples).reshape(-1, *input_shape)).numpy()
        logits = network(samples.T).T
    same_shape = logits.shape == expected.shape
    with np.errstate(all="ignore"):
        error = np.abs(logits - expected) if same_shape else np.array(np.inf)
    largest = float(np.abs(expected).max(initial=0.0))
    # Written so that a NaN is not agreement.
    if not bool((error <= _AGREEMENT * largest).all()):
        raise UnsupportedLayerError(
            "compiled, the model does not answer as PyTorch runs it: on points of input_range "
            f"logits differ by {float(error.max()):.3g}, the largest is {largest:.3g}. Either its "
            "forward does something else than its layers in a row, or a polynomial is too steep "
            "for double precision: fit one of a lower degree, or over the values it meets"
        )


def _check_width(place: LayerRun, widest: int) -> None:
    size = place.inputs[0].numel()
    if size > widest:
        raise CannotPlanError(
            f"layer {place.name} is given {size:,} values, and the largest ring at 128-bit "
            f"security (N={2 * widest}) has {widest:,} slots for them; use fewer channels, a "
            "larger stride or nn.AvgPool2d before it, or a smaller input_shape"
        )


def _affine(place: LayerRun) -> Affine:
    name, layer = place.name, place.layer
    shape = tuple(place.inputs.shape[1:])
    size = entries(layer, place.inputs[0].numel(), place.outputs[0].numel())
    if size > _MAX_ENTRIES:
        raise CannotPlanError(
            f"layer {name} is a matrix of {size:,} weights on inputs of shape {shape}, "
            f"{_MAX_ENTRIES:,} are compiled at most; use fewer channels, a larger stride, "
            "nn.AvgPool2d before it, or a smaller input_shape"
        )
    try:
        matrix, structure = matrices(layer, shape)
    except MISFITS as error:
        raise ValueError(f"layer {name}: {error}") from error
    nothing = torch.zeros(1, *shape, dtype=torch.float64, device="cpu")
    bias = layer(nothing).flatten().numpy().copy()
    inputs, expected = place.inputs.flatten(1).numpy(), place.outputs.flatten(1).numpy()
    room = _SLACK * (np.abs(expected).max(initial=0.0) + np.abs(bias).max(initial=0.0))
    if matrix.shape != (expected.shape[1], inputs.shape[1]) or not bool(
        (np.abs((matrix @ inputs.T).T + bias - expected) <= room).all()
    ):
        raise UnsupportedLayerError(
            f"layer {name} does something else than a {type(layer).__name__} with its weights; "
            "leave it as PyTorch makes it"
        )
    return Affine(matrix, bias, structure, name)


def _activation(place: LayerRun, span: Interval) -> Activation:
    """The polynomial, without highest powers that contribute nothing to it over the range."""
    if isinstance(place.layer, Square):
        return Activation((0.0, 0.0, 1.0), place.name)
    coefficients = cast(Polynomial, place.layer).coefficients.numpy()
    powers = np.arange(len(coefficients))
    most = float(span.magnitude.max())
    usual = math.sqrt(float(place.inputs.square().mean()))
    with np.errstate(all="ignore"):
        # The largest value of each power, beside the usual one of the largest part.
        at_most = np.abs(coefficients) * most**powers
        least = _NEGLIGIBLE * (np.abs(coefficients) * usual**powers).max()
    there = np.flatnonzero(~(at_most <= least))
    relevant = coefficients[: int(there.max(initial=0)) + 1]
    if len(relevant) > MAX_DEGREE + 1:
        raise UnsupportedLayerError(
            f"layer {place.name} has {len(relevant)} coefficients; give 2 to {MAX_DEGREE + 1} "
            f"(degree 1 to {MAX_DEGREE})"
        )
    return Activation(tuple(relevant.tolist()), place.name)


def _canonical(steps: list[Affine | Activation], inputs: int) -> Network:
    """Merge neighbours, and fold scales and shifts of the activations into them."""
    affines: list[Affine] = [Affine.identity(inputs)]
    activations: list[Activation] = []
    for step in steps:
        if isinstance(step, Affine):
            affines[-1] = affines[-1].then(step)
        elif step.degree < 2:
            offset, factor = (*step.coefficients, 0.0)[:2]
            affines[-1] = affines[-1].scaled(after=factor, shift=offset)
        else:
            activations.append(step)
            affines.append(Affine.identity(affines[-1].outputs))
    for index, activation in enumerate(activations):
        shift, lead, constant, monic = _depressed(activation)
        activations[index] = monic
        affines[index] = affines[index].scaled(shift=shift)
        after = affines[index + 1]
        moved = after.bias + after.matrix @ np.full(after.inputs, constant)
        affines[index + 1] = Affine(after.matrix * lead, moved, after.structure, after.name)
    return Network(tuple(affines), tuple(activations))


def _depressed(activation: Activation) -> tuple[float, float, float, Activation]:
    """(shift, lead, constant, q) with p(x) = lead·q(x + shift) + constant.

    q is monic, without a second-highest power and without a constant.
    """
    degree, lead = activation.degree, activation.coefficients[-1]
    shift = activation.coefficients[-2] / (degree * lead)
    moved = Shifted(activation.coefficients)(Shifted([-shift, 1.0]))
    coefficients = np.zeros(degree + 1)
    coefficients[: len(moved.coef)] = np.asarray(moved.coef, dtype=np.float64) / lead
    constant = float(coefficients[0]) * lead
    coefficients[[0, degree - 1]], coefficients[degree] = 0.0, 1.0
    return shift, lead, constant, Activation(tuple(coefficients.tolist()), activation.name)
