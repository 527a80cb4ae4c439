"""A model's forward, traced by torch.fx: every operation, with its values on points of the range.

Shapes are those of real inputs, so that a forward may ask for sizes and decide by them. It may not
decide by values: another input could take another way. Each operation knows its line.
"""

import operator
import sys
import threading
import traceback
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx, nn

from privacy.inference.compiler.lowering.modules import check_finite, check_layer, is_layer
from privacy.inference.errors import CannotPlanError, LayerInputError, UnsupportedLayerError

MISFITS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError)
"""Exceptions of PyTorch and NumPy for weights and settings that do not go together."""
POINTS = 7
"""A batch of a size that a model's own sizes hardly have, so that it is known wherever it goes."""
TRACING = threading.Lock()
"""Held by whoever traces: fx then replaces ``nn.Module.__call__`` for the whole process."""
_OF_A_SHAPE = frozenset(
    {"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full", "new_tensor"}
)
"""Functions that take a value for its shape and kind alone."""
_OWN = (str(Path(torch.__file__).parent), str(Path(__file__).parents[1]))


class _Traced(fx.Proxy):
    """A value of the model while it is traced: it knows its shape."""

    @property
    def value(self) -> Any:
        return self.node.meta["value"]

    @property
    def shape(self) -> torch.Size:
        return cast(torch.Size, self.value.shape)

    @property
    def ndim(self) -> int:
        return int(self.value.ndim)

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.dtype, self.value.dtype)

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.value.device)

    def size(self, *where: int) -> Any:
        return self.value.size(*where)

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return int(self.value.numel())

    def is_floating_point(self) -> bool:
        return bool(self.value.is_floating_point())

    def __len__(self) -> int:
        return len(self.value)

    def __getitem__(self, where: Any) -> Any:
        if isinstance(where, slice) and isinstance(self.value, tuple | list):
            return tuple(self[index] for index in range(len(self))[where])
        if isinstance(self.value, tuple | list):
            # The one way to a part; elsewhere several values are handed on one by one.
            return cast(_Tracer, self.tracer).part(self, where)
        return self.tracer.create_proxy("call_function", operator.getitem, (self, where), {})


class _Whole(nn.Module):
    """A model called with its input alone, so that what else its forward takes has its default."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Any) -> Any:
        return self.model(x)


class _Tracer(fx.Tracer):
    """Records operations and runs each at once on points of the range."""

    def __init__(self, points: Tensor, further: Container[str]) -> None:
        super().__init__()
        self._points = points
        self._further = further
        self._running = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._running:  # on points: fx has replaced every module's call
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val  # weights are constants

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Traced(node, self)

    def part(self, several: _Traced, index: int) -> fx.Proxy:
        """One of the values of an operation that makes several."""
        node = self.create_node("call_function", operator.getitem, (several.node, index), {})
        node.meta |= {"name": several.node.meta["name"], "value": several.value[index]}
        return self.proxy(node)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([cast(_Traced, obj)[index] for index in range(len(cast(_Traced, obj)))])

    def to_bool(self, obj: fx.Proxy) -> bool:
        raise UnsupportedLayerError(
            f"the model's forward decides by the values of an input ({_line()}); another input "
            "could take another way, which a server that sees no values cannot follow. Compute "
            "both ways, or decide by shapes"
        )

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, _Traced) and isinstance(a.value, tuple | list):
            return super().create_arg(tuple(a[index] for index in range(len(a))))
        if isinstance(a, Tensor):
            node = self.create_node("get_attr", "constant", (), {})
            node.meta["value"] = a.detach()
            return node
        made = super().create_arg(a)
        if isinstance(made, fx.Node) and made.op == "get_attr":
            made.meta.setdefault("value", a)
        return made

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any
    ) -> Any:
        if kind == "call_module":
            layer = self.root.get_submodule(target)
            path = target.removeprefix("model").removeprefix(".") or "model"
            name = f"{path} ({type(layer).__name__})"
            if type(layer).__name__ not in self._further or not is_layer(layer):
                check_layer(layer, name)
        elif kind.startswith("call"):
            called = target if isinstance(target, str) else getattr(target, "__name__", str(target))
            name = f"{called} ({_line()})"
        else:
            name = ""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        node = proxy.node
        node.meta["name"] = name
        if kind == "placeholder":
            node.meta["value"] = self._points
        elif kind != "output":
            node.meta["value"] = self._run(node)
        return proxy

    def _run(self, node: fx.Node) -> Any:
        name = node.meta["name"]
        if node.op == "call_module":
            layer = self.root.get_submodule(cast(str, node.target))
            node.meta["layer"] = layer
            check_finite(layer, name)
        inputs = [
            tuple(n.meta["value"].shape[1:])
            for n in node.all_input_nodes
            if depends(n) and is_tensor(n)
        ]
        self._running = True
        try:
            # What works in place is refused later; it must not change the values before it.
            outputs = run(node, {n: _copied(n.meta["value"]) for n in node.all_input_nodes})
        except MISFITS as error:
            of_shape = "".join(f" of shape {shape}" for shape in inputs)
            words = f"layer {name} does not take inputs{of_shape}: {error}"
            raise LayerInputError(words) from error
        finally:
            self._running = False
        return outputs


def depends(node: fx.Node) -> bool:
    """Whether a node's value depends on the values of the model's input."""
    if "depends" not in node.meta:
        by_shape = getattr(node.target, "__name__", node.target) in _OF_A_SHAPE
        node.meta["depends"] = node.op == "placeholder" or (
            not by_shape and any(depends(before) for before in node.all_input_nodes)
        )
    return bool(node.meta["depends"])


def is_tensor(node: fx.Node) -> bool:
    """Whether a node's value is a tensor."""
    return isinstance(node.meta["value"], Tensor)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def run(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """The node's operation on other values of the nodes before it."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.op == "call_module":
        return node.meta["layer"](*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], cast(str, node.target))(*args[1:], **kwargs)
    return cast(Any, node.target)(*args, **kwargs)


def trace(model: nn.Module, points: Tensor, further: Container[str] = ()) -> list[fx.Node]:
    """The operations of a model, from :func:`reference`, in the order in which it runs them.

    ``points`` are of the input range, shape (points, ...). Each node's ``meta`` has its ``value``
    there, its ``name`` for messages, and its ``layer`` if it is one. ``further`` names types of
    PyTorch's layers beyond those that CKKS evaluates.

    Raises
    ------
    UnsupportedLayerError
        If fx cannot follow the forward; with the line.
    LayerInputError
        If layers do not go together.
    """
    tracer = _Tracer(points, further)
    with TRACING:
        try:
            graph = tracer.trace(_Whole(model))
        except UnsupportedLayerError:
            raise
        except Exception as error:  # whatever the forward of a stranger raises
            for node in tracer.graph.nodes:
                if depends(node) and "value" in node.meta:
                    check_batch(node)  # the reason, where shapes do not fit any more
            if isinstance(error, LayerInputError):
                raise
            place = _place(error)
            raise UnsupportedLayerError(
                f"the model's forward cannot be traced ({place}): {error}. Write it with layers "
                "and PyTorch's functions on tensors; decisions may read shapes alone"
            ) from error
    return list(graph.nodes)


def check_batch(node: fx.Node) -> None:
    """Refuse an operation whose outputs are not one for each input of a batch."""
    name = node.meta["name"]
    for outputs in as_parts(node.meta["value"]):
        if not isinstance(outputs, Tensor):
            continue
        if outputs.ndim < 1 or len(outputs) != POINTS:
            shapes = [tuple(n.meta["value"].shape[1:]) for n in _sources(node) if is_tensor(n)]
            raise UnsupportedLayerError(
                f"layer {name} makes shape {tuple(outputs.shape)} of {POINTS} inputs of shape "
                f"{', '.join(map(str, shapes))}: it mixes the images of a batch, whose number "
                "comes first in every shape"
            )
        if outputs.numel() == 0:
            raise ValueError(
                f"layer {name} has no outputs (shape {tuple(outputs.shape[1:])} of an input); give "
                "it 1 or more, or leave it out"
            )
        if not outputs.is_floating_point():
            raise UnsupportedLayerError(
                f"layer {name} makes {outputs.dtype} of the model's numbers, which is no "
                "polynomial; at the end of a model leave it out: the data owner decides, from the "
                "logits that it decrypts"
            )
        if outputs.dtype != torch.float64:
            raise UnsupportedLayerError(
                f"layer {name} makes {outputs.dtype} of the model's numbers; leave it out: a "
                "compiled model has one precision"
            )


def check_numbers(node: fx.Node) -> None:
    """Refuse an operation whose outputs on points of the range are no finite numbers."""
    name = node.meta["name"]
    parts = [part for part in as_parts(node.meta["value"]) if isinstance(part, Tensor)]
    if all(bool(torch.isfinite(part).all()) for part in parts):
        return
    values = {n: n.meta["value"] for n in node.all_input_nodes}
    zeros = {n: torch.zeros_like(values[n]) for n in _sources(node) if is_tensor(n)}
    if not all(bool(torch.isfinite(part).all()) for part in as_parts(run(node, values | zeros))):
        raise ValueError(
            f"layer {name} makes no finite numbers even of zeros, though its weights are finite; "
            "look at its settings"
        )
    raise CannotPlanError(
        f"over input_range the values after layer {name} are larger than any number of double "
        "precision; narrow input_range, or make the model shallower"
    )


def as_parts(value: Any) -> list[Any]:
    """The outputs of an operation that may have several."""
    return list(value) if isinstance(value, tuple | list) else [value]


def _sources(node: fx.Node) -> list[fx.Node]:
    return [before for before in node.all_input_nodes if depends(before)]


def drawn_points(shape: tuple[int, ...], low: Any, high: Any) -> Tensor:
    """Points of the input range, shape (points, ...)."""
    # A fixed seed: the same model must compile alike everywhere.
    drawn = np.random.default_rng(1).uniform(0.0, 1.0, (POINTS, *shape))
    return torch.from_numpy(low + drawn * (high - low))


def _line() -> str:
    """File and line of the model's own code that runs now."""
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OWN):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}, line {frame.f_lineno}"


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(_OWN)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else "in PyTorch"
