"""Opacus's recurrent layers, called as PyTorch's are; loaded where one is asked for."""

from typing import Any

from opacus.layers import DPGRU, DPLSTM, DPRNN
from torch import Tensor


class _AsPyTorchs:
    """Refuses what PyTorch's layers take as one sequence, and Opacus's as many of one step."""

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


class BatchedRNN(_AsPyTorchs, DPRNN):
    """``nn.RNN``."""


class BatchedGRU(_AsPyTorchs, DPGRU):
    """``nn.GRU``."""


class BatchedLSTM(_AsPyTorchs, DPLSTM):
    """``nn.LSTM``."""
