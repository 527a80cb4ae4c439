"""A bound of the logits that training can lower.

Headroom and precision share the bits of a plan: every bit by which a logit might be larger over
the declared range is a bit less for its precision. Add ``weight * relu(logit_bound(...).log2() -
bits)`` to the loss: below ``bits`` it is zero, so that the model does not shrink to nothing.
"""

from collections.abc import Sequence
from itertools import chain
from types import TracebackType

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from privacy.arguments import of_kind, sizes
from privacy.inference.compiler.interval_tensor import IntervalTensor, NoIntervalError
from privacy.inference.compiler.lowering.modules import NORMS
from privacy.inference.input_range import bounds
from privacy.inference.input_range import input_range as written_range

SHAPE = (
    "the positive sizes of one input without the batch, such as (1, 28, 28), or a number alone "
    "for a vector"
)


def logit_bound(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
) -> Tensor:
    """A bound of every |logit| over all inputs in a range, differentiable in the weights.

    Interval bound propagation (Gowal et al. 2018, section 3): the model's own forward runs once, of
    one input whose elements are intervals. It reads no data, so that private training pays nothing
    for it. Of layers in a row a plan proves this bound or a lower one, up to rounding. Paths that
    join are taken to be at their worst at once.

    Parameters
    ----------
    model : nn.Module
        Of operations that can be compiled; BatchNorm in evaluation mode only. Dropout counts as
        left out.
    input_shape, input_range
        As for :func:`compile_model`.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    TypeError
        If an operation has no interval arithmetic, with the layer's name.
    """
    of_kind("model", model, nn.Module, "an nn.Module")
    shape = sizes("input_shape", input_shape, SHAPE)
    low, high = bounds(written_range("input_range", input_range, shape), shape)
    for name, module in model.named_modules():
        if isinstance(module, NORMS) and module.training:
            raise TypeError(_refusal(f"{_label(name, module)} in training mode"))
    tensors = chain(model.parameters(), model.buffers())
    like = next(tensors, torch.zeros(0, dtype=torch.float64))
    centre, radius = (
        torch.tensor(each, dtype=like.dtype, device=like.device)[None]
        for each in ((low + high) / 2, (high - low) / 2)
    )
    try:
        logits = model(IntervalTensor(centre, radius))
    except (NoIntervalError, TypeError, AttributeError) as error:
        raise TypeError(_refusal(f"{_place(model, error.__traceback__)}: {error}")) from error
    if not isinstance(logits, IntervalTensor):
        raise TypeError(_refusal(f"a model that returns {type(logits).__name__}"))
    middle, reach = logits.ends
    return (middle.abs() + reach).max()


def _refusal(words: str) -> str:
    return (
        f"logit_bound has no interval arithmetic for {words}; use operations that can be compiled, "
        "BatchNorm in evaluation mode, and no bicubic upsampling"
    )


def _place(model: nn.Module, trace: TracebackType | None) -> str:
    """The innermost module in which an exception was raised."""
    names = {id(module): _label(name, module) for name, module in model.named_modules()}
    place = "the model"
    while trace is not None:
        place = names.get(id(trace.tb_frame.f_locals.get("self")), place)
        trace = trace.tb_next
    return place


def _label(name: str, module: nn.Module) -> str:
    return f"layer {name} ({type(module).__name__})" if name else "the model"
