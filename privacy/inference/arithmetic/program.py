"""Programs: a network packed for the evaluator, with its weights in the clear."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.network import Activation, Affine
from privacy.inference.arithmetic.scales import Scales
from privacy.inference.plan import Indices

Slots = NDArray[np.float64]
ComplexSlots = NDArray[np.complex128]
Sums = tuple[tuple[int, ...], ...]
"""One after the other: to a value are added its rotations by all steps of a group."""


@dataclass(frozen=True)
class Gather:
    """The first layer: the data owner copies inputs into slots.

    Attributes
    ----------
    taps : ndarray of int32, shape (parts, ciphertexts, slots)
        Which input lies in the real (part 0) and imaginary (part 1) half of a slot, or -1.
    weights : ndarray of complex, shape (ciphertexts, slots)
    bias : ndarray, shape (slots,)
    sums : Sums
        Last may come the complex conjugate, which leaves twice the real part.
    layout : ndarray of int32, shape (period,)
        Which output lies where.
    """

    taps: Indices
    weights: ComplexSlots
    bias: Slots
    sums: Sums
    layout: Indices


@dataclass(frozen=True)
class Diagonals:
    """A middle layer.

    Attributes
    ----------
    baby, giant : int
        The input is rotated by up to ``baby`` - 1 steps, partial sums ``giant`` - 1 times by
        ``baby``.
    diagonals : dict of (giant step, baby step) to ndarray, shape (slots,)
        Weights, already rotated back by their giant step.
    bias : ndarray, shape (slots,)
    sums : Sums
    layout : ndarray of int32, shape (period,)
    """

    baby: int
    giant: int
    diagonals: dict[tuple[int, int], Slots]
    bias: Slots
    sums: Sums
    layout: Indices


@dataclass(frozen=True)
class Readout:
    """The last layer, one answer, with a logit in each coefficient of ``positions``.

    Attributes
    ----------
    weights : ndarray of complex, shape (slots,)
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

    ``relinearise_after_last_layer`` says whether the last activation's products stay of size 3
    through the last layer.
    """

    first: Gather
    middle: tuple[Diagonals, ...]
    last: tuple[Readout, ...]
    activations: tuple[Activation, ...]
    scales: Scales
    relinearise_after_last_layer: bool

    @property
    def before_last(self) -> tuple[Gather | Diagonals, ...]:
        """The layers but the last."""
        return (self.first, *self.middle)


@dataclass(frozen=True)
class ProductProgram:
    """One image through a model that is one affine map."""

    products: Products
    weight_bits: int


@dataclass(frozen=True)
class BatchProgram:
    """A batch: the affine maps themselves, on every slot alike."""

    affines: tuple[Affine, ...]
    activations: tuple[Activation, ...]
    scales: Scales


Program = SlotProgram | ProductProgram | BatchProgram
