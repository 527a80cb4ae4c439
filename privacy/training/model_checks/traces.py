"""Forward and backward passes over trial records, and the numbers at each place of a model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any, Self

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.comparison import closeness, largest_of, same_numbers
from privacy.training.model_checks.model_state import GlobalGenerators, preserved_randomness
from privacy.training.model_checks.trial_records import BATCH
from privacy.training.per_example.capture import Capture, expand_advice
from privacy.training.per_example.loss import ExampleLoss, detached, tensors_of

# A backprop of a layer, next to the largest of any, may be rounding alone.
_ROUNDING = 1e-6

_Places = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class Perturbation:
    """Changes to the rows beside those that are compared."""

    rows: Sequence[int] = ()
    factor: float = 1.0  # of their cotangents at the outputs
    layer_outputs: bool = False  # whether they also have other values behind every layer


UNPERTURBED = Perturbation()
_LOSS = "the loss"


@dataclass(frozen=True)
class Trace:
    """(place, values with the examples first) of one pass, and whether it drew random numbers."""

    forward: _Places
    backward: _Places
    drew: bool

    def only(self, rows: Sequence[int]) -> "Trace":
        """The trace of some of the records."""
        forward = [(place, values[rows]) for place, values in self.forward]
        backward = [(place, values[rows]) for place, values in self.backward]
        return Trace(forward, backward, self.drew)

    def without_backward(self) -> "Trace":
        """The trace of the forward pass."""
        return Trace(self.forward, [], self.drew)

    def without_loss(self) -> "Trace":
        """The trace of a pass without targets."""
        forward = [(place, values) for place, values in self.forward if place != _LOSS]
        return Trace(forward, self.backward, self.drew)


def first_difference(
    one: Trace,
    other: Trace,
    rows: slice | Sequence[int] = slice(None),
    slack: float = 1.0,
    *,
    missing: bool = False,
) -> str | None:
    """The first place where the rows' numbers differ; ``missing`` ones are equal to each other."""
    close = 0.0  # of the coarsest precision that a number has come through
    for mine, theirs in zip_longest(one.forward, other.forward):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"before {(mine or theirs)[0]}"
        values = mine[1][rows], theirs[1][rows]
        close = max(close, closeness(values[0]))
        if not same_numbers(*values, slack, close=close, missing=missing):
            return f"before {mine[0]}"
    least = _ROUNDING * max((largest_of(back[rows]) for _, back in one.backward), default=0.0)
    for mine, theirs in zip_longest(one.backward, other.backward):
        if mine is None or theirs is None or mine[0] != theirs[0]:
            return f"in the backward pass behind {(mine or theirs)[0]}"
        values = mine[1][rows], theirs[1][rows]
        if not same_numbers(*values, slack, least, close=close, missing=missing):
            return f"in the backward pass behind {mine[0]}"
    return None


class TracedModel:
    """A model whose passes are traced; ``tracing`` makes one."""

    def __init__(
        self, model: nn.Module, loss: ExampleLoss, capture: Capture, generators: GlobalGenerators
    ) -> None:
        self._model, self._loss = model, loss
        self._capture, self._generators = capture, generators

    @classmethod
    @contextmanager
    def tracing(cls, model: nn.Module, loss: ExampleLoss) -> Iterator[Self]:
        """Trace ``model``; the process's random state is preserved."""
        with preserved_randomness(model) as generators, Capture(model) as capture:
            yield cls(model, loss, capture, generators)

    @property
    def tables(self) -> list[nn.Embedding | nn.EmbeddingBag]:
        """The model's tables."""
        kinds = (nn.Embedding, nn.EmbeddingBag)
        return [each for each in self._model.modules() if isinstance(each, kinds)]

    def __call__(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor | None,
        *,
        seed: int = 0,
        places: Sequence[int] | None = None,
        perturbed: Perturbation = UNPERTURBED,
        backward: bool = True,
    ) -> Trace:
        """Both passes over a batch, or the forward pass alone.

        Without ``targets`` the loss is not computed. ``seed`` is that of the model's random draws.
        ``places`` are the records' rows in a larger batch, whose cotangents they get.
        """
        examples = len(inputs[0])
        self._capture.forget()  # a pass that failed
        self._generators.seed(seed)
        with self._perturbing(perturbed, examples):
            outputs = self._model(*inputs)
        output_tensors = tensors_of(outputs)
        losses = []
        if targets is not None:
            losses = [(_LOSS, self._loss(detached(outputs), targets))]
        _check_first_axis([("the outputs", each) for each in output_tensors], examples)
        trained = [each for each in output_tensors if each.requires_grad and backward]
        rows = range(examples) if places is None else places
        cotangents = [_cotangent(each, rows, perturbed) for each in trained]
        named_inputs, backprops = self._capture.inputs_and_backprops(trained, cotangents)
        drew = self._generators.drew()
        forward = [(f"'{name}'", values) for name, values in named_inputs]
        backwards = [(f"'{name}'", values) for name, values in backprops]
        _check_first_axis(forward + backwards, examples)
        ends = [("the outputs", values.detach()) for values in output_tensors]
        return Trace([*forward, *ends, *losses], backwards, drew)

    @contextmanager
    def _perturbing(self, perturbed: Perturbation, examples: int) -> Iterator[None]:
        handles = []
        if perturbed.layer_outputs:
            tables = [m for m in self._model.modules() if isinstance(m, nn.Embedding)]
            layers = dict.fromkeys((*self._capture.layers.values(), *tables))
            hook = partial(_perturb_output, perturbed=perturbed, examples=examples)
            handles = [layer.register_forward_hook(hook) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _check_first_axis(places: _Places, examples: int) -> None:
    for place, values in places:
        if values.shape[:1] != (examples,):
            raise GradientError(
                f"{place} has shape {tuple(values.shape)} for {examples} examples: put the "
                f"examples on the first axis{expand_advice(values)}"
            )


def _cotangent(output: Tensor, rows: Sequence[int], perturbed: Perturbation) -> Tensor:
    """Made-up gradients at an output: a loss's may be rounding alone."""
    generator = torch.Generator("cpu").manual_seed(1)
    shape = (max(BATCH, len(rows)), *output.shape[1:])  # of other sizes other numbers are drawn
    drawn = torch.randn(shape, generator=generator, device="cpu")
    if perturbed.rows:
        drawn[list(perturbed.rows)] *= perturbed.factor
    return drawn[list(rows)].to(output)


def _perturb_output(
    layer: nn.Module,
    inputs: tuple[Any, ...],
    output: Any,
    *,
    perturbed: Perturbation,
    examples: int,
) -> Any:
    if not isinstance(output, Tensor) or output.shape[:1] != (examples,):
        return output
    changed = output.clone()
    for row in perturbed.rows:
        changed[row] = 1 + row + perturbed.factor * output[row]
    return changed
