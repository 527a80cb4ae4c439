"""Which arrays of a model are clipped together, and to which norms."""

from dataclasses import dataclass
from math import sqrt

from privacy.arguments import number, whole

_SMALLEST_NORM, _LARGEST_NORM = 1e-30, 1e30  # beyond, single precision could overflow


@dataclass(frozen=True)
class ClippingGeometry:
    """Which arrays are clipped together, and to which norm.

    Parameters
    ----------
    norms : tuple of float
        The clipping norm S_l of each group, in the units of the model's parameters.
    group_of : tuple of int
        For each array, the index of its group in ``norms``.
    """

    norms: tuple[float, ...]
    group_of: tuple[int, ...]

    def __post_init__(self) -> None:
        norms = tuple(
            number("a clipping norm", norm, least=_SMALLEST_NORM, most=_LARGEST_NORM)
            for norm in self.norms
        )
        groups = tuple(whole("a group", group) for group in self.group_of)
        object.__setattr__(self, "norms", norms)
        object.__setattr__(self, "group_of", groups)
        if any(not 0 <= group < len(self.norms) for group in self.group_of):
            raise ValueError(f"group_of names a group outside 0..{len(self.norms) - 1}")

    @property
    def total_norm(self) -> float:
        """The clipping norm S = sqrt(sum of S_l^2) of the whole update."""
        return sqrt(sum(norm * norm for norm in self.norms))
