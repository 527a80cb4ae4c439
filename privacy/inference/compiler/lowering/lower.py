"""From a model to what CKKS evaluates: affine maps with polynomials between them.

The model's forward is traced. Every linear operation becomes its matrix in double precision, and
neighbours are multiplied together; each is compared with PyTorch's own on points of the input
range. What skips an activation is read where it is needed (:mod:`.layers`).
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from privacy.inference.arithmetic.network import Network, Vector
from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.compiler.lowering.forward import reference
from privacy.inference.compiler.lowering.layers import check_width, layered
from privacy.inference.compiler.lowering.operations import ARITHMETIC, FUNCTIONS, lowered
from privacy.inference.compiler.lowering.query_size import check_query
from privacy.inference.compiler.lowering.tracing import MISFITS, drawn_points, trace
from privacy.inference.errors import UnsupportedLayerError

_AGREEMENT = 1e-6
"""By which the whole may differ from the model, of its largest logit."""


def lower(
    model: nn.Module,
    input_shape: Sequence[int],
    input_range: tuple[Any, Any] = (-1.0, 1.0),
    *,
    widest: int | None = None,
    max_query_bytes: int | None = None,
) -> Network:
    """Turn a trained model, of which a copy is used, into affine maps and polynomials.

    Powers of a polynomial that contribute nothing over ``input_range``, numbers or arrays that
    broadcast to the input, are left out. ``widest`` is the largest number of outputs of a
    layer; wider ones are several. ``max_query_bytes`` is of one image's query: a model that is sure
    to take more is refused before a matrix is made.

    Raises
    ------
    UnsupportedLayerError
        If an operation cannot be evaluated under encryption, or differs from its type.
    CannotPlanError
        If a layer, or a query, is too large.
    ValueError
        If the model does not fit ``input_shape``, has weights that are not finite, or does not
        end in a vector of logits.
    """
    shape = tuple(input_shape)
    low, high = (np.broadcast_to(np.asarray(end, dtype=float), shape) for end in input_range)
    with torch.no_grad():
        nodes = trace(reference(model), drawn_points(shape, low, high))
        for node in nodes:
            if widest is not None and isinstance(node.meta.get("layer"), Square | Polynomial):
                size = math.prod(node.all_input_nodes[0].meta["value"].shape[1:])
                check_width(node.meta["name"], size, widest)
        if widest is not None and max_query_bytes is not None:
            affine = frozenset({*FUNCTIONS, *ARITHMETIC})
            check_query(nodes, max_query_bytes, widest=widest, affine=affine)
        output = lowered(nodes, low.ravel(), high.ravel())
        if len(output.shape) > 1:
            raise ValueError(
                f"the model makes shape {output.shape} of one input; end it in nn.Flatten and "
                f"nn.Linear, and give input_shape, here {shape}, without the batch"
            )
        return layered(output, widest=widest)


def check_agreement(
    network: Network, model: nn.Module, input_shape: Sequence[int], samples: Vector
) -> None:
    """Compare a lowered network with the model itself, from :func:`reference`.

    ``samples`` are points of the input range, shape (points, inputs).

    Raises
    ------
    UnsupportedLayerError
        If their logits differ.
    """
    with torch.no_grad(), np.errstate(all="ignore"):
        try:
            expected = model(torch.from_numpy(samples).reshape(-1, *input_shape)).numpy()
        except MISFITS as misfit:
            raise UnsupportedLayerError(
                f"the model does not take a batch of {len(samples)} inputs ({misfit}); its forward "
                "must not depend on their number"
            ) from misfit
        logits = network(samples.T).T
    if expected.ndim == 1:  # a single logit may lack its axis
        expected = expected[:, None]
    same_shape = logits.shape == expected.shape
    with np.errstate(all="ignore"):
        error = np.abs(logits - expected) if same_shape else np.array(np.inf)
    largest = float(np.abs(expected).max(initial=0.0))
    # Written so that a NaN is not agreement.
    if not bool((error <= _AGREEMENT * largest).all()):
        raise UnsupportedLayerError(
            "compiled, the model does not answer as PyTorch runs it: on points of input_range "
            f"logits differ by {float(error.max()):.3g}, the largest is {largest:.3g}. Either its "
            "forward does something else than its operations in a row (it draws at random, "
            "changes values in place, or counts its calls), or a polynomial is too steep for "
            "double precision: fit one of a lower degree, or over the values it meets"
        )
