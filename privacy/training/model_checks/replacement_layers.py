"""Layers that ``replace_unsupported`` puts in place of PyTorch's. Loads Opacus."""

from typing import Any

import torch
from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class AppendedVector(nn.Module):
    """Appends a trained vector to every sequence: (n, length, width) to (n, length + 1, width)."""

    def __init__(self, vector: Tensor) -> None:
        super().__init__()
        self.vector = _copied(vector)

    def forward(self, x: Tensor) -> Tensor:
        """Append it."""
        return torch.cat([x, self.vector.expand(len(x), 1, -1)], 1)


class SeparateAttention(nn.Module):
    """``nn.MultiheadAttention``: the same function of the same arguments, with the same weights.

    Its projections are layers of their own, with the examples on the first axis, so that each has
    per-example gradients. Opacus's replacement (1.6) gives something else with ``batch_first``,
    fails with masks, and without ``batch_first`` has the examples on the second axis.

    Parameters
    ----------
    attention : nn.MultiheadAttention
        Its weights are copied.
    """

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.num_heads = attention.embed_dim, attention.num_heads
        self.kdim, self.vdim, self.head_dim = attention.kdim, attention.vdim, attention.head_dim
        self.batch_first, self.dropout = attention.batch_first, attention.dropout
        self.add_zero_attn = attention.add_zero_attn
        with torch.enable_grad():  # so that a frozen parameter's parts are frozen, no others
            weights: list[Tensor] = (
                list(attention.in_proj_weight.chunk(3))
                if attention.in_proj_weight is not None
                else [attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight]
            )
            bias = attention.in_proj_bias
            biases: list[Tensor | None] = [None] * 3 if bias is None else list(bias.chunk(3))
            self.qlinear, self.klinear, self.vlinear = (
                _linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
            )
            self.out_proj = _linear(attention.out_proj.weight, attention.out_proj.bias)
            self.k_vector = self.v_vector = None
            if attention.bias_k is not None and attention.bias_v is not None:
                self.k_vector = AppendedVector(attention.bias_k[0, 0])
                self.v_vector = AppendedVector(attention.bias_v[0, 0])
        # PyTorch's transformer layers read these, and then do not take their fast path.
        self._qkv_same_embed_dim = False
        self.in_proj_weight = self.in_proj_bias = None
        self.train(attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As ``nn.MultiheadAttention.forward``, for batches."""
        if query.dim() != 3:
            raise ValueError(
                f"query has shape {tuple(query.shape)}: give attention a batch, three axes"
            )
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is True: give the causal attn_mask as well")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self.qlinear(query), self.klinear(key), self.vlinear(value)
        extra = 0
        if self.k_vector is not None and self.v_vector is not None:
            k, v, extra = self.k_vector(k), self.v_vector(v), extra + 1
        if self.add_zero_attn:
            k, v, extra = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1)), extra + 1
        q, k, v = (self._heads(x) for x in (q, k, v))
        # As PyTorch does: with the hint alone the mask is not looked at.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = None if causal else self._mask(q, attn_mask, key_padding_mask, extra)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.mT
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        outputs: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return (outputs if self.batch_first else outputs.transpose(0, 1)), weights

    def _heads(self, x: Tensor) -> Tensor:
        """(n, length, width) as (n, heads, length, width / heads)."""
        heads: Tensor = x.unflatten(2, (self.num_heads, self.head_dim))
        return heads.transpose(1, 2)

    def _mask(
        self, q: Tensor, attn_mask: Tensor | None, padding: Tensor | None, extra: int
    ) -> Tensor | None:
        """Both masks as numbers to add, (n, heads, target, source) or broadcast to it."""
        mask: Tensor | None = None
        if attn_mask is not None:
            mask = F.pad(_added("attn_mask", attn_mask, q), (0, extra))
            if mask.dim() == 3:
                mask = mask.unflatten(0, (len(q), self.num_heads))
        if padding is not None:
            padding = F.pad(_added("key_padding_mask", padding, q), (0, extra))[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = _copied(weight)
    if bias is not None:
        made.bias = _copied(bias)
    return made


def _copied(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(), requires_grad=values.requires_grad)


def _added(name: str, mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=like.dtype).masked_fill_(mask, float("-inf"))
    if not mask.is_floating_point():
        raise ValueError(f"{name} is of {mask.dtype}: give a mask of booleans or of numbers to add")
    return mask.to(like.dtype)


class _Batched:
    """Opacus's recurrent layer, called as PyTorch's: it refuses a sequence without a batch."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        """As PyTorch's layer, for batches.

        Raises
        ------
        ValueError
            If the input has no axis for the batch.
        """
        if isinstance(input, Tensor) and input.dim() != 3:
            raise ValueError(
                f"input has shape {tuple(input.shape)}: give {type(self).__name__} a batch, three "
                "axes (unsqueeze makes one of a single sequence)"
            )
        return super().forward(input, hx)  # type: ignore[misc]

    def flatten_parameters(self) -> None:
        """Does nothing: the weights are those of linear layers, which cuDNN does not join."""


class BatchedRNN(_Batched, DPRNN):
    """``nn.RNN``."""


class BatchedGRU(_Batched, DPGRU):
    """``nn.GRU``."""


class BatchedLSTM(_Batched, DPLSTM):
    """``nn.LSTM``."""
