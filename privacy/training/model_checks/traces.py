"""Forward and backward passes over made-up records, and what each place of a model gave."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.model_state import BATCH, GlobalGenerators, kept_randomness
from privacy.training.per_example.capture import Capture, one_for_all
from privacy.training.per_example.loss import ExampleLoss, detached, tensors_of


@dataclass(frozen=True)
class Others:
    """What rows are given beside those that are compared.

    Parameters
    ----------
    rows : sequence of int
        Which rows they are.
    cotangent : float
        Factor of what comes back to them at the outputs.
    disturbed : bool
        Whether they also get other values behind every layer, by the same factor.
    """

    rows: Sequence[int] = ()
    cotangent: float = 1.0
    disturbed: bool = False


NOBODY = Others()
THE_LOSS = "the loss"


@dataclass(frozen=True)
class Numbers:
    """(where, values with the examples first) of one pass, and whether it drew random numbers."""

    places: list[tuple[str, Tensor]]
    backprops: list[tuple[str, Tensor]]
    drew: bool

    def only(self, rows: Sequence[int]) -> "Numbers":
        """Those of some of the records."""
        places = [(where, values[rows]) for where, values in self.places]
        return Numbers(places, [(where, back[rows]) for where, back in self.backprops], self.drew)

    def forward(self) -> "Numbers":
        """Those of the forward pass."""
        return Numbers(self.places, [], self.drew)

    def without_loss(self) -> "Numbers":
        """As if the loss had not been asked."""
        places = [(where, values) for where, values in self.places if where != THE_LOSS]
        return Numbers(places, self.backprops, self.drew)


class Passes:
    """Passes of one model; ``over`` makes them."""

    def __init__(
        self, model: nn.Module, loss: ExampleLoss, capture: Capture, generators: GlobalGenerators
    ) -> None:
        self._model, self._loss = model, loss
        self._capture, self._generators = capture, generators

    @classmethod
    @contextmanager
    def over(cls, model: nn.Module, loss: ExampleLoss) -> Iterator[Self]:
        """Watch ``model``, with the process's random state kept as it was."""
        with kept_randomness(model) as generators, Capture(model) as capture:
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
        others: Others = NOBODY,
        backward: bool = True,
    ) -> Numbers:
        """Both passes over a batch, or the forward pass alone.

        Parameters
        ----------
        inputs : sequence of Tensor, shape (n, ...)
            The records' inputs.
        targets : Tensor, shape (n, ...), or None
            Without them the loss is not asked.
        seed : int
            Of whatever the model draws.
        places : sequence of int, optional
            Which of a larger batch the records are, so that the same comes back to them.
        others : Others
            What is done to some of the rows.
        backward : bool
            Whether the backward pass is made.
        """
        examples = len(inputs[0])
        self._capture.take()  # of a pass that failed
        self._generators.restart(seed)
        with self._disturbing(others, examples):
            outputs = self._model(*inputs)
        found = tensors_of(outputs)
        losses = []
        if targets is not None:
            losses = [(THE_LOSS, self._loss(detached(outputs), targets))]
        check_first_axis([("the outputs", each) for each in found], examples)
        trained = [each for each in found if each.requires_grad and backward]
        rows = range(examples) if places is None else places
        cotangents = [_cotangent(each, rows, others) for each in trained]
        seen, back = self._capture.take_with_backprops(trained, cotangents)
        drew = self._generators.drew()
        inside = [(f"'{name}'", values) for name, values in seen]
        backprops = [(f"'{name}'", values) for name, values in back]
        check_first_axis(inside + backprops, examples)
        ends = [("the outputs", values.detach()) for values in found]
        return Numbers([*inside, *ends, *losses], backprops, drew)

    @contextmanager
    def _disturbing(self, others: Others, examples: int) -> Iterator[None]:
        handles = []
        if others.disturbed:
            frozen = [m for m in self._model.modules() if isinstance(m, nn.Embedding)]
            layers = dict.fromkeys((*self._capture.layers.values(), *frozen))
            hook = partial(_disturb, others=others, examples=examples)
            handles = [layer.register_forward_hook(hook) for layer in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def check_first_axis(places: Sequence[tuple[str, Tensor]], examples: int) -> None:
    """Refuse values that do not have the examples on their first axis."""
    for where, values in places:
        if values.shape[:1] != (examples,):
            raise GradientError(
                f"{where} has shape {tuple(values.shape)} for {examples} examples: put the "
                f"examples on the first axis{one_for_all(values)}"
            )


def _cotangent(output: Tensor, rows: Sequence[int], others: Others) -> Tensor:
    """Gradients at an output, made up: those of a loss may be nothing but rounding."""
    generator = torch.Generator("cpu").manual_seed(1)
    shape = (max(BATCH, len(rows)), *output.shape[1:])  # of other sizes other numbers are drawn
    drawn = torch.randn(shape, generator=generator, device="cpu")
    if others.rows:
        drawn[list(others.rows)] *= others.cotangent
    return drawn[list(rows)].to(output)


def _disturb(
    layer: nn.Module, inputs: tuple[Any, ...], output: Any, *, others: Others, examples: int
) -> Any:
    """Give the others' rows other values behind this layer."""
    if not isinstance(output, Tensor) or output.shape[:1] != (examples,):
        return output
    changed = output.clone()
    for row in others.rows:
        changed[row] = 1 + row + others.cotangent * output[row]
    return changed
