"""Operations that move values, repeat them, join them, or put constants between them.

Numbers run through the operation in place of values and say where each came from.
"""

import numpy as np
import torch

from privacy.inference.compiler.lowering.elementwise import Elementwise
from privacy.inference.compiler.lowering.matrices import selection
from privacy.inference.compiler.lowering.operation import Entry, Operation, constant
from privacy.inference.compiler.lowering.tracing import POINTS, as_parts, run
from privacy.inference.compiler.lowering.values import affine


def moved(operation: Operation) -> Entry:
    """The operation's outputs, as selections of its values."""
    node, values = operation.node, [given.value() for given in operation.given]
    starts = np.cumsum([0, *(value.size for value in values)])
    total = int(starts[-1])
    numbers = {before: constant(before) for before in node.all_input_nodes}
    zeros = dict(numbers)
    for before, value, start in zip(operation.sources, values, starts[:-1], strict=True):
        # Counted from 1 in every image, so that 0 says where a constant stands.
        each = torch.arange(1, value.size + 1, dtype=torch.float64, device="cpu") + float(start)
        rows = torch.arange(POINTS, dtype=torch.float64, device="cpu")[:, None] * total
        numbers[before] = (each + rows).reshape(POINTS, *value.shape)
        zeros[before] = torch.zeros_like(numbers[before])
    made = []
    with_numbers, with_zeros = as_parts(run(node, numbers)), as_parts(run(node, zeros))
    for counted, nothing, expected in zip(with_numbers, with_zeros, operation.outputs, strict=True):
        fixed = nothing.reshape(POINTS, -1).numpy()
        sources = (counted - nothing).reshape(POINTS, -1).numpy().astype(np.int64)
        own = np.where(sources > 0, sources - np.arange(POINTS)[:, None] * total, 0)
        alike = bool((own == own[0]).all() and (fixed == fixed[0]).all())
        if not alike or own.min(initial=0) < 0 or own.max(initial=0) > total:
            raise operation.refused(
                "mixes the images of a batch, whose number comes first in every shape"
            )
        parts = []
        for value, start in zip(values, starts[:-1], strict=True):
            taken = own[0] - 1 - int(start)
            taken = np.where((taken >= 0) & (taken < value.size), taken, -1)
            if len(values) == 1 or bool((taken >= 0).any()):
                parts.append((value, selection(taken, value.size)))
        made.append(operation.checked(parts, fixed[0].copy(), expected))
    return made[0] if isinstance(node.meta["value"], torch.Tensor) else tuple(made)


def broadcast(operation: Operation, given: Elementwise, ndim: int) -> Elementwise:
    """A value, of ``ndim`` axes with the batch's, in the shape of the operation's output."""
    shape = operation.shape
    if given.shape == shape:
        return given
    if ndim != len(shape) + 1:
        raise operation.refused(
            f"joins shapes {given.shape} and {shape} of an input, whose axes then meet the "
            "batch's; unsqueeze the smaller one"
        )
    value = given.value()
    numbers = np.arange(value.size).reshape(value.shape)
    taken = np.broadcast_to(numbers, shape).ravel()
    parts = [(value, selection(taken, value.size))]
    return Elementwise(affine(shape, operation.title, parts, np.zeros(len(taken))))
