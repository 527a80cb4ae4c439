"""One traced operation, with the values that it is given: what its lowering needs."""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from privacy.inference.compiler.lowering.elementwise import Elementwise
from privacy.inference.compiler.lowering.matrices import Matrices
from privacy.inference.compiler.lowering.tracing import MISFITS, POINTS, as_parts, depends, run
from privacy.inference.compiler.lowering.values import Value, affine
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError

_MAX_ENTRIES = 30_000_000
"""Of a matrix: some hundred megabytes."""
_SLACK = 1e-9
"""By which an operation's matrix may differ from the operation, of its largest output."""
Entry = Elementwise | tuple[Any, ...]
"""What an operation makes: a value, or several."""


class Operation:
    """An operation at its place in the model.

    Attributes
    ----------
    node : fx.Node
    title : str
        Its name for messages: of a layer, or of a function with its line.
    function : str
        The function's own name, or the layer's type.
    layer : nn.Module or None
    sources : list of fx.Node
        The nodes before it that depend on the model's input.
    given : list of Elementwise
        Their values.
    """

    def __init__(self, node: fx.Node, entries: dict[fx.Node, Entry]) -> None:
        self.node = node
        self.title: str = node.meta["name"]
        self.layer: nn.Module | None = node.meta.get("layer")
        self.function = type(self.layer).__name__ if self.layer is not None else _function(node)
        self.sources = [before for before in node.all_input_nodes if depends(before)]
        self.given = [self._one(before, entries) for before in self.sources]

    def _one(self, node: fx.Node, entries: dict[fx.Node, Entry]) -> Elementwise:
        entry = entries[node]
        if not isinstance(entry, Elementwise):
            raise UnsupportedLayerError(
                f"layer {node.meta['name']} makes several values, used as one; choose one of them"
            )
        return entry

    @property
    def outputs(self) -> list[Tensor]:
        """On points of the range, shape (points, ...)."""
        return as_parts(self.node.meta["value"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of its output, without the batch."""
        return tuple(self.outputs[0].shape[1:])

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name: a node if it depends on the model's input."""
        args, kwargs = self.node.args, self.node.kwargs
        given = args[index] if index < len(args) else kwargs.get(name, default)
        return given if is_source(given) else constant(given)

    def arguments(self, names: str) -> dict[str, Any]:
        """The arguments that are given, by the names of their places."""
        listed = names.split()
        given = set(listed[: len(self.node.args)]) | set(self.node.kwargs)
        return {
            name: self.argument(index, name) for index, name in enumerate(listed) if name in given
        }

    def refused(self, words: str) -> UnsupportedLayerError:
        """A refusal that names the layer."""
        return UnsupportedLayerError(f"layer {self.title} {words}")

    def only(self) -> Elementwise:
        """The value of an operation that takes one."""
        if len(self.given) != 1:
            raise self.refused("is given several values that depend on the model's input; give one")
        return self.given[0]

    def run_on(self, x: Tensor) -> Tensor:
        """The operation on something else than its value."""
        nodes = self.node.all_input_nodes
        return cast(Tensor, run(self.node, {n: x if depends(n) else constant(n) for n in nodes}))

    def affine(self, make: Callable[[tuple[int, ...]], Matrices], entries: int = 0) -> Elementwise:
        """The operation as a matrix, made for a shape, and a bias: its answer to zeros.

        ``entries`` is about how many the matrix has.
        """
        value = self.only().value()
        size = max(value.size, self.outputs[0][0].numel(), entries)
        if size > _MAX_ENTRIES:
            raise CannotPlanError(
                f"layer {self.title} is a matrix of {size:,} weights on inputs of shape "
                f"{value.shape}, {_MAX_ENTRIES:,} are compiled at most; use fewer channels, a "
                "larger stride, nn.AvgPool2d before it, or a smaller input_shape"
            )
        try:
            pair = make(value.shape)
        except MISFITS as error:
            raise ValueError(f"layer {self.title}: {error}") from error
        nothing = torch.zeros(POINTS, *value.shape, dtype=torch.float64, device="cpu")
        bias = self.run_on(nothing)[0].flatten().numpy().copy()
        return self.checked([(value, pair)], bias, self.outputs[0])

    def checked(
        self, parts: list[tuple[Value, Matrices]], bias: np.ndarray, expected: Tensor
    ) -> Elementwise:
        """An affine map, compared with the operation on points of the range."""
        flat = expected.reshape(POINTS, -1).numpy().T
        fits = bias.shape == (len(flat),) and all(
            matrix.shape == (len(flat), value.size) for value, (matrix, _) in parts
        )
        # PyTorch's own values before it, so that no other operation is blamed.
        before = {
            id(given.value()): source.meta["value"].reshape(POINTS, -1).numpy().T
            for given, source in zip(self.given, self.sources, strict=True)
        }
        own = bias[:, None] + sum(m @ before[id(value)] for value, (m, _) in parts) if fits else 0
        room = _SLACK * (np.abs(flat).max(initial=0.0) + np.abs(bias).max(initial=0.0))
        if not fits or not bool((np.abs(own - flat) <= room).all()):
            usual = f"a {self.function}" + (" with its weights" if self.layer is not None else "")
            raise self.refused(f"does something else than {usual}; leave it as PyTorch makes it")
        return Elementwise(affine(tuple(expected.shape[1:]), self.title, parts, bias))


def is_source(argument: Any) -> bool:
    """Whether an argument is a value that depends on the model's input."""
    return isinstance(argument, fx.Node) and depends(argument)


def constant(argument: Any) -> Any:
    """An argument that does not."""
    return argument.meta["value"] if isinstance(argument, fx.Node) else argument


def _function(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", target))
