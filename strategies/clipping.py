"""How updates are clipped: flat, per layer, or to a norm that follows a quantile."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, sqrt
from typing import Protocol

from privacy import arguments
from privacy.mechanisms import ClippingGeometry

_SMALLEST, _LARGEST = 1e-12, 1e12


def _check_norm(name: str, value: float) -> float:
    return arguments.number(name, value, least=_SMALLEST, most=_LARGEST)


class Clipping(Protocol):
    """The clipping of a round's updates."""

    @property
    def norm(self) -> float:
        """The clipping norm S of the whole update, now."""

    def geometry(self, names: Sequence[str]) -> ClippingGeometry:
        """The clipping of a model whose floating-point arrays have these names."""


@dataclass(frozen=True)
class FlatClipping:
    """One norm S for the whole update."""

    norm: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", _check_norm("the clipping norm", self.norm))

    def geometry(self, names: Sequence[str]) -> ClippingGeometry:
        """One group."""
        return ClippingGeometry((self.norm,), (0,) * len(names))


@dataclass(frozen=True)
class PerLayerClipping:
    """A norm S_l for each layer; the whole update then has norm S = sqrt(sum of S_l^2).

    Parameters
    ----------
    norms : mapping of str to float
        The clipping norm of every array whose name starts with the key; the longest key wins.
        McMahan et al. 2018 (arXiv 1710.06963, section 2) call it per-layer clipping.
    """

    norms: Mapping[str, float]

    def __post_init__(self) -> None:
        arguments.of_kind("norms", self.norms, (Mapping,), "a dict of layers to their norms")
        if not self.norms:
            raise ValueError("per-layer clipping needs at least one layer's norm")
        norms = {
            layer: _check_norm(f"the clipping norm of {layer!r}", norm)
            for layer, norm in self.norms.items()
        }
        object.__setattr__(self, "norms", norms)

    @property
    def norm(self) -> float:
        """S = sqrt(sum of S_l^2)."""
        return sqrt(sum(norm * norm for norm in self.norms.values()))

    def geometry(self, names: Sequence[str]) -> ClippingGeometry:
        """One group a layer; every array belongs to one, and every layer has an array."""
        layers = list(self.norms)
        group_of = []
        for name in names:
            fitting = [layer for layer in layers if name.startswith(layer)]
            if not fitting:
                raise ValueError(
                    f"array {name!r} belongs to none of the layers {layers}; add its norm"
                )
            group_of.append(layers.index(max(fitting, key=len)))
        unused = [layer for i, layer in enumerate(layers) if i not in group_of]
        if unused:
            raise ValueError(f"no array belongs to the layers {unused}; remove their norms")
        return ClippingGeometry(tuple(self.norms.values()), tuple(group_of))


@dataclass
class AdaptiveClipping:
    """A flat norm that follows a quantile of the clients' norms, privately.

    Andrew et al. 2021 (arXiv 1905.03871, Algorithm 1). Each client's bit «was not clipped»,
    centred to ±1/2, is summed with Gaussian noise σ_b and divided by the fixed expected cohort;
    the norm then moves geometrically towards the quantile. Both releases together cost no more
    than one with the round's noise multiplier z: the update's noise is raised to
    z_Δ = (z⁻² − (2σ_b)⁻²)^(−1/2) (their Theorem 1).

    **Guarantee.** The pair (noisy sum, noisy count) is a Gaussian mechanism with noise
    multiplier z under add or remove one client.

    **Assumptions.** The norm that clips a round is the norm its noise is sized for.

    **Not covered.** Replace-one adjacency; per-layer norms.

    Parameters
    ----------
    initial_norm : float
        S of the first round.
    quantile : float
        γ, the wanted fraction of clients that are not clipped.
    learning_rate : float
        η_C of the geometric update.
    count_noise : float, optional
        σ_b, the standard deviation of the noise on the sum of bits. Default: a twentieth of the
        expected cohort, raised where needed so that z_Δ exceeds z by at most 5 %.
    """

    initial_norm: float = 0.1
    quantile: float = 0.5
    learning_rate: float = 0.2
    count_noise: float | None = None

    def __post_init__(self) -> None:
        arguments.convert(self, "initial_norm", _check_norm)
        arguments.convert(self, "quantile", arguments.number, above=0, below=1)
        arguments.convert(self, "learning_rate", arguments.number, above=0)
        if self.count_noise is not None:
            arguments.convert(self, "count_noise", arguments.number, above=0)
        self.norm = self.initial_norm

    def geometry(self, names: Sequence[str]) -> ClippingGeometry:
        """One group, with this round's norm."""
        return ClippingGeometry((self.norm,), (0,) * len(names))

    def count_sigma(self, *, noise_multiplier: float, expected_cohort: float) -> float:
        """σ_b for a round's z; a ``ValueError`` if it alone would spend more than the round may."""
        if noise_multiplier == 0:
            return 0.0
        if self.count_noise is None:
            # z_Δ / z = (1 - (z / 2σ_b)²)^(-1/2) = 1.05 at σ_b = 1.64 z.
            return max(expected_cohort / 20, 1.64 * noise_multiplier)
        if 2 * self.count_noise <= noise_multiplier:
            raise ValueError(
                f"count_noise = {self.count_noise} is too small for noise_multiplier = "
                f"{noise_multiplier}: raise it above {noise_multiplier / 2:g}"
            )
        return self.count_noise

    def follow(self, unclipped_fraction: float) -> None:
        """Move the norm for the next round: S ← S exp(−η (b − γ))."""
        step = -self.learning_rate * (unclipped_fraction - self.quantile)
        moved = self.norm * exp(min(max(step, -100.0), 100.0))
        self.norm = min(max(moved, _SMALLEST), _LARGEST)
