"""Embeddings: an example's gradient has as many rows as it has different indices."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from privacy.training.per_example.gradients import (
    Call,
    Gradients,
    LayerGradients,
    one_for_zero,
    row_norms,
)


class EmbeddingGradients:
    """The rows of the table that each of ``count`` examples touches, with their gradients.

    ``examples`` and ``indices``, shape (r,), pair an example with a row of the table, no pair
    twice; ``rows``, shape (r, width), are the example's gradients there.
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
        largest = one_for_zero(zeros.scatter_reduce(0, self._examples, norms, "amax"))
        squares = (norms / largest[self._examples]).square_()
        return [zeros.index_add_(0, self._examples, squares).sqrt_().mul_(largest)]

    def weighted_sum(self, factors: Tensor) -> Gradients:
        weighted = self._rows * factors.to(self.dtype)[self._examples, None]
        table = torch.zeros_like(self._layer.weight, dtype=self.dtype)
        return {self._layer.weight: table.index_add_(0, self._indices, weighted)}

    def select(self, rows: Tensor) -> LayerGradients:
        selected = rows[self._examples]
        new_numbers = rows.cumsum(0) - 1
        return EmbeddingGradients(
            self._layer,
            int(rows.sum()),
            new_numbers[self._examples[selected]],
            self._indices[selected],
            self._rows[selected],
        )

    def of_each(self, out: Gradients) -> None:
        tables = self._rows.new_zeros((self._count, *self._layer.weight.shape))
        tables[self._examples, self._indices] = self._rows
        out[self._layer.weight].copy_(tables)


def embedding_gradients(layer: nn.Embedding, calls: list[Call]) -> EmbeddingGradients:
    """The gradients of a table; its padding row has none."""
    count, height = len(calls[0].inputs), layer.num_embeddings
    examples = torch.arange(count, device=layer.weight.device)[:, None]
    indices = torch.cat([call.inputs.reshape(count, -1) for call in calls], 1)
    back = torch.cat([call.backprops.reshape(count, -1, layer.embedding_dim) for call in calls], 1)
    keys = (indices + examples * height).flatten()
    back = back.flatten(0, 1)
    if layer.padding_idx is not None:
        trained = indices.flatten() != layer.padding_idx
        keys, back = keys[trained], back[trained]
    unique, position = torch.unique(keys, return_inverse=True)
    rows = back.new_zeros((len(unique), layer.embedding_dim)).index_add_(0, position, back)
    return EmbeddingGradients(layer, count, unique // height, unique % height, rows)
