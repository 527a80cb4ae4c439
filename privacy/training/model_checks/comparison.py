"""Whether numbers of two passes are equal up to rounding."""

import torch
from torch import Tensor

# Relative to the largest number compared.
CLOSE = {torch.float64: 1e-9, torch.float32: 1e-4}
HALF = 3e-2


def largest_of(values: Tensor) -> float:
    """The largest finite magnitude."""
    if not values.numel():
        return 0.0
    largest = float(values.abs().amax())
    if largest < float("inf"):
        return largest
    finite = values[values.isfinite()]
    return float(finite.abs().amax()) if finite.numel() else 0.0


def closeness(values: Tensor) -> float:
    """Rounding, relative to the largest number; ``torch.autocast`` rounds to half precision."""
    if not (values.is_floating_point() or values.is_complex()):
        return 0.0
    if torch.is_autocast_enabled(values.device.type):
        return HALF
    return CLOSE.get(values.dtype, HALF)


def same_numbers(
    one: Tensor,
    other: Tensor,
    slack: float = 1.0,
    least: float = 0.0,
    *,
    close: float = 0.0,
    missing: bool = False,
) -> bool:
    """Whether they differ by no more than rounding, or ``least``.

    Rounding is their precision's, or ``close`` for results of coarser numbers, times ``slack``. NaN
    equals nothing, or itself where numbers may be ``missing``.
    """
    if one.shape != other.shape:
        return False
    if not one.numel():
        return True
    if not one.is_floating_point() and not one.is_complex():
        return torch.equal(one, other)
    same = one == other
    if missing:
        same |= one.isnan() & other.isnan()
    difference = torch.where(same, 0, one - other).abs().amax()
    close = slack * max(close, closeness(one))
    return float(difference) <= max(close * largest_of(one), least)
