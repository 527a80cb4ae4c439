"""Compile: a trained model and the range of its inputs become a public plan and integer weights."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from privacy.arguments import double_array, number, of_kind, shown, sizes, whole
from privacy.inference.compiler.lowering import Value, drawn_points, lowered, reference, trace
from privacy.inference.input_range import bounds
from privacy.inference.input_range import input_range as written_range
from privacy.shared_inference.clear import in_the_clear
from privacy.shared_inference.compiler.fixed_point import fixed_point
from privacy.shared_inference.compiler.layers import LAYERS
from privacy.shared_inference.compiler.network import nodes
from privacy.shared_inference.errors import CannotPlanError, UnsupportedLayerError
from privacy.shared_inference.plan import MAX_WORDS, Plan
from privacy.shared_inference.ring import Ring, as_signed, quantised

_log = logging.getLogger(__name__)
_POINTS = 16
_SHARES = (1 / 20, 1 / 2)
"""Of how far typical logits lie apart: the default tolerance, and where nothing proves that."""
_TOLERANCE_OF_ALIKE = 2.0**-10
_ROUNDING = 1e-9
"""By which PyTorch's own doubles may be off, of the largest logit."""
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class SharedModel:
    """A model made ready for questions in shares; made by :func:`compile_model`.

    It is the model owner's. Others see the plan; the workers get the weights in shares, by
    :func:`share_model`.

    Attributes
    ----------
    plan : Plan
    weights : ndarray of uint64, shape (plan.weights,)
        The model as integers modulo 2^64.
    model : nn.Module
        The model itself as PyTorch runs it, in evaluation mode and double precision.
    """

    plan: Plan
    weights: Ring = field(repr=False)
    model: nn.Module = field(repr=False)

    def predict(self, inputs: ArrayLike) -> Vector:
        """PyTorch's logits of inputs (images, ...), in double precision: (images, logits)."""
        values = torch.from_numpy(double_array("inputs", inputs, "shape (images, ...)"))
        with torch.no_grad():
            made = self.model(values.reshape(len(values), *self.plan.input_shape))
        return np.asarray(made.numpy())


def compile_model(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
    sample: ArrayLike | None = None,
    batch_size: int = 1,
    tolerance: float | None = None,
    answer: str = "logits",
    public_model: bool = False,
) -> SharedModel:
    """Compile a trained model for inference in shares.

    ReLU, MaxPool and the like stay as they are: nothing is retrained or approximated. The model is
    traced by the front end of :func:`privacy.inference.compile_model` and compared with PyTorch.

    Parameters
    ----------
    model : nn.Module
        Affine layers and functions, ReLU and what is made of it (LeakyReLU, PReLU, ReLU6, Hardtanh,
        Hardsigmoid, clamp, abs, maximum, minimum), maxima over windows, squares and polynomials of
        degree 2; one path or several. It returns a vector of logits for each input.
    input_shape : sequence of int, or int
        The shape of one input, without the batch.
    input_range : tuple of float, or of arrays
        The lowest and highest value of an input's elements. The proof holds in this range, the data
        owner refuses inputs outside it, and the plan publishes it.
    sample : array_like, optional
        Some dozen typical inputs, shape (inputs, ...), for the default tolerance alone. The plan
        depends on them, so they must be public. By default drawn from the range.
    batch_size : int
        Images of a question.
    tolerance : float, optional
        The largest distance of a logit from the model's own, which the plan proves for every input
        of the range. By default a twentieth of how far the logits of typical inputs lie apart, or
        the half of it, or what can be proved, with a warning in the log.
    answer : str
        ``"logits"``, or ``"class"``: the data owner learns the place of the largest logit alone.
    public_model : bool
        Whether both workers may know the weights, as they are. Affine maps then need no exchange
        and no material of their own; questions and answers are hidden as before.

    Returns
    -------
    SharedModel

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``.
    UnsupportedLayerError
        If a layer cannot be evaluated, or the model differs from PyTorch as compiled.
    CannotPlanError
        If no precision proves the tolerance in 64 bits, or a question takes too much memory.
    ValueError
        If an argument is out of its range.
    """
    shape = sizes("input_shape", input_shape, "the shape of one input, such as (1, 28, 28)")
    declared = written_range("input_range", input_range, shape)
    low, high = bounds(declared, shape)
    batch_size = whole("batch_size", batch_size, least=1, give="1 or more images a question")
    if tolerance is not None:
        tolerance = number("tolerance", tolerance, above=0, give="a positive error of a logit")
    of_kind("public_model", public_model, bool, "True or False")
    if answer not in ("logits", "class"):
        raise ValueError(f"answer is {shown(answer)}; give 'logits' or 'class'")
    itself = reference(model)
    network = nodes(_traced(itself, shape, (low, high)))
    points = _points(low, high) if sample is None else _flat(sample, low, high)
    expected = _logits(itself, points, shape)
    spread = _spread(expected)
    if tolerance is not None:
        tolerances = [tolerance]
    elif spread > 0:
        tolerances = [share * spread for share in _SHARES]
    else:
        tolerances = [_TOLERANCE_OF_ALIKE]
    count = expected.shape[1]
    if answer == "class" and count == 1:
        raise ValueError("answer is 'class', and the model has one logit: its sign is the class")
    made = fixed_point(
        network,
        low.ravel(),
        high.ravel(),
        tolerances,
        must_prove=tolerance is not None,
        to_class=answer == "class",
        batch_size=batch_size,
    )
    plan = Plan(
        input_shape=shape,
        input_range=declared,
        batch_size=batch_size,
        logits=count,
        answer=answer,
        input_bits=made.input_bits,
        answer_bits=made.answer_bits,
        error=made.error,
        public_model=public_model,
        steps=tuple(made.steps),
    )
    if plan.words > MAX_WORDS:
        raise CannotPlanError(
            f"model and question take {plan.words} words of memory, and {MAX_WORDS} are allowed; "
            "give a smaller batch_size"
        )
    if tolerance is None and made.error > max(tolerances):
        _log.warning(
            "compile_model: no plan proves a logit to within %.3g, half of how far typical logits "
            "lie apart; this one proves %.3g, for the worst input of the range. Typical inputs are "
            "off by less: compare decisions with predict() on data of yours, or give a tolerance "
            "that must be proved",
            *(max(tolerances), made.error),
        )
    compiled = SharedModel(plan, np.concatenate(made.weights), itself)
    _check_agreement(compiled, points, expected)
    return compiled


def _traced(model: nn.Module, shape: tuple[int, ...], ends: tuple[Vector, Vector]) -> Value:
    """The graph of a model's values."""
    separate = copy.deepcopy(model)
    for module in separate.modules():
        # While it is traced a layer must leave the values before it as they are. Where a forward
        # relies on it that they are not, the compiled model differs, and is refused.
        if getattr(module, "inplace", False) is True:
            vars(module)["inplace"] = False
    with torch.no_grad():
        listed = trace(separate, drawn_points(shape, *ends), LAYERS)
        output = lowered(listed, ends[0].ravel(), ends[1].ravel(), LAYERS)
    if len(output.shape) != 1:
        raise ValueError(
            f"the model ends in shape {output.shape}; end it in nn.Flatten and nn.Linear"
        )
    return output


def _logits(model: nn.Module, points: Vector, shape: tuple[int, ...]) -> Vector:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(points).reshape(-1, *shape)).numpy())


def _points(low: Vector, high: Vector) -> Vector:
    """Inputs drawn from the range, and corners of it, shape (inputs, elements)."""
    # A fixed seed: the same model must compile alike everywhere, and no secret depends on it.
    generator = np.random.default_rng(0)
    low, high = low.ravel(), high.ravel()
    drawn = generator.uniform(low, high, (_POINTS, len(low)))
    corners = np.where(generator.random((_POINTS, len(low))) < 0.5, low, high)
    return np.vstack([drawn, corners, low, high])


def _flat(sample: ArrayLike, low: Vector, high: Vector) -> Vector:
    """Typical inputs, shape (inputs, elements)."""
    values = double_array("sample", sample, "shape (inputs, *input_shape)")
    if values.ndim < 2 or len(values) == 0 or values[0].size != low.size:
        raise ValueError(f"sample has shape {values.shape}; give (inputs, *input_shape)")
    flat = np.asarray(values.reshape(len(values), -1))
    if not bool(((flat >= low.ravel()) & (flat <= high.ravel())).all()):
        raise ValueError("sample has elements outside input_range; clip them or widen the range")
    return flat


def _spread(logits: Vector) -> float:
    """How far the logits of typical inputs lie apart; a single one from zero."""
    if logits.shape[1] == 1:
        return float(np.abs(logits).mean()) / 2
    return float(logits.std(axis=1).mean())


def _check_agreement(compiled: SharedModel, points: Vector, expected: Vector) -> None:
    """Compare the integers with the model itself, on points of the range."""
    plan = compiled.plan
    made = as_signed(in_the_clear(plan, compiled.weights, quantised(points, plan.input_bits)))
    if plan.answer == "class":
        chosen = plan.logits - 1 - (made[0] & ((1 << plan.class_bits) - 1))
        largest = expected.max(axis=1)
        off = largest - expected[np.arange(len(points)), chosen.clip(0, plan.logits - 1)]
        room = 2 * plan.error
    else:
        off = np.abs(made.T / 2.0**plan.answer_bits - expected)
        room = plan.error
    room += _ROUNDING * float(np.abs(expected).max())
    if not bool((off <= room).all()):
        raise UnsupportedLayerError(
            "compiled, the model does not answer as PyTorch runs it: on points of input_range "
            f"logits differ by {float(off.max()):.3g}, proved are {plan.error:.3g}. Its forward "
            "does something else than its operations in a row: it draws at random, changes values "
            "in place, or counts its calls"
        )
