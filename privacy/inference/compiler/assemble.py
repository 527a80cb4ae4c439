"""Packing a network as the planner decided, and what a plan says of it."""

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from privacy.inference.arithmetic.batch_model import BatchProgram
from privacy.inference.arithmetic.polynomials import offset
from privacy.inference.arithmetic.scales import Scales, depth
from privacy.inference.arithmetic.slot_model import ProductProgram, SlotProgram
from privacy.inference.ckks.ring import Ring
from privacy.inference.compiler.candidates import batch_operations
from privacy.inference.compiler.costs import Operation
from privacy.inference.compiler.lowering import Affine, Network
from privacy.inference.compiler.packing import (
    EMPTY,
    Diagonals,
    Gather,
    Indices,
    diagonals,
    gather,
    products,
    readouts,
)
from privacy.inference.compiler.planner import Choice, ProductChoice


@dataclass(frozen=True)
class Facts:
    """What a plan says of a packing; names as there."""

    degree: int
    primes: tuple[int, ...]
    input_bits: int
    answer_bits: int
    kind: str
    taps: Indices | None
    answers: tuple[tuple[int, ...], ...]
    rotations: dict[int, int]
    relin_level: int
    operations: Counter[Operation]


def pack_slots(network: Network, choice: Choice) -> tuple[SlotProgram, Facts]:
    """Pack a network with activations for one image."""
    shape, scales = choice.shape, choice.scales
    slots = shape.degree // 2
    affines = _without_offsets(network)
    first = gather(
        network.affines[0],
        slots,
        blocks=shape.blocks,
        paired=shape.paired,
        following=shape.following,
    )
    middle: list[Diagonals] = []
    layout = first.layout
    for affine in affines[1:-1]:
        middle.append(diagonals(affine, layout, slots))
        layout = middle[-1].layout
    taken = [(1, 1), *((layer.baby, layer.giant) for layer in middle)]
    if any(
        baby * giant > planned_baby * planned_giant
        for (baby, giant), planned_baby, planned_giant in zip(
            taken, shape.babies, shape.giants, strict=True
        )
    ):
        raise RuntimeError(f"packed with steps {taken}, planned {shape.babies} x {shape.giants}")
    # The roots of unity depend on the degree alone.
    roots = Ring(shape.degree, (40,)).roots
    last = readouts(affines[-1], layout, roots)
    level = shape.levels
    rotations: dict[int, int] = {}
    packings: tuple[Gather | Diagonals, ...] = (first, *middle)
    for layer, activation, rescale in zip(
        packings, network.activations, scales.rescales, strict=True
    ):
        steps: list[int] = []
        if isinstance(layer, Diagonals):
            steps += [1] if layer.baby > 1 else []
            steps += [layer.baby] if layer.giant > 1 else []
        at_products = len(steps) + (rescale if rescale >= 0 else len(layer.steps))
        for index, step in enumerate((*steps, *layer.steps)):
            here = level if index < at_products else level - 1
            rotations[step] = max(here, rotations.get(step, 0))
        level -= depth(activation.degree, rescale)
    program = SlotProgram(first, tuple(middle), last, network.activations, scales, shape.late)
    operations = shape.operations()
    facts = Facts(
        shape.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        "slots",
        first.taps,
        tuple(answer.positions for answer in last),
        rotations,
        max(level for name, level in operations if name == "relinearise"),
        operations,
    )
    return program, facts


def pack_products(network: Network, choice: ProductChoice) -> tuple[ProductProgram, Facts]:
    """Pack a model that is one affine map for one image."""
    packed = products(network.affines[0], choice.degree)
    ciphertexts = len(packed.weights)
    taps = np.full((ciphertexts, packed.share), EMPTY, dtype=np.int32)
    inputs = np.arange(network.affines[0].inputs, dtype=np.int32)
    taps.reshape(-1)[: len(inputs)] = inputs
    # A special prime is there for encrypted weights, whose products are relinearised.
    encrypted = len(choice.primes) > 1
    product = "multiply" if encrypted else "multiply plain"
    operations = Counter({("load", 1): ciphertexts, (product, 1): ciphertexts, ("mask", 1): 1})
    if encrypted:
        operations["relinearise", 1] += 1
    facts = Facts(
        choice.degree,
        choice.primes,
        choice.input_bits,
        choice.input_bits + choice.weight_bits,
        "coefficients",
        taps,
        (packed.positions,),
        {},
        1 if encrypted else 0,
        operations,
    )
    return ProductProgram(packed, choice.weight_bits), facts


def pack_batch(network: Network, choice: Choice | ProductChoice) -> tuple[BatchProgram, Facts]:
    """Pack a network for a batch: nothing moves between slots, so that weights stay as they are."""
    if isinstance(choice, ProductChoice):
        answer = choice.input_bits + choice.weight_bits
        scales = Scales(choice.primes, choice.input_bits, (), answer, ())
        operations = batch_operations(network, 1)
        degree = choice.degree
    else:
        scales, operations, degree = choice.scales, choice.shape.operations(), choice.shape.degree
    program = BatchProgram(tuple(_without_offsets(network)), network.activations, scales)
    relinearised = [level for name, level in operations if name == "relinearise"]
    facts = Facts(
        degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        "batch",
        None,
        (),
        {},
        max(relinearised, default=0),
        operations,
    )
    return program, facts


def _without_offsets(network: Network) -> list[Affine]:
    """The affine maps, less what the evaluation of the activations before them adds too much."""
    affines = [network.affines[0]]
    for activation, affine in zip(network.activations, network.affines[1:], strict=True):
        excess = affine.matrix @ np.full(affine.inputs, offset(activation))
        affines.append(replace(affine, bias=affine.bias - excess))
    return affines
