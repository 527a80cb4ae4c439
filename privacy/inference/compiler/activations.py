"""Activations that CKKS can evaluate: polynomials."""

import logging
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from privacy.arguments import number, whole

MAX_DEGREE = 7
_NEGLIGIBLE = 1e-6
"""Of the largest part of a fitted polynomial: about what float32 holds."""
_COEFFICIENTS = f"2 to {MAX_DEGREE + 1} finite numbers, lowest power first"
_log = logging.getLogger(__name__)


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
    TypeError
        If a coefficient is no number.
    ValueError
        If there are fewer than 2 or more than 8 coefficients, one is not finite, or the last
        is zero.
    """

    coefficients: Tensor

    def __init__(self, coefficients: Sequence[float], *, trainable: bool = False) -> None:
        super().__init__()
        given = [number("coefficients", each, give=_COEFFICIENTS) for each in coefficients]
        # Judged on the CPU, wherever PyTorch puts new tensors.
        values = torch.tensor(given, dtype=torch.float32, device="cpu")
        if not 2 <= len(values) <= MAX_DEGREE + 1:
            raise ValueError(
                f"coefficients has {len(values)} entries; give 2 to {MAX_DEGREE + 1} "
                f"(degree 1 to {MAX_DEGREE}), lowest power first"
            )
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"coefficients must be finite, but are {values.tolist()}")
        if float(values[-1]) == 0.0:
            raise ValueError("the last coefficient is 0; leave it out to lower the degree")
        values = values.to(torch.get_default_device())
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

        Interpolation at Chebyshev points, without the powers that contribute nothing: between -2
        and 2 tanh is odd, so that of degree 2 it is a straight line, and of degree 4 as good as
        of 3; the log tells of a lower degree. Put it in the activation's place *before* training,
        and let it learn with the model: fitted afterwards it is rough where values leave the
        interval.

        Parameters
        ----------
        function : callable
            An activation, such as ``nn.ReLU()``.
        low, high : float
            Ends of the interval. They must be public, or estimated privately.
        degree : int
            2 to 7; each costs depth.
        trainable : bool
            As above.

        Raises
        ------
        TypeError
            If ``low``, ``high`` or ``degree`` is no number.
        ValueError
            If the interval is empty, the degree is not 2 to 7, or the function is constant or
            not finite there.
        """
        low, high = number("low", low), number("high", high)
        if not low < high:
            raise ValueError(f"low and high are {low} and {high}; give finite low < high")
        degree = whole("degree", degree, least=2, most=MAX_DEGREE, give=f"2 to {MAX_DEGREE}")

        def values(x: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return np.asarray(function(torch.from_numpy(x)).numpy())

        series = np.polynomial.Chebyshev.interpolate(values, degree, domain=[low, high])
        if not bool(np.isfinite(series.coef).all()):
            raise ValueError(f"function is not finite between low = {low} and high = {high}")
        parts = np.abs(series.coef)
        there = np.flatnonzero(parts > _NEGLIGIBLE * parts.max())
        if there.max(initial=0) == 0:
            raise ValueError(
                f"function is constant between low = {low} and high = {high}; give an interval "
                "in which it changes"
            )
        series = series.truncate(int(there.max()) + 1)
        coefficients = significant(
            series.convert(kind=np.polynomial.Polynomial).coef, max(abs(low), abs(high))
        )
        if len(coefficients) - 1 < degree:
            _log.warning(
                "Polynomial.fitted: between %g and %g the function has nothing of degree %d; the "
                "polynomial is of degree %d%s",
                *(low, high, degree, len(coefficients) - 1),
                ", a straight line: ask for degree=3" if len(coefficients) == 2 else "",
            )
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


def significant(coefficients: np.ndarray, reach: float) -> np.ndarray:
    """A fitted polynomial without powers that contribute nothing while |x| ≤ ``reach``.

    What is left of powers that cancel is rounding, and would cost products.
    """
    shares = np.abs(coefficients) * reach ** np.arange(len(coefficients))
    kept = np.where(shares < _NEGLIGIBLE * shares.max(), 0.0, coefficients)
    return np.trim_zeros(kept, "b")
