"""One forward and one backward pass that leave every layer's inputs and output gradients."""

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from opacus.layers.dp_rnn import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils.hooks import RemovableHandle

from ._layers import Call, LayerGradients, layer_gradients, registered


class GradientError(RuntimeError):
    """Per-example gradients cannot be had from this model: which layer, why, the remedy."""


def trainable_layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules whose own parameters train, each one's gradients being had at one place.

    A module with parameters of its own that Opacus does not know is handled whole, with what is
    inside it.
    """
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    if trains and type(module) not in (DPRNN, DPLSTM, DPGRU):
        yield name, module
        if not registered(module):
            return
    for child_name, child in module.named_children():
        yield from trainable_layers(child, f"{name}.{child_name}" if name else child_name)


class Capture:
    """Watches a model's trainable layers while in use as a context.

    Parameters
    ----------
    model : nn.Module
        Every parameter belongs to one layer only (``check_model`` makes sure).
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = dict(trainable_layers(model))
        self._names = {layer: name for name, layer in self.layers.items()}
        self._handles: list[RemovableHandle] = []
        self._seen: list[tuple[str, Tensor, int, GradientEdge]] = []

    def __enter__(self) -> Self:
        for layer in self.layers.values():
            self._handles.append(layer.register_forward_hook(self._watch))
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
        self._seen.clear()

    def _watch(self, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        name = self._names[layer]
        if not isinstance(output, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
            raise GradientError(
                f"layer '{name}' ({type(layer).__name__}) does not take and return one tensor: "
                "give its parameters to submodules that do"
            )
        if output.requires_grad:
            seen = inputs[0].detach()
            self._seen.append((name, seen, seen._version, get_gradient_edge(output)))

    def gradients(self, losses: Tensor) -> dict[str, LayerGradients]:
        """Every layer's per-example gradients, for the forward pass since the last call.

        Parameters
        ----------
        losses : Tensor
            The examples' losses, shape (n,).

        Returns
        -------
        dict of str to LayerGradients
            By layer name; a layer that took no part is missing, its gradient being zero.

        Raises
        ------
        GradientError
            If a layer's tensors do not have the examples on their first axis, an input was
            overwritten, or a parameter was used around its layer.
        """
        seen, self._seen = self._seen, []
        examples = len(losses)
        used = {name for name, _, _, _ in seen}
        bypassed = [
            (f"{name}.{own}" if name else own, parameter)
            for name, layer in self.layers.items()
            if name not in used
            for own, parameter in layer.named_parameters()
            if parameter.requires_grad
        ]
        if not losses.requires_grad:
            return {}
        sought = [edge for _, _, _, edge in seen]
        sought += [get_gradient_edge(parameter) for _, parameter in bypassed]
        backprops: Sequence[Tensor | None] = torch.autograd.grad(
            losses.sum(), sought, allow_unused=True
        )
        for (name, _), found in zip(bypassed, backprops[len(seen) :], strict=True):
            if found is not None:
                raise GradientError(
                    f"parameter '{name}' was used without calling its layer, so its per-example "
                    "gradients are out of reach: call the layer, or freeze the parameter with "
                    "requires_grad_(False)"
                )
        calls: dict[str, list[Call]] = {}
        for (name, inputs, version, _), backprop in zip(seen, backprops, strict=False):
            if backprop is None:
                continue
            if inputs._version != version:
                raise GradientError(
                    f"the input of layer '{name}' was overwritten after use: replace the in-place "
                    "operation on it"
                )
            if len(inputs) != examples or len(backprop) != examples:
                raise GradientError(
                    f"layer '{name}' worked on tensors of shapes {tuple(inputs.shape)} and "
                    f"{tuple(backprop.shape)} for {examples} examples: put the examples on the "
                    "first axis"
                )
            calls.setdefault(name, []).append(Call(inputs, backprop.detach()))
        return {name: layer_gradients(self.layers[name], made) for name, made in calls.items()}
