"""Every layer's inputs and output gradients in one forward and one backward pass."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from privacy.training.errors import GradientError
from privacy.training.per_example.gradients import Call, LayerGradients, sum_of
from privacy.training.per_example.layers import (
    handled_alone,
    is_recurrent,
    layer_gradients,
    remove_functorch_state,
)


def trainable_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules whose own parameters train; submodules are part of one not ``handled_alone``."""
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    if trains and not is_recurrent(module):
        yield name, module
        if not handled_alone(module):
            return
    for child_name, child in module.named_children():
        yield from trainable_layers(child, f"{name}.{child_name}" if name else child_name)


class _LayerUse(NamedTuple):
    """One call of a layer: its input, that one's version and place in the graph, its output's."""

    name: str
    inputs: Tensor
    version: int
    origin: GradientEdge | None
    output: GradientEdge


class Capture:
    """A context that records every call of a model's trainable layers.

    Every parameter must belong to one layer only, as ``check_model`` ensures.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.layers = dict(trainable_layers(model))
        self._names = {layer: name for name, layer in self.layers.items()}
        self._handles: list[RemovableHandle] = []
        self._uses: list[_LayerUse] = []

    def __enter__(self) -> Self:
        for layer in self.layers.values():
            # Before other hooks, whose outputs are not the layer's.
            self._handles.append(layer.register_forward_hook(self._record, prepend=True))
            if not handled_alone(layer):
                self._handles.append(
                    layer.register_forward_pre_hook(_refuse_named, with_kwargs=True)
                )
        for module in self._model.modules():
            if is_recurrent(module):
                self._handles.append(module.register_forward_pre_hook(_refuse_packed))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.forget()
        for layer in self.layers.values():
            remove_functorch_state(layer)

    def _record(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = self._names[layer]
        if len(inputs) != 1 or not isinstance(output, Tensor):
            raise GradientError(
                f"layer '{name}' ({type(layer).__name__}) does not take one positional tensor and "
                "return one: give its parameters to submodules that do"
            )
        if output.requires_grad:
            (tensor,) = inputs
            origin = get_gradient_edge(tensor) if tensor.requires_grad else None
            use = _LayerUse(name, tensor, tensor._version, origin, get_gradient_edge(output))
            self._uses.append(use)

    def forget(self) -> None:
        """Forget the last forward pass, which failed."""
        self._uses.clear()

    def inputs_and_backprops(
        self, outputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> tuple[list[tuple[str, Tensor]], list[tuple[str, Tensor]]]:
        """(Name, input) and (name, output gradient) of each call of a layer.

        The gradients are those of the ``outputs``' inner product with the ``cotangents``.
        """
        uses, self._uses = self._uses, []
        inputs = [(use.name, use.inputs.detach()) for use in uses]
        if not uses or not outputs:
            return inputs, []
        # The gradient of one number: for those of several PyTorch loads its compiler.
        products = zip(outputs, cotangents, strict=True)
        inner = sum_of([torch.real((o * c).sum()) for o, c in products])
        backprops = torch.autograd.grad(inner, [use.output for use in uses], allow_unused=True)
        pairs = zip(uses, backprops, strict=True)
        return inputs, [(use.name, back) for use, back in pairs if back is not None]

    def check_parameters(self, losses: Tensor) -> None:
        """Refuse a parameter that reaches ``losses`` on a path around its layer.

        The search of the forward pass's whole graph finds also uses whose gradient is too small to
        compare: a weight penalty, a table read again by ``linear(x, embedding.weight)``.
        """
        names: dict[Tensor, str] = {
            p: name for name, p in self._model.named_parameters() if p.requires_grad
        }
        outputs = {use.output.node for use in self._uses}
        for start, stops, allowed in self._pieces(losses, outputs):
            for parameter in _parameters_between(start, stops):
                if parameter in names and parameter not in allowed:
                    raise GradientError(_bypassing(names[parameter]))

    def _pieces(
        self, losses: Tensor, outputs: set[Node]
    ) -> Iterator[tuple[list[Node], set[Node], set[nn.Parameter]]]:
        """Pieces of the graph: their starts, their ends, and the parameters allowed in them."""
        nothing: set[nn.Parameter] = set()
        if losses.grad_fn is not None:
            yield [losses.grad_fn], outputs, nothing
        for use in self._uses:
            within, before = [node for node, _ in use.output.node.next_functions if node], outputs
            if use.origin is not None:
                before = outputs | {use.origin.node}
                yield [use.origin.node], outputs, nothing
            yield within, before, set(self.layers[use.name].parameters())

    def gradients(self, losses: Tensor, *, keep_graph: bool = False) -> dict[str, LayerGradients]:
        """Every layer's per-example gradients of ``losses`` (n,) in the last forward pass, by name.

        A layer without a part in the losses is missing: its gradient is zero. ``keep_graph`` lets
        torch compute gradients of ``losses`` again.

        Raises
        ------
        GradientError
            If a layer's tensors do not have the examples on their first axis, an input was
            overwritten, or a parameter was used around its layer.
        """
        uses, self._uses = self._uses, []
        if not losses.requires_grad:
            return {}
        bypassed = self._parameters_of_unused({use.name for use in uses})
        backward = _Backward(uses, len(losses), self._gradients_of)
        del uses  # or inputs would outlive their layer's turn
        edges = [get_gradient_edge(parameter) for parameter in bypassed.values()]
        backprops = backward(losses, edges, keep_graph=keep_graph)
        for name, gradient in zip(bypassed, backprops, strict=True):
            if gradient is not None:
                raise GradientError(_bypassing(name))
        return {n: backward.gradients[n] for n in self.layers if n in backward.gradients}

    def _gradients_of(self, name: str, calls: Sequence[Call]) -> LayerGradients:
        layer = self.layers[name]
        try:
            return layer_gradients(layer, calls)
        except (RuntimeError, ValueError, TypeError) as error:
            if handled_alone(layer) or isinstance(error, torch.OutOfMemoryError):
                raise
            if "random operation" in str(error):  # in torch.func.vmap's words
                own = ", ".join(f"'{own}'" for own, _ in layer.named_parameters(recurse=False))
                raise GradientError(
                    f"layer '{name or '(model)'}' ({type(layer).__name__}) has parameters of its "
                    f"own ({own}) and draws random numbers, as dropout does: torch.func, which "
                    "runs it again for their gradients, would draw others; put each such parameter "
                    "into a submodule of its own, whose forward takes one tensor and adds, "
                    "prepends or multiplies it"
                ) from error
            raise GradientError(
                f"torch.func, which handles layer '{name}' ({type(layer).__name__}) with all that "
                f"is inside it, cannot follow it: {error}; put its own parameters into submodules "
                "that do nothing else"
            ) from error

    def _parameters_of_unused(self, used: set[str]) -> dict[str, nn.Parameter]:
        """The trainable parameters of the layers that were not called."""
        return {
            f"{name}.{own}" if name else own: parameter
            for name, layer in self.layers.items()
            if name not in used
            for own, parameter in layer.named_parameters(recurse=not handled_alone(layer))
            if parameter.requires_grad
        }


class _Backward:
    """A backward pass that computes a layer's gradients once the gradient at its output is there.

    So the inputs and output gradients of all layers are not held at a time, but for what
    ``LayerGradients`` themselves hold. Those of a layer with several calls wait for its last.
    """

    def __init__(
        self,
        uses: Sequence[_LayerUse],
        examples: int,
        compute: Callable[[str, Sequence[Call]], LayerGradients],
    ) -> None:
        self._waiting = dict(enumerate(uses))
        self._examples, self._compute = examples, compute
        self._calls_due = Counter(use.name for use in uses)
        self._calls: dict[str, list[Call]] = {}
        self.gradients: dict[str, LayerGradients] = {}

    def __call__(
        self, losses: Tensor, others: Sequence[GradientEdge], *, keep_graph: bool
    ) -> Sequence[Tensor | None]:
        """Fill ``gradients``, and return the gradients of ``losses``' sum at the ``others``."""
        # The pass goes as far as the uses behind which there are no others, and visits the rest.
        nodes = {use.output.node for use in self._waiting.values()}
        last = {
            number: use.output
            for number, use in self._waiting.items()
            if nodes.isdisjoint(_nodes_behind(use.output.node, nodes))
        }
        handles = [
            use.output.node.register_prehook(partial(self._visit, number))
            for number, use in self._waiting.items()
            if number not in last
        ]
        try:
            # The gradient of their sum: ``grad_outputs`` would load SymPy, to compare two shapes.
            backprops: Sequence[Tensor | None] = torch.autograd.grad(
                losses.sum(), [*last.values(), *others], allow_unused=True, retain_graph=keep_graph
            )
        finally:
            for handle in handles:
                handle.remove()
        with torch.no_grad():
            for number, backprop in zip(last, backprops, strict=False):
                self._receive(self._waiting.pop(number), backprop)
            for name, calls in self._calls.items():  # some of whose calls had no part in the losses
                self.gradients[name] = self._compute(name, calls)
        return backprops[len(last) :]

    def _visit(self, number: int, backprops: Sequence[Tensor | None]) -> None:
        use = self._waiting.pop(number)
        self._receive(use, backprops[use.output.output_nr])

    def _receive(self, use: _LayerUse, backprop: Tensor | None) -> None:
        self._calls_due[use.name] -= 1
        if backprop is not None:
            _check(use, backprop, self._examples)
            self._calls.setdefault(use.name, []).append(Call(use.inputs, backprop))
        if not self._calls_due[use.name] and use.name in self._calls:
            self.gradients[use.name] = self._compute(use.name, self._calls.pop(use.name))


def _nodes_behind(node: Node, stops: set[Node]) -> Iterator[Node]:
    """The graph from ``node``, exclusive, back to ``stops``, inclusive."""
    waiting, visited = [node], {node}
    while waiting:
        for following, _ in waiting.pop().next_functions:
            if following is not None and following not in visited:
                yield following
                visited.add(following)
                if following not in stops:
                    waiting.append(following)


def leaves_of(outputs: Tensor) -> Iterator[Tensor]:
    """The tensors whose gradients a backward pass from ``outputs`` accumulates."""
    return _parameters_between([] if outputs.grad_fn is None else [outputs.grad_fn], set())


def _parameters_between(start: Iterable[Node], stops: set[Node]) -> Iterator[Tensor]:
    """The leaves of the graph from ``start`` back to ``stops``, exclusive."""
    waiting = [node for node in start if node not in stops]
    visited = set(waiting)
    while waiting:
        node = waiting.pop()
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            yield leaf
        for following, _ in node.next_functions:
            if following is not None and following not in visited and following not in stops:
                visited.add(following)
                waiting.append(following)


def _bypassing(name: str) -> str:
    return (
        f"parameter '{name}' was used without calling its layer (in the loss, or by another "
        "layer), so its per-example gradients are out of reach: call the layer, leave it out of "
        "the loss (a weight penalty is the optimizer's weight_decay), or freeze the parameter "
        "with requires_grad_(False)"
    )


def _check(use: _LayerUse, backprop: Tensor, examples: int) -> None:
    if use.inputs._version != use.version:
        raise GradientError(
            f"the input of layer '{use.name}' was overwritten after use: replace the in-place "
            "operation on it"
        )
    if use.inputs.shape[:1] != (examples,) or backprop.shape[:1] != (examples,):
        raise GradientError(
            f"layer '{use.name}' worked on tensors of shapes {tuple(use.inputs.shape)} and "
            f"{tuple(backprop.shape)} for {examples} examples: put the examples on the first axis"
            f"{expand_advice(use.inputs)}"
        )


def expand_advice(values: Tensor) -> str:
    """The remedy for one row that serves all examples, as positions do."""
    if values.shape[:1] != (1,):
        return ""
    return ", positions too: positions.expand(len(x), -1) makes (n, T) of (1, T)"


def _refuse_named(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    if named:
        raise GradientError(
            f"{type(module).__name__} was called with {sorted(named)}: torch.func, which handles "
            "it, can follow one positional tensor only; give its parameters to submodules"
        )


def _refuse_packed(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    if inputs and isinstance(inputs[0], nn.utils.rnn.PackedSequence):
        raise GradientError(
            f"{type(module).__name__} was given a packed sequence, which reorders the examples: "
            "give it a padded tensor and mask what it returns"
        )
