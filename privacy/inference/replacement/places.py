"""Where a model's activations stand: a copy in which each is a module of its own, run once."""

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.compiler import Polynomial, Square
from privacy.inference.errors import UnsupportedLayerError
from privacy.inference.replacement.elementwise import (
    ADAPTIVE_MAX_POOLS,
    AT_THE_END,
    FUNCTIONS,
    MAX_POOLS,
    MODULES,
    Function,
    average_pool,
    refusal,
)

_PASSES_ON = ("Flatten", "Identity", "Dropout", "flatten", "view", "reshape", "squeeze")
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
        return 1 if kind == "pow" else 0


def separate(model: nn.Module, *, average_pools: bool) -> Separated:
    """Copy a model so that each activation is a module of its own.

    Raises
    ------
    UnsupportedLayerError
        If the model cannot be copied or traced, has no activation, or something in it has no
        polynomial.
    """
    try:
        copied: nn.Module = copy.deepcopy(model)
    except Exception as error:  # whatever an attribute of a stranger raises
        raise UnsupportedLayerError(
            f"model cannot be copied ({error}); take out of it what cannot (hooks, locks, tensors "
            "with a history)"
        ) from error
    copied.eval()
    if type(copied) is nn.Sequential:
        copied = _apart(copied)
    for module in copied.modules():
        if getattr(module, "inplace", False) is True:
            module.__dict__["inplace"] = False
    graph = _traced(copied)
    calls = _calls(copied, graph)
    for node, kind, label in calls:
        _check(node, kind, label, copied, average_pools=average_pools)
    wanted = [call for call in calls if _is_activation(call) or _is_max_pool(call)]
    if not any(_is_activation(call) for call in calls):
        raise UnsupportedLayerError(
            "model has no activation that a polynomial could replace; compile_model takes it as it "
            "is, or names what it cannot evaluate"
        )
    runs = [node.target for node, _, _ in calls if node.op == "call_module"]
    functional = any(
        node.op != "call_module" or runs.count(node.target) > 1 for node, _, _ in wanted
    )
    places, pools = [], []
    for node, kind, label in wanted:
        name, module = _own(copied, node, repeated=runs.count(node.target) > 1)
        if _is_max_pool((node, kind, label)):
            module = _averaged(module, kind, node, label)
            pools.append(label)
        else:
            places.append(Place(name, kind.strip("_")))
        put(copied, name, module)
        if functional:
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (node.args[0],), {}
    if functional:
        graph.lint()
        modes = {name: module.training for name, module in copied.named_modules()}
        copied = fx.GraphModule(copied, graph)
        for name, module in copied.named_modules():
            module.training = modes.get(name, False)
    return Separated(copied, tuple(places), tuple(pools), graph)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module at a dotted name."""
    parent, _, own = name.rpartition(".")
    model.get_submodule(parent)._modules[own] = module


def check_same(model: nn.Module, separated: nn.Module, inputs: Tensor) -> None:
    """Refuse a copy that does not answer as the model does in evaluation mode.

    Raises
    ------
    UnsupportedLayerError
        If their outputs differ, as where a branch depends on the input.
    """
    with torch.no_grad():
        expected, given = model(inputs), separated(inputs)
    same = isinstance(given, Tensor) and given.shape == expected.shape
    if same:
        largest = float(expected.abs().max())
        same = bool(((given - expected).abs() <= _CLOSE * largest).all())
    if not same:
        raise UnsupportedLayerError(
            "traced by torch.fx and without operations in place, the model gives other outputs; "
            "write its forward without branches on sizes or values, and without in-place "
            "operations on tensors that are used again"
        )


_Call = tuple[fx.Node, str, str]


def _is_activation(call: _Call) -> bool:
    node, kind, _ = call
    if node.op == "call_module":
        return kind in {module.__name__ for module in MODULES}
    return kind.rstrip("_") in FUNCTIONS


def _is_max_pool(call: _Call) -> bool:
    return call[1] in MAX_POOLS or call[1] in ADAPTIVE_MAX_POOLS


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
        return _Tracer().trace(model)
    except Exception as error:  # whatever a stranger's forward raises of a proxy
        raise UnsupportedLayerError(
            f"torch.fx cannot trace the model ({error}); write its forward without branches and "
            "loops that depend on the input, or build it as an nn.Sequential"
        ) from error


def _calls(model: nn.Module, graph: fx.Graph) -> list[_Call]:
    """Every call with the name of its type or function, and its place in words."""
    calls = []
    for node in graph.nodes:
        if node.op == "call_module":
            kind = type(model.get_submodule(node.target)).__name__
            calls.append((node, kind, f"{node.target} ({kind})"))
        elif node.op == "call_function":
            kind = getattr(node.target, "__name__", str(node.target))
            calls.append((node, kind, f"{node.name} ({kind.strip('_')})"))
        elif node.op == "call_method":
            calls.append((node, node.target, f"{node.name} ({node.target.strip('_')})"))
    return calls


def _check(node: fx.Node, kind: str, label: str, model: nn.Module, *, average_pools: bool) -> None:
    """Refuse a call that has no polynomial, or needs none."""
    if _is_max_pool((node, kind, label)) and not average_pools:
        raise UnsupportedLayerError(
            f"layer {label} takes maxima, for which no polynomial of small degree stands in; train "
            "with an average pool of the same size, or give average_pools=True, which puts one in "
            "its place and lets fine-tuning make up for it"
        )
    divides = kind in ("truediv", "div") and not isinstance(node.args[1], fx.Node)
    reason = None if divides else refusal(kind)
    if reason is not None:
        raise UnsupportedLayerError(f"layer {label} has no polynomial: {reason}")
    if kind in AT_THE_END and _ends_the_model(node, model):
        raise UnsupportedLayerError(
            f"layer {label} ends the model, where it changes no decision; leave it out: of one "
            "logit the class changes at 0, where a sigmoid is a half"
        )
    if not _is_activation((node, kind, label)):
        return
    if kind == "PReLU" and _slopes(model, node) > 1:
        raise UnsupportedLayerError(
            f"layer {label} has a slope for each channel, a polynomial is one for all; train with "
            "nn.PReLU() of one slope, or nn.LeakyReLU"
        )
    others = [*node.args[1:], *node.kwargs.values()]
    if any(isinstance(each, fx.Node) for each in others) or not isinstance(node.args[0], fx.Node):
        raise UnsupportedLayerError(
            f"layer {label} depends on several values; give constants but for the first"
        )


def _slopes(model: nn.Module, node: fx.Node) -> int:
    return sum(each.numel() for each in model.get_submodule(str(node.target)).parameters())


def _ends_the_model(node: fx.Node, model: nn.Module) -> bool:
    """Whether only the output reads it, through layers that leave values as they are."""
    while len(node.users) == 1:
        (node,) = node.users
        kind = str(node.target)
        if node.op == "output":
            return True
        if node.op == "call_module":
            kind = type(model.get_submodule(kind)).__name__
        elif node.op == "call_function":
            kind = getattr(node.target, "__name__", kind)
        if kind not in _PASSES_ON:
            return False
    return False


def _own(model: nn.Module, node: fx.Node, *, repeated: bool) -> tuple[str, nn.Module]:
    """The name and the module of a call, of its own where others share the module."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if not repeated:
            return str(node.target), module
        return _free(model, f"{str(node.target).replace('.', '_')}"), copy.deepcopy(module)
    return _free(model, node.name), Function(node.target, *node.args[1:], **node.kwargs)


def _free(model: nn.Module, name: str) -> str:
    """The name, or with a number where the model has it already."""
    return next(each for each in _numbered(name) if not hasattr(model, each))


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 1
    while True:
        yield f"{name}_{number}"
        number += 1


def _averaged(module: nn.Module, kind: str, node: fx.Node, label: str) -> nn.Module:
    if node.op == "call_module":
        names = inspect.signature(type(module)).parameters
        settings = {name: getattr(module, name) for name in names}
    else:
        settings = _pool_arguments(node)
    pool = average_pool(kind, settings)
    if pool is None:
        raise UnsupportedLayerError(
            f"layer {label} is dilated or returns indices, which an average pool does not"
        )
    return pool


def _pool_arguments(node: fx.Node) -> dict[str, Any]:
    adaptive = "adaptive" in str(getattr(node.target, "__name__", ""))
    names = (
        ("input", "output_size", "return_indices")
        if adaptive
        else ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
    )
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
