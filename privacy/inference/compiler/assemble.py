"""Packing a network as the planner decided, and a summary of the packing for the plan."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from privacy.inference.arithmetic.network import Layer, Network
from privacy.inference.arithmetic.polynomials import constant_left_over
from privacy.inference.arithmetic.program import (
    BatchProgram,
    Diagonals,
    Gather,
    PackedLayer,
    ProductProgram,
    Program,
    SlotProgram,
)
from privacy.inference.arithmetic.scales import Scales
from privacy.inference.ckks import Ring
from privacy.inference.compiler.candidates import PackedLayerCandidate, batch_candidate
from privacy.inference.compiler.operation_costs import Operations, relinearisation_level
from privacy.inference.compiler.packing import (
    copied,
    diagonals,
    gather,
    periodic_layout,
    power_of_two,
    products,
    readouts,
    spread,
)
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
    layouts: list[Indices] = [np.zeros(0, dtype=np.int32)]
    layers: list[PackedLayer] = []
    *before_last, last_layer = _without_left_over_constants(network).layers
    for layer, packed in zip(before_last, candidate.layers, strict=False):
        maps, layout = _packed(layer, packed, layouts, slots)
        layouts.append(layout)
        bias = spread(layer.bias, layout, slots)
        centre = None
        if layer.centre:
            centre = spread(np.full(layer.outputs, layer.centre), layout, slots)
        layers.append(PackedLayer(maps, bias, layer.activation, centre))
    # The roots of unity depend on the degree alone.
    last = readouts(
        last_layer,
        [layouts[source] for source in last_layer.sources],
        Ring(candidate.degree, (40,)).roots,
    )
    gathered = [each for layer in layers for each in layer.maps if isinstance(each, Gather)]
    parts = max(len(each.taps) for each in gathered)
    taps = np.concatenate([_in_parts(each.taps, parts) for each in gathered], axis=1)
    program = SlotProgram(
        network, tuple(layers), last, scales, candidate.relinearise_after_last_layer
    )
    summary = PackingSummary(
        candidate.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        candidate.answer_level,
        "slots",
        candidate.operations,
        taps,
        tuple(answer.positions for answer in last),
        tuple(candidate.rotations.items()),
    )
    return program, summary


def _packed(
    layer: Layer, packed: PackedLayerCandidate, layouts: list[Indices], slots: int
) -> tuple[tuple[Gather | Diagonals, ...], Indices]:
    """The maps of a layer, and where its outputs lie."""
    padded = periodic_layout(layer.outputs, power_of_two(layer.outputs), None)
    if not packed.degree:
        return (copied(layer.affines[0], padded, slots),), padded
    if layer.reads_input:
        made, layout = gather(
            layer.affines[0],
            slots,
            blocks=packed.blocks,
            paired=packed.paired,
            following=packed.following,
            sums=packed.maps[0].sums,
        )
        return (made,), layout
    maps = tuple(
        diagonals(
            affine,
            layouts[part.source],
            slots,
            source=part.source,
            window=part.window,
            sums=part.sums,
        )
        for affine, part in zip(layer.affines, packed.maps, strict=True)
    )
    return maps, padded


def _in_parts(taps: Indices, parts: int) -> Indices:
    """Taps of ciphertexts with empty imaginary parts, where others have them."""
    empty = np.full((parts - len(taps), *taps.shape[1:]), EMPTY, dtype=np.int32)
    return np.concatenate([taps, empty])


def _pack_products(
    network: Network, choice: ProductChoice
) -> tuple[ProductProgram, PackingSummary]:
    """A model that is one affine map, for one image."""
    (affine,) = network.layers[0].affines
    packed = products(affine, choice.degree)
    ciphertexts = len(packed.weights)
    taps = np.full((ciphertexts, packed.share), EMPTY, dtype=np.int32)
    inputs = np.arange(affine.inputs, dtype=np.int32)
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
    summary = PackingSummary(
        candidate.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        candidate.answer_level,
        "batch",
        candidate.operations,
    )
    return BatchProgram(_without_left_over_constants(network), scales), summary


def _without_left_over_constants(network: Network) -> Network:
    """The same layers, less the constants left over by the activations before them."""
    excess = [0.0] + [
        0.0 if layer.activation is None else constant_left_over(layer.activation)
        for layer in network.layers
    ]
    return network.raised(excess)
