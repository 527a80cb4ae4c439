"""Activations that CKKS can evaluate: polynomials."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

MAX_DEGREE = 7


class Square(nn.Module):
    """x², elementwise: the cheapest activation under CKKS (one multiplication, depth one)."""

    def forward(self, x: Tensor) -> Tensor:
        """Square every element of ``x``, of any shape."""
        return x * x


class Polynomial(nn.Module):
    """A polynomial applied to every element, its coefficients trained or fixed.

    Parameters
    ----------
    coefficients : sequence of float
        c₀, c₁, ..., c_d in rising order, of degree 1 to 7, with c_d ≠ 0.
    trainable : bool
        Whether the coefficients are parameters of the model (they then learn with it) or a
        buffer.

    Raises
    ------
    ValueError
        If there are fewer than 2 or more than 8 coefficients, one is not finite, or the last
        is zero.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Sequence[float], *, trainable: bool = False) -> None:
        super().__init__()
        values = torch.as_tensor(list(coefficients), dtype=torch.float32)
        if not 2 <= len(values) <= MAX_DEGREE + 1:
            raise ValueError(
                f"coefficients has {len(values)} entries; give 2 to {MAX_DEGREE + 1} "
                f"(degree 1 to {MAX_DEGREE}), lowest power first"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"coefficients must be finite, but are {values.tolist()}")
        if float(values[-1]) == 0.0:
            raise ValueError("the last coefficient is 0; leave it out to lower the degree")
        if trainable:
            self.coefficients = nn.Parameter(values)
        else:
            self.register_buffer("coefficients", values)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the polynomial on every element of ``x``, by Horner's rule."""
        result = torch.full_like(x, 1.0) * self.coefficients[-1]
        for coefficient in reversed(self.coefficients[:-1].unbind()):
            result = result * x + coefficient
        return result

    def extra_repr(self) -> str:
        """The coefficients, lowest power first."""
        return ", ".join(f"{c:.4g}" for c in self.coefficients.tolist())
