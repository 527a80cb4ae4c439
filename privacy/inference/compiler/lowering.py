"""From an ``nn.Sequential`` to what CKKS evaluates: affine maps with polynomials between them.

Every linear layer becomes its matrix in double precision, and neighbours are multiplied together.
Each step is held against PyTorch's own layer on points of the input range.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.polynomial import Polynomial as Shifted
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from privacy.inference.compiler.activations import MAX_DEGREE, Polynomial, Square
from privacy.inference.compiler.matrices import entries, matrices
from privacy.inference.compiler.modules import NOTHING, layers
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

Vector = NDArray[np.float64]

_MAX_ENTRIES = 30_000_000
"""Of a layer's matrix: some hundred megabytes."""
_MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError)
"""What PyTorch and NumPy raise of weights and settings that do not go together."""
_POINTS = 8
_SLACK = 1e-9
"""By which a layer's matrix may differ from the layer, of its largest output."""
_AGREEMENT = 1e-6
"""By which the whole may differ from the model, of its largest logit."""
_NEGLIGIBLE = 2.0**-30
"""What a power contributes at most, of what the largest mostly does, to be left out."""


@dataclass(frozen=True)
class Affine:
    """y = A·x + b.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array, shape (outputs, inputs)
    bias : ndarray, shape (outputs,)
    structure : scipy.sparse.csr_array of bool, shape (outputs, inputs)
        Where the architecture allows a weight.
    name : str
        The layers it came from; empty for an identity.
    """

    matrix: sparse.csr_array
    bias: Vector
    structure: sparse.csr_array
    name: str

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self.matrix.shape[1])

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.matrix.shape[0])

    def then(self, after: "Affine") -> "Affine":
        """One map that does what ``self`` and then ``after`` do."""
        if not self.name:
            return after  # large inputs make even an identity slow to multiply with
        return Affine(
            sparse.csr_array(after.matrix @ self.matrix),
            after.matrix @ self.bias + after.bias,
            sparse.csr_array((after.structure.astype(float) @ self.structure.astype(float)) > 0),
            " + ".join(name for name in (self.name, after.name) if name),
        )

    def scaled(self, *, after: float = 1.0, shift: float = 0.0) -> "Affine":
        """The map times ``after``, plus ``shift``."""
        name = self.name or "scaling"  # no identity any more
        return Affine(self.matrix * after, self.bias * after + shift, self.structure, name)


@dataclass(frozen=True)
class Activation:
    """A polynomial of degree 2 to 7 on every element: c₀ + c₁x + ... .

    In a :class:`Network` it is monic and depressed: c₀ = c_(d-1) = 0 and c_d = 1.
    """

    coefficients: tuple[float, ...]
    name: str

    @property
    def degree(self) -> int:
        """Its degree."""
        return len(self.coefficients) - 1

    def __call__(self, x: Vector) -> Vector:
        """Evaluate on every element."""
        return np.asarray(np.polynomial.polynomial.polyval(x, self.coefficients), dtype=np.float64)

    def slope(self, x: Vector) -> Vector:
        """The derivative, elementwise."""
        derivative = np.polynomial.polynomial.polyder(self.coefficients)
        return np.asarray(np.polynomial.polynomial.polyval(x, derivative), dtype=np.float64)

    def curvature(self, magnitude: Vector) -> float:
        """A bound of half the second derivative, squared, where |x| ≤ ``magnitude``."""
        second = np.abs(np.polynomial.polynomial.polyder(self.coefficients, 2))
        return float(np.max(np.polynomial.polynomial.polyval(magnitude, second)) / 2) ** 2


@dataclass(frozen=True)
class Network:
    """Affine maps with one activation between each and the next.

    Attributes
    ----------
    affines : tuple of Affine
    activations : tuple of Activation, one fewer
    """

    affines: tuple[Affine, ...]
    activations: tuple[Activation, ...]

    def __call__(self, x: Vector) -> Vector:
        """Logits of inputs of shape (inputs, ...), in double precision."""
        for affine, activation in zip(self.affines, (*self.activations, None), strict=True):
            bias = affine.bias.reshape(-1, *[1] * (x.ndim - 1))
            x = affine.matrix @ x + bias
            if activation is not None:
                x = activation(x)
        return x


def reference(model: nn.Sequential) -> nn.Sequential:
    """The model itself, as PyTorch runs it: a copy in evaluation mode and double precision.

    Raises
    ------
    TypeError, UnsupportedLayerError
        If it cannot be compiled, whatever its shapes.
    """
    named = [*layers(model)]
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of a stranger raises
        raise UnsupportedLayerError(_uncopied(model, named, error)) from error
    return copied.cpu().double().eval()


def _uncopied(model: nn.Sequential, named: list[tuple[str, nn.Module]], error: Exception) -> str:
    """Which attribute of which layer stands in the way of a copy."""
    containers = [
        (f"{key} (Sequential)", module)
        for key, module in model.named_modules()
        if key and type(module) is nn.Sequential
    ]
    places = [(f"layer {name}", module) for name, module in [*named, *containers]]
    for place, module in [*places, ("model", model)]:
        held = {**vars(module), **module._parameters, **module._buffers}
        for key in ("_modules", "_parameters", "_buffers"):
            held.pop(key)
        for key, value in held.items():
            try:
                copy.deepcopy(value)
            except Exception:
                return (
                    f"{place} holds {key}, which cannot be copied (kept activations and locks "
                    f"cannot); remove it: del module.{key}"
                )
    return f"model cannot be copied: {error}"


def lower(
    model: nn.Sequential,
    input_shape: Sequence[int],
    input_range: tuple[float, float] = (-1.0, 1.0),
    *,
    widest: int | None = None,
) -> Network:
    """Turn a trained model into affine maps and polynomials.

    Parameters
    ----------
    model : nn.Sequential
        It is copied, put into evaluation mode and double precision; the original is untouched.
    input_shape : sequence of int
        The shape of one input, without the batch.
    input_range : tuple of float
        Of its elements. A power of a polynomial that contributes nothing over it is left out.
    widest : int, optional
        How many values an activation may be given.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Sequential``.
    UnsupportedLayerError
        If a layer cannot be evaluated under encryption, or does not do what its type says.
    CannotPlanError
        If a layer is too large.
    ValueError
        If the model does not fit ``input_shape``, has weights that are
        not finite, or does not end in a vector of logits.
    """
    shape = tuple(int(size) for size in input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape is {input_shape}; give the positive sizes of one input")
    steps: list[Affine | Activation] = []
    with torch.no_grad():
        chain = _run(reference(model), shape, input_range)
        for place in chain:
            if widest is not None and isinstance(place.layer, Square | Polynomial):
                _check_width(place, widest)
        ends = tuple(chain[-1].outputs.shape[1:]) if chain else shape
        if len(ends) != 1:
            raise ValueError(f"the model ends in shape {ends}; end it in nn.Flatten and nn.Linear")
        span = _Span.whole(math.prod(shape), input_range)
        for place in chain:
            step = (
                _activation(place, span)
                if isinstance(place.layer, Square | Polynomial)
                else _affine(place)
            )
            span = span.through(step)
            steps.append(step)
    return _canonical(steps, math.prod(shape))


def check_agreement(
    network: Network, model: nn.Sequential, input_shape: Sequence[int], samples: Vector
) -> None:
    """Hold a lowered network against the model itself.

    Parameters
    ----------
    network : Network
    model : nn.Sequential
        From :func:`reference`.
    input_shape : sequence of int
    samples : ndarray, shape (points, inputs)
        Points of the input range.

    Raises
    ------
    UnsupportedLayerError
        If they do not answer alike.
    """
    with torch.no_grad(), np.errstate(all="ignore"):
        expected = model(torch.from_numpy(samples).reshape(-1, *input_shape)).numpy()
        found = network(samples.T).T
    same_shape = found.shape == expected.shape
    with np.errstate(all="ignore"):
        error = np.abs(found - expected) if same_shape else np.array(np.inf)
    largest = float(np.abs(expected).max(initial=0.0))
    # Written so that a NaN is not agreement.
    if not bool((error <= _AGREEMENT * largest).all()):
        raise UnsupportedLayerError(
            "compiled, the model does not answer as PyTorch runs it: on points of input_range "
            f"logits differ by {float(error.max()):.3g}, the largest is {largest:.3g}. Either its "
            "forward does something else than its layers in a row, or a polynomial is too steep "
            "for double precision: fit one of a lower degree, or over the values it meets"
        )


@dataclass(frozen=True)
class _Place:
    """A layer at its place in the model: what it was given, and what it made of it."""

    name: str
    layer: nn.Module
    inputs: Tensor
    outputs: Tensor


def _run(
    model: nn.Sequential, shape: tuple[int, ...], input_range: tuple[float, float]
) -> list[_Place]:
    """Run the layers that do something on points of the range, one after the other."""
    low, high = input_range
    # A fixed seed: the same model must compile alike everywhere.
    points = np.random.default_rng(1).uniform(low, high, (_POINTS, *shape))
    values = torch.from_numpy(points)
    chain = []
    for name, layer in layers(model):
        if type(layer) in NOTHING:
            continue
        for key, value in (*layer.named_parameters(), *layer.named_buffers()):
            if not bool(torch.isfinite(value).all()):
                held = "NaN" if bool(torch.isnan(value).any()) else "infinity"
                raise ValueError(f"layer {name}: {key} holds {held}; load other weights")
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and (
            layer.running_mean is None or layer.running_var is None
        ):
            raise UnsupportedLayerError(
                f"layer {name} has no running statistics and would mix the images of a batch; "
                "train it with track_running_stats=True"
            )
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            _check_variances(name, layer)
        here = tuple(values.shape[1:])
        try:
            outputs = layer(values)
        except _MISFITS as error:
            raise ValueError(
                f"layer {name} does not take inputs of shape {here}: {error}"
            ) from error
        if outputs.ndim < 2 or len(outputs) != _POINTS:
            raise UnsupportedLayerError(
                f"layer {name} makes shape {tuple(outputs.shape)} of {_POINTS} inputs of shape "
                f"{here}: it mixes the images of a batch"
            )
        if outputs.numel() == 0:
            raise ValueError(
                f"layer {name} has no outputs (shape {tuple(outputs.shape[1:])} of an input); give "
                "it 1 or more, or leave it out"
            )
        if not bool(torch.isfinite(outputs).all()):
            if not bool(torch.isfinite(layer(torch.zeros_like(values))).all()):
                raise ValueError(
                    f"layer {name} makes no finite numbers even of zeros, though its weights are "
                    "finite; look at its settings"
                )
            raise CannotPlanError(
                f"over input_range the values after layer {name} are larger than any number of "
                "double precision; narrow input_range, or make the model shallower"
            )
        chain.append(_Place(name, layer, values, outputs))
        values = outputs
    return chain


def _check_variances(name: str, layer: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    """Refuse a BatchNorm that takes the root of zero, or of less."""
    variances = cast(Tensor, layer.running_var)
    least = float(variances.min()) if variances.numel() else 1.0
    if least + layer.eps <= 0:
        raise ValueError(
            f"layer {name}: running_var goes down to {least:.3g} and eps is {layer.eps:.3g}, which "
            "leaves no variance to divide by; load other weights"
        )


def _check_width(place: _Place, widest: int) -> None:
    size = place.inputs[0].numel()
    if size > widest:
        raise CannotPlanError(
            f"layer {place.name} is given {size:,} values, and the largest ring at 128-bit "
            f"security (N={2 * widest}) has {widest:,} slots for them; use fewer channels, a "
            "larger stride or nn.AvgPool2d before it, or a smaller input_shape"
        )


def _affine(place: _Place) -> Affine:
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
    except _MISFITS as error:
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


@dataclass(frozen=True)
class _Span:
    """Between which values each element lies over the input range."""

    low: Vector
    high: Vector

    @classmethod
    def whole(cls, size: int, input_range: tuple[float, float]) -> "_Span":
        """Of the inputs."""
        low, high = input_range
        return cls(np.full(size, low), np.full(size, high))

    def through(self, step: Affine | Activation) -> "_Span":
        """After a step; wider than need be."""
        with np.errstate(all="ignore"):
            if isinstance(step, Affine):
                centre = step.matrix @ ((self.low + self.high) / 2) + step.bias
                radius = abs(step.matrix) @ ((self.high - self.low) / 2)
                return _Span(centre - radius, centre + radius)
            size = np.maximum(np.abs(self.low), np.abs(self.high))
            most: Vector = np.asarray(
                np.polynomial.polynomial.polyval(size, np.abs(step.coefficients)), dtype=np.float64
            )
            return _Span(-most, most)


def _activation(place: _Place, span: _Span) -> Activation:
    """The polynomial, without highest powers that contribute nothing to it over the range."""
    if isinstance(place.layer, Square):
        return Activation((0.0, 0.0, 1.0), place.name)
    coefficients = cast(Polynomial, place.layer).coefficients.numpy()
    powers = np.arange(len(coefficients))
    most = float(np.maximum(np.abs(span.low), np.abs(span.high)).max())
    usual = math.sqrt(float(place.inputs.square().mean()))
    with np.errstate(all="ignore"):
        # What a power is at most, beside what the polynomial is mostly made of.
        at_most = np.abs(coefficients) * most**powers
        least = _NEGLIGIBLE * (np.abs(coefficients) * usual**powers).max()
    there = np.flatnonzero(~(at_most <= least))
    kept = coefficients[: int(there.max(initial=0)) + 1]
    if len(kept) > MAX_DEGREE + 1:
        raise UnsupportedLayerError(
            f"layer {place.name} has {len(kept)} coefficients; give 2 to {MAX_DEGREE + 1} "
            f"(degree 1 to {MAX_DEGREE})"
        )
    return Activation(tuple(kept.tolist()), place.name)


def _identity(size: int) -> Affine:
    eye = sparse.csr_array(sparse.identity(size, format="csr"))
    return Affine(eye, np.zeros(size), sparse.csr_array(eye != 0), "")


def _canonical(steps: list[Affine | Activation], inputs: int) -> Network:
    """Merge neighbours, and fold what can be folded of the activations into them."""
    affines: list[Affine] = [_identity(inputs)]
    activations: list[Activation] = []
    for step in steps:
        if isinstance(step, Affine):
            affines[-1] = affines[-1].then(step)
        elif step.degree < 2:
            offset, factor = (*step.coefficients, 0.0)[:2]
            affines[-1] = affines[-1].scaled(after=factor, shift=offset)
        else:
            activations.append(step)
            affines.append(_identity(affines[-1].outputs))
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
