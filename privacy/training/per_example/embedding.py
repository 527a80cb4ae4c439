"""Embeddings: an example's gradient has as many rows as it has different indices."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from privacy.training.per_example.gradients import (
    Call,
    Gradients,
    LayerGradients,
    magnitudes,
    row_norms,
)


class Rows:
    """The rows of the table that each example touches, each with its summed gradient.

    Parameters
    ----------
    layer : nn.Embedding
        The table.
    count : int
        n.
    examples, indices : Tensor, shape (r,)
        Which example touches which row of the table; no pair twice.
    rows : Tensor, shape (r, width)
        The gradient of the example at that row.
    """

    method = "table rows"

    def __init__(
        self, layer: nn.Embedding, count: int, examples: Tensor, indices: Tensor, rows: Tensor
    ) -> None:
        self._layer, self._count = layer, count
        self._examples, self._indices, self._rows = examples, indices, rows
        self.dtype = rows.dtype

    def norms(self) -> Iterable[Tensor]:
        norms = row_norms(self._rows)
        zeros = norms.new_zeros(self._count)
        largest = magnitudes(zeros.scatter_reduce(0, self._examples, norms, "amax"))
        squares = (norms / largest[self._examples]).square_()
        return [zeros.index_add_(0, self._examples, squares).sqrt_().mul_(largest)]

    def weighted_sum(self, factors: Tensor) -> Gradients:
        weighted = self._rows * factors.to(self.dtype)[self._examples, None]
        table = torch.zeros_like(self._layer.weight, dtype=self.dtype)
        return {self._layer.weight: table.index_add_(0, self._indices, weighted)}

    def only(self, rows: Tensor) -> LayerGradients:
        kept = rows[self._examples]
        renumbered = rows.cumsum(0) - 1
        return Rows(
            self._layer,
            int(rows.sum()),
            renumbered[self._examples[kept]],
            self._indices[kept],
            self._rows[kept],
        )


def embedding_gradients(layer: nn.Embedding, calls: list[Call]) -> Rows:
    """The gradients of a table; the padding row has none."""
    count, height = len(calls[0].inputs), layer.num_embeddings
    examples = torch.arange(count, device=layer.weight.device)[:, None]
    places = torch.cat([call.inputs.reshape(count, -1) for call in calls], 1)
    back = torch.cat([call.backprops.reshape(count, -1, layer.embedding_dim) for call in calls], 1)
    keys = (places + examples * height).flatten()
    back = back.flatten(0, 1)
    if layer.padding_idx is not None:
        kept = places.flatten() != layer.padding_idx
        keys, back = keys[kept], back[kept]
    unique, position = torch.unique(keys, return_inverse=True)
    rows = back.new_zeros((len(unique), layer.embedding_dim)).index_add_(0, position, back)
    return Rows(layer, count, unique // height, unique % height, rows)
