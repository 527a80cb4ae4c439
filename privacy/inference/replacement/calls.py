"""The calls of a traced model: which are activations and max pools, which have no polynomial."""

from typing import NamedTuple

from torch import fx, nn

from privacy.inference.errors import UnsupportedLayerError
from privacy.inference.replacement.elementwise import (
    ADAPTIVE_MAX_POOLS,
    AT_THE_END,
    FUNCTIONS,
    MAX_POOLS,
    MODULES,
    refusal,
)

_PASSES_ON = ("Flatten", "Identity", "Dropout", "flatten", "view", "reshape", "squeeze")
_MODULE_NAMES = frozenset(module.__name__ for module in MODULES)


class Call(NamedTuple):
    """A node of the graph with the name of its module's type or of its function.

    ``label`` is its place in words.
    """

    node: fx.Node
    kind: str
    label: str

    @property
    def is_activation(self) -> bool:
        """Whether a polynomial takes its place."""
        if self.node.op == "call_module":
            return self.kind in _MODULE_NAMES
        return self.kind.rstrip("_") in FUNCTIONS

    @property
    def is_max_pool(self) -> bool:
        """Whether an average may take its place."""
        return self.kind in MAX_POOLS or self.kind in ADAPTIVE_MAX_POOLS


def calls_of(model: nn.Module, graph: fx.Graph) -> list[Call]:
    """Every call with the name of its type or function, and its place in words."""
    calls = []
    for node in graph.nodes:
        if node.op == "call_module":
            kind = type(model.get_submodule(node.target)).__name__
            calls.append(Call(node, kind, f"{node.target} ({kind})"))
        elif node.op == "call_function":
            kind = getattr(node.target, "__name__", str(node.target))
            calls.append(Call(node, kind, f"{node.name} ({kind.strip('_')})"))
        elif node.op == "call_method":
            calls.append(Call(node, node.target, f"{node.name} ({node.target.strip('_')})"))
    return calls


def check_call(call: Call, model: nn.Module, *, average_pools: bool) -> None:
    """Refuse a call that has no polynomial, or needs none.

    Raises
    ------
    UnsupportedLayerError
        By name, with a remedy.
    """
    node, kind, label = call
    if call.is_max_pool and not average_pools:
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
    if not call.is_activation:
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
