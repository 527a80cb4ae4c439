"""Programs: a network packed for the evaluator, with its weights in the clear."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.network import Activation, Network
from privacy.inference.arithmetic.scales import Scales
from privacy.inference.plan import Indices

Slots = NDArray[np.float64]
ComplexSlots = NDArray[np.complex128]
Sums = tuple[tuple[int, ...], ...]
"""One after the other: to a value are added its rotations by all steps of a group."""


@dataclass(frozen=True)
class Gather:
    """The map of a layer that reads the input: the data owner copies inputs into slots.

    Attributes
    ----------
    taps : ndarray of int32, shape (parts, ciphertexts, slots)
        Which input lies in the real (part 0) and imaginary (part 1) half of a slot, or -1.
    weights : ndarray of complex, shape (ciphertexts, slots)
    sums : Sums
        Last may come the complex conjugate, which leaves twice the real part.
    """

    taps: Indices
    weights: ComplexSlots
    sums: Sums

    @property
    def rotated(self) -> bool:
        """Whether products are of rotations, whose division by the special prime waits: never."""
        return False


@dataclass(frozen=True)
class Diagonals:
    """The map of another value.

    Attributes
    ----------
    source : int
        Which value, as in :class:`Layer`.
    window : int
        What giant steps are multiples of; baby steps are smaller.
    weights : dict of (giant step, baby step) to ndarray, shape (slots,)
        Already rotated back by their giant step.
    sums : Sums
    """

    source: int
    window: int
    weights: dict[tuple[int, int], Slots]
    sums: Sums

    @property
    def rotated(self) -> bool:
        """Whether products are of rotations, whose division by the special prime waits."""
        return any(step != (0, 0) for step in self.weights)


@dataclass(frozen=True)
class PackedLayer:
    """A layer with an activation; or, without, elements of the input as they are.

    Attributes
    ----------
    maps : tuple of Gather or Diagonals
        Whose sums add up. Elements of the input as they are have one, a Gather without weights.
    bias : ndarray, shape (slots,)
    activation : Activation or None
    centre : ndarray, shape (slots,), or None
        That of :class:`Layer` where outputs lie, and 0 beside them: the next layer's rounded
        weights meet all slots.
    """

    maps: tuple[Gather | Diagonals, ...]
    bias: Slots
    activation: Activation | None
    centre: Slots | None


@dataclass(frozen=True)
class Readout:
    """The last layer, one answer, with a logit in each coefficient of ``positions``.

    Attributes
    ----------
    weights : ndarray of complex, shape (sources, slots)
    positions : tuple of int
    bias : ndarray, shape (len(positions),)
    """

    weights: ComplexSlots
    positions: tuple[int, ...]
    bias: Slots


@dataclass(frozen=True)
class Products:
    """A model that is one affine map, by products of polynomials.

    Ciphertext h holds ``share`` inputs as coefficients; logit k is in coefficient
    ``positions[k]`` of the sum of the products.

    Attributes
    ----------
    share : int
    weights : ndarray, shape (ciphertexts, N)
    positions : tuple of int
    bias : ndarray, shape (outputs,)
    """

    share: int
    weights: Slots
    positions: tuple[int, ...]
    bias: Slots


@dataclass(frozen=True)
class SlotProgram:
    """One image through a model with activations.

    Attributes
    ----------
    network : Network
    layers : tuple of PackedLayer
        But the last.
    last : tuple of Readout
        The last one, a part for each answer.
    scales : Scales
    relinearise_after_last_layer : bool
        Whether the last activation's products stay of size 3 through the last layer.
    """

    network: Network
    layers: tuple[PackedLayer, ...]
    last: tuple[Readout, ...]
    scales: Scales
    relinearise_after_last_layer: bool

    def encoded_rows(self, answer_level: int) -> int:
        """Polynomials modulo one prime that its encoded weights and biases are, in all."""
        rows = answer_level * sum(len(answer.weights) for answer in self.last)
        for layer, here in zip(self.layers, self.scales.follow(self.network.layers), strict=False):
            if layer.activation is None:
                continue
            rows += here.entry.level
            for each in layer.maps:
                rows += (here.level + each.rotated) * len(each.weights)
        return rows


@dataclass(frozen=True)
class ProductProgram:
    """One image through a model that is one affine map."""

    products: Products
    weight_bits: int


@dataclass(frozen=True)
class BatchProgram:
    """A batch: the network itself, on every slot alike."""

    network: Network
    scales: Scales


Program = SlotProgram | ProductProgram | BatchProgram
