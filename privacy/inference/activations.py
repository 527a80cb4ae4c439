"""Activations that CKKS can evaluate: polynomials."""

from collections.abc import Callable, Sequence

import numpy as np
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

    @classmethod
    def fitted(
        cls,
        function: Callable[[Tensor], Tensor],
        *,
        low: float,
        high: float,
        degree: int = 2,
        trainable: bool = True,
    ) -> "Polynomial":
        """The polynomial that starts out like another activation, between two values.

        Interpolation at Chebyshev points. Put it in the place of the activation *before*
        training, and let it learn with the model: fitted afterwards it is rough wherever values
        leave the interval.

        Parameters
        ----------
        function : callable
            An activation, such as ``nn.ReLU()``.
        low, high : float
            Between which values it is to be alike. They must be public, or estimated privately.
        degree : int
            2 to 7; each costs depth.
        trainable : bool
            As above.

        Raises
        ------
        ValueError
            If the interval is empty or the degree is not 2 to 7.
        """
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise ValueError(f"low and high are {low} and {high}; give finite low < high")
        if not 2 <= degree <= MAX_DEGREE:
            raise ValueError(f"degree is {degree}; give 2 to {MAX_DEGREE}")

        def values(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(function(torch.from_numpy(x)).numpy())

        series = np.polynomial.Chebyshev.interpolate(values, degree, domain=[low, high])
        coefficients = series.convert(kind=np.polynomial.Polynomial).coef
        return cls([float(c) for c in coefficients], trainable=trainable)

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate the polynomial on every element of ``x``, by Horner's rule."""
        result = torch.full_like(x, 1.0) * self.coefficients[-1]
        for coefficient in reversed(self.coefficients[:-1].unbind()):
            result = result * x + coefficient
        return result

    def extra_repr(self) -> str:
        """The coefficients, lowest power first."""
        return ", ".join(f"{c:.4g}" for c in self.coefficients.tolist())
