"""Packing a network as the planner decided, and a summary of the packing for the plan."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from privacy.inference.arithmetic.network import Affine, Network
from privacy.inference.arithmetic.polynomials import constant_left_over
from privacy.inference.arithmetic.program import (
    BatchProgram,
    Diagonals,
    ProductProgram,
    Program,
    SlotProgram,
)
from privacy.inference.arithmetic.scales import Scales
from privacy.inference.ckks import Ring
from privacy.inference.compiler.candidates import batch_candidate
from privacy.inference.compiler.operation_costs import Operations, relinearisation_level
from privacy.inference.compiler.packing import diagonals, gather, products, readouts
from privacy.inference.compiler.planner import ProductChoice
from privacy.inference.compiler.scale_search import Choice
from privacy.inference.plan import EMPTY, Indices


@dataclass(frozen=True)
class PackingSummary:
    """The parts of a plan that a packing decides; names as there.

    ``rotations`` holds, by step, the highest level at which it is rotated.
    """

    degree: int
    primes: tuple[int, ...]
    input_bits: int
    answer_bits: int
    answer_level: int
    kind: str
    operations: Operations
    taps: Indices | None = None
    answers: tuple[tuple[int, ...], ...] = ()
    rotations: tuple[tuple[int, int], ...] = ()

    @property
    def relin_level(self) -> int:
        """The highest level of a relinearisation; 0 if there is none."""
        return relinearisation_level(self.operations)


def pack(
    network: Network, choice: Choice | ProductChoice, *, batch: bool
) -> tuple[Program, PackingSummary]:
    """The program of a network under the planner's choice."""
    if batch:
        return _pack_batch(network, choice)
    if isinstance(choice, ProductChoice):
        return _pack_products(network, choice)
    return _pack_slots(network, choice)


def _pack_slots(network: Network, choice: Choice) -> tuple[SlotProgram, PackingSummary]:
    """A network with activations, for one image."""
    candidate, scales = choice.candidate, choice.scales
    slots = candidate.degree // 2
    affines = _without_left_over_constants(network)
    first = gather(
        network.affines[0],
        slots,
        blocks=candidate.blocks,
        paired=candidate.paired,
        following=candidate.following,
        sums=candidate.sums[0],
    )
    middle: list[Diagonals] = []
    layout = first.layout
    for index, affine in enumerate(affines[1:-1], start=1):
        baby, giant = candidate.baby_steps[index], candidate.giant_steps[index]
        layer = diagonals(affine, layout, slots, baby=baby, sums=candidate.sums[index])
        if layer.giant > giant:
            raise RuntimeError(f"packed with {layer.giant} giant steps, planned {giant}")
        middle.append(layer)
        layout = layer.layout
    # The roots of unity depend on the degree alone.
    last = readouts(affines[-1], layout, Ring(candidate.degree, (40,)).roots)
    program = SlotProgram(
        first,
        tuple(middle),
        last,
        network.activations,
        scales,
        candidate.relinearise_after_last_layer,
    )
    summary = PackingSummary(
        candidate.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        candidate.answer_level,
        "slots",
        candidate.operations,
        first.taps,
        tuple(answer.positions for answer in last),
        tuple(candidate.rotations.items()),
    )
    return program, summary


def _pack_products(
    network: Network, choice: ProductChoice
) -> tuple[ProductProgram, PackingSummary]:
    """A model that is one affine map, for one image."""
    packed = products(network.affines[0], choice.degree)
    ciphertexts = len(packed.weights)
    taps = np.full((ciphertexts, packed.share), EMPTY, dtype=np.int32)
    inputs = np.arange(network.affines[0].inputs, dtype=np.int32)
    taps.reshape(-1)[: len(inputs)] = inputs
    level = choice.answer_level
    product = "multiply" if choice.encrypted else "multiply plain"
    operations = Counter(
        {("load", level): ciphertexts, (product, level): ciphertexts, ("mask", level): 1}
    )
    if choice.encrypted:
        # A special prime is there for encrypted weights, whose products are relinearised.
        operations += Counter({("relinearise", level): 1, ("divide", level): 1})
    summary = PackingSummary(
        choice.degree,
        choice.primes,
        choice.input_bits,
        choice.input_bits + choice.weight_bits,
        level,
        "coefficients",
        operations,
        taps,
        (packed.positions,),
    )
    return ProductProgram(packed, choice.weight_bits), summary


def _pack_batch(
    network: Network, choice: Choice | ProductChoice
) -> tuple[BatchProgram, PackingSummary]:
    """A batch: nothing moves between slots, so that weights stay as they are."""
    if isinstance(choice, ProductChoice):
        answer = choice.input_bits + choice.weight_bits
        scales = Scales(choice.primes, choice.input_bits, (), answer, ())
        candidate = replace(
            batch_candidate(network, choice.degree), answer_level=choice.answer_level
        )
    else:
        scales, candidate = choice.scales, choice.candidate
    affines = tuple(_without_left_over_constants(network))
    summary = PackingSummary(
        candidate.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        candidate.answer_level,
        "batch",
        candidate.operations,
    )
    return BatchProgram(affines, network.activations, scales), summary


def _without_left_over_constants(network: Network) -> list[Affine]:
    """The affine maps, less the constants left over by the activations before them."""
    affines = [network.affines[0]]
    for activation, affine in zip(network.activations, network.affines[1:], strict=True):
        excess = affine.matrix @ np.full(affine.inputs, constant_left_over(activation))
        affines.append(replace(affine, bias=affine.bias - excess))
    return affines
