"""The least size of a query, from shapes: known before any matrix is made.

The data owner copies inputs to where they are needed, so that a layer which reads the input has a
place in the query for each input of each of its outputs, padded to a power of two. Of a model that
is one affine map, every weight has one.
"""

from collections.abc import Container, Sequence

import torch
from torch import Tensor, fx

from privacy.inference.compiler.activations import Polynomial, Square
from privacy.inference.compiler.lowering.modules import MOVES, NOTHING, WEIGHTED
from privacy.inference.compiler.lowering.tracing import MISFITS, POINTS, depends, run
from privacy.inference.errors import CannotPlanError

_PLACE_BYTES = 8
"""Of one place in a query, with the one prime that it has at least."""
_AT_ONCE = 25_000_000
"""Bytes up to which a query is planned all the same, so that a refusal names what suffices."""
_NEGLIGIBLE = 2.0**-20
"""Of a polynomial's largest value, below which its highest power may be left out later."""


def check_query(
    nodes: Sequence[fx.Node], limit: int, *, widest: int, affine: Container[str]
) -> None:
    """Refuse a model whose query for one image is sure to take far more bytes than ``limit``.

    ``nodes`` are from :func:`trace`; ``widest`` is how many outputs a layer has at most;
    ``affine`` names the functions that are affine. Other models may turn out to take more: the
    bound counts one prime, and terms that are sure to be there.

    Raises
    ------
    CannotPlanError
        With the sizes that make the query so large.
    """
    needed = _needed(nodes)
    bent: dict[fx.Node, bool] = {}
    first: dict[fx.Node, None] = {}
    for node in needed[:-1]:
        value = node.meta["value"]
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != POINTS:
            return  # several values, or a batch that is mixed: lowering has the words
        if value.numel() == 0:
            return
        before = [each for each in node.all_input_nodes if depends(each)]
        bends = _bends(node, before, affine)
        if bends is None:
            return
        if bends and not bent[before[0]] and _stays(node):
            first[before[0]] = None
        bent[node] = bends or any(bent[each] for each in before)
    start, last = needed[0], needed[-2]
    if not any(bent.values()):
        _check_places(_size(start), _size(last), "the model", limit)
    for node in first:
        outputs = _size(node)
        padded = min(1 << (outputs - 1).bit_length(), widest)
        if padded * _size(start) * _PLACE_BYTES > max(limit, _AT_ONCE):
            name = f"layer {node.meta['name']}"
            _check_places(_terms(needed, node), padded, name, limit, outputs=outputs)


def _check_places(
    inputs: int, padded: int, name: str, limit: int, *, outputs: int | None = None
) -> None:
    least = inputs * padded * _PLACE_BYTES
    if least > max(limit, _AT_ONCE):
        raise CannotPlanError(
            f"a query takes {least:,} bytes or more, max_query_bytes is {limit:,}: {name} has "
            f"{outputs or padded:,} outputs that read {inputs:,} inputs each. Give it fewer "
            "outputs, or fewer inputs (a convolution or nn.AvgPool2d before it, a smaller "
            "input_shape), or a larger max_query_bytes"
        )


def _needed(nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The nodes on which the output depends and that depend on the input, the output the last."""
    wanted = {nodes[-1]}
    for node in reversed(nodes):
        if node in wanted:
            wanted.update(node.all_input_nodes)
    return [node for node in nodes if node in wanted and (node is nodes[-1] or depends(node))]


def _bends(node: fx.Node, before: list[fx.Node], affine: Container[str]) -> bool | None:
    """Whether an operation is a polynomial of a higher degree; None of one that is unknown."""
    if node.op in ("placeholder", "call_module"):
        return isinstance(node.meta.get("layer"), Square | Polynomial)
    name = _name(node)
    if name in ("square", "pow"):
        return True
    if name in ("mul", "multiply"):
        return len(before) > 1 or list(node.args).count(before[0]) > 1
    return False if name in affine else None


def _stays(node: fx.Node) -> bool:
    """Whether an activation is sure to be one when all is lowered, with a map that reads it."""
    layer = node.meta.get("layer")
    if isinstance(layer, Polynomial):
        value = node.all_input_nodes[0].meta["value"]
        coefficients = layer.coefficients.to(torch.float64)
        sizes = coefficients.abs() * value.abs().max() ** torch.arange(
            len(coefficients), device=coefficients.device
        )
        if not bool((sizes[2:] > _NEGLIGIBLE * sizes.max()).any()):
            return False
    elif not isinstance(layer, Square):
        return False
    while len(node.users) == 1:
        (node,) = node.users
        layer = node.meta.get("layer")
        if isinstance(layer, WEIGHTED):
            return True
        if not isinstance(layer, (*MOVES, *NOTHING)) and _name(node) != "flatten":
            return False
    return False


def _terms(nodes: Sequence[fx.Node], target: fx.Node) -> int:
    """Inputs on which one element of an affine value depends, by its gradient."""
    values: dict[fx.Node, Tensor] = {}
    with torch.enable_grad():
        for node in nodes:
            if node.op == "placeholder":
                start = values[node] = node.meta["value"].clone().requires_grad_()
            else:
                constants = {n: n.meta["value"] for n in node.all_input_nodes if not depends(n)}
                try:
                    values[node] = run(node, values | constants)
                except MISFITS:  # what works in place on a value with a gradient
                    return 0
            if node is target:
                break
        # In the middle of an image, where no window is cut off.
        middle = values[target][(0, *(size // 2 for size in values[target].shape[1:]))]
        if not middle.requires_grad:
            return 0
        (gradient,) = torch.autograd.grad(middle, start)
    return int(torch.count_nonzero(gradient[0]))


def _size(node: fx.Node) -> int:
    """Elements of one input's value."""
    return int(node.meta["value"][0].numel())


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
