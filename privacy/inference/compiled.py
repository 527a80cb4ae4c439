"""Compile: a trained model and the range of its inputs become a plan and encoded weights."""

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from torch import nn

from privacy.inference._bounds import ranges
from privacy.inference._costs import Operation, total_ms
from privacy.inference._encoded import EncodedModel, ProductProgram, SlotProgram
from privacy.inference._lowering import Network, lower
from privacy.inference._packing import (
    EMPTY,
    Diagonals,
    diagonals,
    gather,
    products,
    readouts,
)
from privacy.inference._planner import (
    Choice,
    ProductChoice,
    choose,
    choose_products,
    logit_bits,
)
from privacy.inference._polynomials import DEPTH, offset
from privacy.inference._seal import CONJUGATE, Ring
from privacy.inference._sensitivity import sensitivity
from privacy.inference.plan import Plan, pack_taps


@dataclass(frozen=True)
class CompiledModel:
    """A model made ready for encrypted questions; made by :func:`compile_model`.

    It holds the model's weights, and no key. It is the model owner's; the plan is what others
    may see.

    Attributes
    ----------
    plan : Plan
    network : Network
        The same model in the clear, as affine maps and polynomials in double precision.
    program : SlotProgram or ProductProgram
        The packed weights.
    """

    plan: Plan
    network: Network = field(repr=False)
    program: SlotProgram | ProductProgram = field(repr=False)

    @cached_property
    def encoded(self) -> EncodedModel:
        """The weights as plaintexts of the ring: made at first use, shared by all evaluators."""
        return EncodedModel(self.plan, self.program)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        r"""Logits in the clear, shape (images, classes), of inputs (images, \*input_shape)."""
        flat = np.asarray(inputs, dtype=np.float64).reshape(len(inputs), -1)
        return self.network(flat.T).T


def compile_model(
    model: nn.Sequential,
    *,
    input_shape: Sequence[int],
    input_range: tuple[float, float],
    tolerance: float = 0.02,
    max_query_bytes: int = 1_500_000,
) -> CompiledModel:
    """Compile a trained model for encrypted inference with CKKS at 128-bit security.

    Parameters
    ----------
    model : nn.Sequential
        Linear, Conv2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, BatchNorm, Dropout, Square and
        Polynomial layers, nested as you like, ending in a vector of logits.
    input_shape : sequence of int
        The shape of one input, without the batch.
    input_range : tuple of float
        The lowest and highest value an element of an input may have. The plan's proof holds in
        this range and the data owner's client refuses inputs outside it.
    tolerance : float
        The largest predicted error of a logit that the planner may accept (six standard
        deviations, for inputs drawn evenly from the range).
    max_query_bytes : int
        Packings with larger queries are not considered.

    Returns
    -------
    CompiledModel

    Raises
    ------
    UnsupportedLayerError
        If a layer cannot be evaluated under encryption; the message offers what can.
    CannotPlanError
        If the model is too deep, too wide or too imprecise for 128-bit security.
    ValueError
        If an argument is out of its range.
    """
    low, high = (float(value) for value in input_range)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"input_range is {input_range}; give finite low < high")
    if not tolerance > 0:
        raise ValueError(f"tolerance is {tolerance}; give a positive error of a logit")
    if max_query_bytes < 1:
        raise ValueError(f"max_query_bytes is {max_query_bytes}; give a positive number of bytes")
    network = lower(model, input_shape)
    bounds = ranges(network, low, high)
    bits = logit_bits(bounds)
    choice: Choice | ProductChoice
    program: SlotProgram | ProductProgram
    if network.activations:
        gains = sensitivity(network, bounds)
        choice = choose(
            network, bounds, gains, tolerance=tolerance, max_query_bytes=max_query_bytes
        )
        program, facts = _slots(network, choice)
    else:
        choice = choose_products(network, bounds, tolerance=tolerance)
        program, facts = _products(network, choice)
    ring = Ring(facts.degree, facts.primes)
    error_bits = math.ceil(math.log2(choice.error))
    worst_bits = math.ceil(math.log2(choice.worst_error))
    largest = (2.0**bits + 2.0**worst_bits) * 2.0**facts.answer_bits
    headroom = math.floor(10 * (math.log2(ring.primes[0] / 2) - math.log2(largest))) / 10
    plan = Plan(
        input_shape=tuple(int(size) for size in input_shape),
        input_range=(low, high),
        classes=network.affines[-1].outputs,
        degree=facts.degree,
        prime_bits=facts.primes,
        input_scale_bits=facts.input_bits,
        answer_scale_bits=facts.answer_bits,
        logit_bits=bits,
        headroom_bits=headroom,
        error_bits=error_bits,
        worst_error_bits=worst_bits,
        packing=pack_taps(facts.taps),
        packing_shape=tuple(facts.taps.shape),
        answers=facts.answers,
        rotation_levels=tuple(
            sorted((ring.galois_element(step), level) for step, level in facts.rotations.items())
        ),
        relin_level=facts.relin_level,
        operations=_by_name(facts.operations),
        predicted_ms=round(total_ms(facts.operations, facts.degree), 1),
        model_version=_version(network),
    )
    return CompiledModel(plan, network, program)


@dataclass(frozen=True)
class _Facts:
    degree: int
    primes: tuple[int, ...]
    input_bits: int
    answer_bits: int
    taps: np.ndarray
    answers: tuple[tuple[int, ...], ...]
    rotations: dict[int, int]
    relin_level: int
    operations: Counter[Operation]


def _slots(network: Network, choice: Choice) -> tuple[SlotProgram, _Facts]:
    shape, scales = choice.shape, choice.scales
    slots = shape.degree // 2
    affines = [network.affines[0]]
    for activation, affine in zip(network.activations, network.affines[1:], strict=True):
        excess = affine.matrix @ np.full(affine.inputs, offset(activation))
        affines.append(replace(affine, bias=affine.bias - excess))
    first = gather(
        network.affines[0],
        slots,
        blocks=shape.blocks,
        paired=shape.paired,
        spread=shape.spread,
    )
    middle: list[Diagonals] = []
    layout = first.layout
    for affine in affines[1:-1]:
        middle.append(diagonals(affine, layout, slots))
        layout = middle[-1].layout
    # The roots of unity depend on the degree alone.
    roots = Ring(shape.degree, (40,)).roots
    last = readouts(affines[-1], layout, roots)
    level = shape.levels
    rotations: dict[int, int] = {}
    for step in (*first.tree, *([CONJUGATE] if first.conjugate else [])):
        rotations[step] = level
    for layer, before in zip(middle, network.activations, strict=False):
        level -= DEPTH[before.degree]
        steps = [*layer.tree]
        steps += [1] if layer.baby > 1 else []
        steps += [layer.baby] if layer.giant > 1 else []
        for step in steps:
            rotations.setdefault(step, level)
    program = SlotProgram(first, tuple(middle), last, network.activations, scales)
    operations = shape.operations()
    facts = _Facts(
        shape.degree,
        scales.primes,
        scales.inputs,
        scales.answer,
        first.taps,
        tuple(answer.positions for answer in last),
        rotations,
        max(level for name, level in operations if name == "relinearise"),
        operations,
    )
    return program, facts


def _products(network: Network, choice: ProductChoice) -> tuple[ProductProgram, _Facts]:
    packed = products(network.affines[0], choice.degree)
    ciphertexts = len(packed.weights)
    taps = np.full((ciphertexts, packed.share), EMPTY, dtype=np.int32)
    inputs = np.arange(network.affines[0].inputs, dtype=np.int32)
    taps.reshape(-1)[: len(inputs)] = inputs
    facts = _Facts(
        choice.degree,
        (choice.prime_bits,),
        choice.input_bits,
        choice.input_bits + choice.weight_bits,
        taps,
        (packed.positions,),
        {},
        0,
        Counter({("load", 1): ciphertexts, ("multiply plain", 1): ciphertexts, ("mask", 1): 1}),
    )
    return ProductProgram(packed, choice.weight_bits), facts


def _by_name(operations: Counter[Operation]) -> dict[str, int]:
    named: Counter[str] = Counter()
    for (name, _), count in operations.items():
        named[name] += count
    return {name: count for name, count in named.items() if count}


def _version(network: Network) -> str:
    digest = hashlib.sha256()
    for affine in network.affines:
        for part in (affine.matrix.indptr, affine.matrix.indices, affine.matrix.data, affine.bias):
            digest.update(np.ascontiguousarray(part).tobytes())
    for activation in network.activations:
        digest.update(np.array(activation.coefficients).tobytes())
    return digest.hexdigest()[:32]
