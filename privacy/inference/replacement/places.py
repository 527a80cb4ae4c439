"""Where a model's activations stand: a copy in which each is a module of its own, run once."""

import copy
import inspect
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.compiler import TRACING, Polynomial, Square
from privacy.inference.errors import UnsupportedLayerError
from privacy.inference.replacement.calls import Call, calls_of, check_call
from privacy.inference.replacement.elementwise import (
    MAX_POOLS,
    MODULES,
    Function,
    average_pool,
)

_CLOSE = 1e-4
"""By which the copy may differ from the model, of its largest output."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = type(m) in (Square, Polynomial)
        return ours or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Place:
    """One activation: the name of its module, and of its type or function."""

    name: str
    activation: str

    @property
    def label(self) -> str:
        """As errors name it."""
        return f"{self.name} ({self.activation})"


@dataclass(frozen=True, eq=False)
class Separated:
    """A copy of a model, in evaluation mode.

    Attributes
    ----------
    model : nn.Module
        Of the original's type where each activation is a module that runs once, or all stand in
        ``nn.Sequential``; else an ``fx.GraphModule``.
    places : tuple of Place
        The activations in the order in which they run.
    pools : tuple of str
        Max pools that became average pools.
    """

    model: nn.Module
    places: tuple[Place, ...]
    pools: tuple[str, ...]
    _graph: fx.Graph

    def levels(self, depths: Mapping[str, int]) -> int:
        """One and what products take along the longest path, as the compiler counts levels.

        ``depths`` are those of activations, by the name of their place.
        """
        spent: dict[fx.Node, int] = {}
        for node in self._graph.nodes:
            spent[node] = max((spent[each] for each in node.all_input_nodes), default=0)
            spent[node] += depths.get(str(node.target), self._depth(node))
        return 1 + max(spent.values())

    def _depth(self, node: fx.Node) -> int:
        """Of polynomials that the model had before, and of squares and products in its forward."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            if isinstance(module, Polynomial):
                return DEPTH.get(len(module.coefficients) - 1, 0)
            return int(isinstance(module, Square))
        kind = getattr(node.target, "__name__", str(node.target))
        if kind in ("mul", "square"):
            return int(len(node.all_input_nodes) > 1 or node.args[0] is node.args[-1])
        if kind == "pow":
            exponent = node.args[1] if len(node.args) > 1 else node.kwargs.get("exponent")
            return DEPTH.get(cast(int, exponent), 0)
        return 0


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model, in evaluation mode.

    Raises
    ------
    UnsupportedLayerError
        If something in it cannot be copied.
    """
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever an attribute of a stranger raises
        raise UnsupportedLayerError(
            f"model cannot be copied ({error}); take out of it what cannot (hooks, locks, tensors "
            "with a history)"
        ) from error


def separate(model: nn.Module, inputs: Tensor, *, average_pools: bool) -> Separated:
    """Copy a model so that each activation is a module of its own.

    Parameters
    ----------
    model : nn.Module
        From :func:`copied`.
    inputs : Tensor
        A few inputs, on which the copy must answer as the model does.
    average_pools : bool
        Whether max pools become average pools; else they are refused.

    Raises
    ------
    UnsupportedLayerError
        If the model cannot be traced, answers otherwise when it is, has no activation, or something
        in it has no polynomial.
    """
    made = copied(model)
    if type(made) is nn.Sequential:
        made = _apart(made)
    for module in made.modules():
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False
    graph = _traced(made)
    calls = calls_of(made, graph)
    for call in calls:
        check_call(call, made, average_pools=average_pools)
    if not any(call.is_activation for call in calls):
        raise UnsupportedLayerError(
            "model has no activation that a polynomial could replace; compile_model takes it as it "
            "is, or names what it cannot evaluate"
        )
    runs = [call.node.target for call in calls if call.node.op == "call_module"]
    wanted = [call for call in calls if call.is_activation or call.is_max_pool]
    functional = any(
        call.node.op != "call_module" or runs.count(call.node.target) > 1 for call in wanted
    )
    places, pools = [], {}
    for call in wanted:
        node = call.node
        if call.is_max_pool:
            average = _averaged(made, call)
        name, module = _own(made, node, repeated=runs.count(node.target) > 1)
        put(made, name, module)
        if call.is_max_pool:
            pools[call.label] = name, average
        else:
            places.append(Place(name, call.kind.strip("_")))
        if functional:
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (node.args[0],), {}
    if functional:
        made = _graph_module(made, graph)
    _check_same(model, made, inputs)
    for name, average in pools.values():
        put(made, name, average)
    return Separated(made, tuple(places), tuple(pools), graph)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name."""
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent)._modules[own] = module


def _check_same(model: nn.Module, separated: nn.Module, inputs: Tensor) -> None:
    """Refuse a copy that does not answer as the model does in evaluation mode."""
    with torch.no_grad():
        expected, given = model(inputs.clone()), separated(inputs.clone())
    same = isinstance(given, Tensor) and given.shape == expected.shape
    if not same or not torch.allclose(given, expected, rtol=0, atol=_CLOSE * _largest(expected)):
        raise UnsupportedLayerError(
            "traced by torch.fx and without operations in place, the model gives other outputs; "
            "write its forward without branches on sizes or values, and without in-place "
            "operations on tensors that are used again"
        )


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _graph_module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    graph.lint()
    return fx.GraphModule(model, graph).eval()


def _apart(sequential: nn.Sequential) -> nn.Sequential:
    """The same layers in the same containers, but activations that stand once each."""
    children: dict[str, nn.Module] = {}
    for name, child in sequential._modules.items():  # also a module that came before
        if type(child) is nn.Sequential:
            children[name] = _apart(child)
        elif type(child) in (*MODULES, Polynomial) or type(child).__name__ in MAX_POOLS:
            children[name] = copy.deepcopy(child)
        elif child is not None:
            children[name] = child
    made = copy.copy(sequential)
    made._modules = children
    return made


def _traced(model: nn.Module) -> fx.Graph:
    try:
        with TRACING:
            graph = _Tracer().trace(model)
    except Exception as error:  # whatever a stranger's forward raises of a proxy
        raise UnsupportedLayerError(
            f"torch.fx cannot trace the model ({error}); write its forward without branches and "
            "loops that depend on the input, or build it as an nn.Sequential"
        ) from error
    for node in graph.nodes:
        if not node.args and "input" in node.kwargs:
            others = dict(node.kwargs)
            node.args, node.kwargs = (others.pop("input"),), others
    return graph


def _own(model: nn.Module, node: fx.Node, *, repeated: bool) -> tuple[str, nn.Module]:
    """The name and the module of a call, of its own where others share the module."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if not repeated:
            return str(node.target), module
        return _free(model, str(node.target).replace(".", "_")), copy.deepcopy(module)
    return _free(model, node.name), Function(node.target, *node.args[1:], **node.kwargs)


def _free(model: nn.Module, name: str) -> str:
    """The name, or with a number where the model has it already."""
    names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
    return next(each for each in names if not hasattr(model, each))


def _averaged(model: nn.Module, call: Call) -> nn.Module:
    node = call.node
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        names = inspect.signature(type(module)).parameters
        settings = {name: getattr(module, name) for name in names}
    else:
        settings = _pool_arguments(call)
    pool = average_pool(call.kind, settings)
    if pool is None:
        raise UnsupportedLayerError(
            f"layer {call.label} is dilated or returns indices, which an average pool does not"
        )
    return pool


def _pool_arguments(call: Call) -> dict[str, Any]:
    names: tuple[str, ...] = ("input", "output_size", "return_indices")
    if call.kind in MAX_POOLS:
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return dict(zip(names, call.node.args, strict=False)) | dict(call.node.kwargs)
