"""From an ``nn.Sequential`` to what CKKS evaluates: affine maps with polynomials between them.

Every linear layer is turned into its matrix by evaluating it, in double precision, on the unit
vectors of its input; neighbours are multiplied together. A second matrix, made from the same
layers with every weight set to one, says which entries the *architecture* allows to be non-zero:
the packing is derived from it alone, so that a plan does not tell which weights are zero.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Polynomial as Shifted
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor, nn

from privacy.inference.activations import Polynomial, Square

Vector = NDArray[np.float64]

_LINEAR = (
    nn.Linear,
    nn.Conv2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.Flatten,
)
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
_REMEDIES = {
    "ReLU": "train with privacy.inference.Square(), or a Polynomial.fitted to it, in its place",
    "Sigmoid": "at the end of a model leave it out (one logit decides at 0, where it is a half); "
    "elsewhere train with privacy.inference.Square(), or a Polynomial.fitted to it, in its place",
    "MaxPool2d": "use nn.AvgPool2d of the same size",
    "AdaptiveMaxPool2d": "use nn.AdaptiveAvgPool2d of the same size",
    "Softmax": "leave it out: the class of the largest logit is the same",
    "LogSoftmax": "leave it out: the class of the largest logit is the same",
    "GroupNorm": "use nn.BatchNorm2d, which becomes constants after training",
    "LayerNorm": "use nn.BatchNorm1d, which becomes constants after training",
}
_SMOOTH = ("Tanh", "GELU", "SiLU", "LeakyReLU", "ELU", "Softplus", "Mish", "Hardswish")
_CHUNK = 256


class UnsupportedLayerError(ValueError):
    """A layer that CKKS cannot evaluate; the message names it and offers what can."""


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
        The layers it came from.
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
        return Affine(
            sparse.csr_array(after.matrix @ self.matrix),
            after.matrix @ self.bias + after.bias,
            sparse.csr_array((after.structure.astype(float) @ self.structure.astype(float)) > 0),
            " + ".join(name for name in (self.name, after.name) if name),
        )

    def scaled(self, *, after: float = 1.0, shift: float = 0.0) -> "Affine":
        """The map times ``after``, plus ``shift``."""
        return Affine(self.matrix * after, self.bias * after + shift, self.structure, self.name)


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


def lower(model: nn.Sequential, input_shape: Sequence[int]) -> Network:
    """Turn a trained model into affine maps and polynomials.

    Parameters
    ----------
    model : nn.Sequential
        It is copied, put into evaluation mode and double precision; the original is untouched.
    input_shape : sequence of int
        The shape of one input, without the batch.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Sequential``.
    UnsupportedLayerError
        If a layer cannot be evaluated under encryption.
    ValueError
        If the model does not fit ``input_shape``, has weights that are
        not finite, or does not end in a vector of logits.
    """
    if not isinstance(model, nn.Sequential):
        raise TypeError(
            f"model is a {type(model).__name__}; give an nn.Sequential, which says in what order "
            "its layers apply"
        )
    shape = tuple(int(size) for size in input_shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"input_shape is {input_shape}; give the positive sizes of one input")
    steps: list[Affine | Activation] = [_identity(math.prod(shape))]
    with torch.no_grad():
        for name, layer in _walk(copy.deepcopy(model).double().eval(), ""):
            if type(layer) in _NOTHING:
                continue
            if isinstance(layer, Square | Polynomial):
                steps.append(_activation(name, layer))
            elif type(layer) in _LINEAR:
                affine, shape = _affine(name, layer, shape)
                steps.append(affine)
            else:
                raise UnsupportedLayerError(_refusal(name, layer))
    if len(shape) != 1:
        raise ValueError(f"the model ends in shape {shape}; end it in nn.Flatten and nn.Linear")
    return _canonical(steps)


def _walk(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if type(child) is nn.Sequential:
            yield from _walk(child, f"{path}.")
        else:
            yield f"{path} ({type(child).__name__})", child


def _refusal(name: str, layer: nn.Module) -> str:
    kind = type(layer).__name__
    if kind in _SMOOTH:
        remedy = _REMEDIES["ReLU"]
    else:
        remedy = _REMEDIES.get(
            kind,
            "use Linear, Conv2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, BatchNorm, Dropout, Square "
            "or Polynomial",
        )
    return f"layer {name} cannot be evaluated under encryption; {remedy}"


def _activation(name: str, layer: Square | Polynomial) -> Activation:
    if isinstance(layer, Square):
        return Activation((0.0, 0.0, 1.0), name)
    coefficients = tuple(float(c) for c in layer.coefficients.detach())
    if not all(math.isfinite(c) for c in coefficients) or coefficients[-1] == 0.0:
        raise ValueError(
            f"layer {name} has coefficients {coefficients}; they must be finite and the last "
            "not zero"
        )
    return Activation(coefficients, name)


def _affine(name: str, layer: nn.Module, shape: tuple[int, ...]) -> tuple[Affine, tuple[int, ...]]:
    for key, value in layer.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"layer {name}: {key} is not finite; load other weights")
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.running_mean is None:
        raise UnsupportedLayerError(
            f"layer {name} has no running statistics and would mix the images of a batch; "
            "train it with track_running_stats=True"
        )
    try:
        constant = layer(torch.zeros(1, *shape, dtype=torch.float64))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"layer {name} does not take inputs of shape {shape}: {error}") from error
    matrix = _matrix(lambda x: layer(x) - constant, shape)
    ones = _with_ones(layer)
    structure = _matrix(ones, shape)
    bias = constant.flatten().numpy().copy()
    return Affine(matrix, bias, sparse.csr_array(structure != 0), name), tuple(constant.shape[1:])


def _with_ones(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """The same layer with every weight one and every offset zero."""
    plain = copy.deepcopy(layer)
    for key, value in plain.state_dict().items():
        value.fill_(1.0 if key in ("weight", "running_var") else 0.0)
    return plain


def _matrix(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> sparse.csr_array:
    inputs = math.prod(shape)
    columns = []
    for start in range(0, inputs, _CHUNK):
        count = min(_CHUNK, inputs - start)
        units = torch.zeros(count, inputs, dtype=torch.float64)
        units[torch.arange(count), torch.arange(start, start + count)] = 1.0
        columns.append(sparse.csr_array(function(units.reshape(count, *shape)).flatten(1).numpy()))
    return sparse.csr_array(sparse.vstack(columns).T)


def _identity(size: int) -> Affine:
    eye = sparse.csr_array(sparse.identity(size, format="csr"))
    return Affine(eye, np.zeros(size), sparse.csr_array(eye != 0), "")


def _canonical(steps: list[Affine | Activation]) -> Network:
    """Merge neighbours, and fold what can be folded of the activations into them."""
    affines: list[Affine] = []
    activations: list[Activation] = []
    for step in steps:
        if isinstance(step, Affine):
            affines[-1:] = [affines[-1].then(step)] if affines else [step]
        elif step.degree == 1:
            offset, factor = step.coefficients
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
