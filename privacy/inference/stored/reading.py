"""A program from the arrays and the outline of a file, held against the plan beside them.

A program that passes has weights of the plan's sizes, reads values that are there at levels that
they have, and rotates with keys that the plan names, no more often than a ciphertext has slots.
Weights too large for its scales show at the first question, of which an evaluator's pool asks one
itself. Whether it answers as a model does, nobody can tell from a file.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.inference.arithmetic.network import Activation, Affine, Layer, Network
from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.arithmetic.program import (
    BatchProgram,
    Diagonals,
    Gather,
    PackedLayer,
    ProductProgram,
    Products,
    Program,
    Readout,
    SlotProgram,
    Sums,
)
from privacy.inference.arithmetic.scales import LayerScales, Scales
from privacy.inference.ckks import galois_element
from privacy.inference.plan import EMPTY, Plan
from privacy.inference.rescaling import AFTER, BOTH, FIRST, NEVER
from privacy.inference.stored.parts import Parts, bits, entries, items, reals, wholes

_LONGEST_NAME = 10_000
_FAULTS_OF_SCALES = (ArithmeticError, LookupError, StopIteration, RuntimeError, ValueError)
_LAYER = ("sources", "activation", "centre")


def read_program(plan: Plan, outline: Any, arrays: Mapping[str, NDArray[Any]]) -> Program:
    """The program of a plan.

    Raises
    ------
    ValueError
        If outline and arrays are none that fits the plan.
    """
    parts = Parts(arrays)
    kinds: dict[str, Callable[[Plan, Any, Parts], Program]] = {
        "slots": _slots,
        "coefficients": _products,
        "batch": _batch,
    }
    program = kinds[plan.packing_kind](plan, outline, parts)
    parts.end()
    return program


def _products(plan: Plan, outline: Any, parts: Parts) -> ProductProgram:
    entries("the outline", outline)
    if len(plan.answers) != 1:
        raise ValueError(f"the plan has {len(plan.answers)} answers to one product")
    products = Products(
        plan.packing_shape[1],
        parts.take("weights", plan.ciphertexts, plan.degree),
        plan.answers[0],
        parts.take("bias", plan.logits),
    )
    if plan.answer_level != plan.levels:
        raise ValueError(f"answer_level is {plan.answer_level}, and no product is rescaled")
    return ProductProgram(products, plan.answer_scale_bits - plan.input_scale_bits)


def _slots(plan: Plan, outline: Any, parts: Parts) -> SlotProgram:
    of_scales, listed, late = entries(
        "the outline", outline, "scales", "layers", "relinearise_after_last_layer"
    )
    if not isinstance(late, bool):
        raise ValueError("relinearise_after_last_layer is neither true nor false")
    given = items("layers", listed)
    outlines = [
        entries(f"layers.{index}", each, *_LAYER, *(["maps"] if index < len(given) - 1 else []))
        for index, each in enumerate(given)
    ]
    skeleton = Network(tuple(_layer(index, each, ()) for index, each in enumerate(outlines)))
    scales, followed = _scales(plan, of_scales, skeleton)
    taps, start, layers = plan.taps, 0, []
    for index, layer in enumerate(skeleton.layers[:-1]):
        name, maps = f"layers.{index}", items(f"layers.{index}.maps", outlines[index][-1])
        if len(maps) != len(layer.sources):
            raise ValueError(f"{name} has {len(maps)} maps of {len(layer.sources)} sources")
        if layer.activation is None and layer.sources != (0,):
            raise ValueError(f"{name} has no activation, and reads more than the input")
        packed: list[Gather | Diagonals] = []
        for number, (source, each) in enumerate(zip(layer.sources, maps, strict=True)):
            at = f"{name}.maps.{number}"
            if source:
                packed.append(_diagonals(at, plan, source, each, parts))
            else:
                count = None if layer.activation else 0
                one = _gather(at, plan, each, parts, count)
                read = len(one.weights) if layer.activation else 1
                packed.append(_with_taps(one, taps[:, start : start + read]))
                start += read
        slots = plan.degree // 2
        bias = parts.take(f"{name}.bias", slots) if layer.activation else np.zeros(slots)
        centre = parts.take(f"{name}.centre", slots) if layer.centre else None
        layers.append(PackedLayer(tuple(packed), bias, layer.activation, centre))
        _check_rotations(name, plan, layers[-1], followed[index], scales, skeleton, index)
    if start != plan.ciphertexts:
        raise ValueError(f"the layers read {start} ciphertexts of {plan.ciphertexts}")
    return SlotProgram(skeleton, tuple(layers), _readouts(plan, skeleton, parts), scales, late)


def _batch(plan: Plan, outline: Any, parts: Parts) -> BatchProgram:
    of_scales, listed = entries("the outline", outline, "scales", "layers")
    layers: list[Layer] = []
    sizes = [math.prod(plan.input_shape)]
    for index, each in enumerate(items("layers", listed)):
        outlined = entries(f"layers.{index}", each, *_LAYER, "name")
        sources = _sources(index, outlined[0])
        affines = tuple(
            _affine(f"layers.{index}.maps.{number}", sizes[source], outlined[-1], parts)
            for number, source in enumerate(sources)
        )
        if len({affine.outputs for affine in affines}) != 1:
            raise ValueError(f"layers.{index} adds up maps of different sizes")
        layer = _layer(index, outlined, affines)
        copies = layer.activation is None and index < len(listed) - 1
        rows = np.arange(layer.outputs + 1)
        if copies and (sources != (0,) or not np.array_equal(affines[0].structure.indptr, rows)):
            raise ValueError(f"layers.{index} is no copy of elements of the input")
        layers.append(layer)
        sizes.append(layer.outputs)
    network = Network(tuple(layers))
    scales, _ = _scales(plan, of_scales, network)
    if network.outputs != plan.logits:
        raise ValueError(f"the last layer has {network.outputs} outputs, the plan {plan.logits}")
    return BatchProgram(network, scales)


def _layer(index: int, outlined: list[Any], affines: tuple[Affine, ...]) -> Layer:
    sources, activation, centre = outlined[:3]
    (constant,) = reals(f"layers.{index}.centre", [centre])
    made = None
    if activation is not None:
        coefficients = reals(f"layers.{index}.activation", activation)
        if len(coefficients) - 1 not in DEPTH:
            raise ValueError(f"layers.{index}.activation has degree {len(coefficients) - 1}")
        made = Activation(coefficients, "")
    elif constant:
        raise ValueError(f"layers.{index} has a centre and no activation")
    return Layer(_sources(index, sources), affines, made, constant)


def _name(value: Any) -> str:
    if not isinstance(value, str) or len(value) > _LONGEST_NAME:
        raise ValueError("a layer's name is no text, or longer than any")
    return value


def _sources(index: int, value: Any) -> tuple[int, ...]:
    sources = wholes(f"layers.{index}.sources", value, 0, index)
    if not sources or len(set(sources)) != len(sources):
        raise ValueError(f"layers.{index}.sources are none, or twice the same")
    return sources


def _scales(plan: Plan, value: Any, network: Network) -> tuple[Scales, tuple[LayerScales, ...]]:
    """The scales, followed through the layers: each reads levels that its sources have."""
    weights, rescales = entries("scales", value, "weights", "rescales")
    if not network.layers or network.layers[-1].activation is not None:
        raise ValueError("layers do not end in logits")
    scales = Scales(
        plan.prime_bits,
        plan.input_scale_bits,
        bits("scales.weights", weights),
        plan.answer_scale_bits,
        wholes("scales.rescales", rescales, NEVER, BOTH),
    )
    activations = network.activations
    if not len(scales.weights) == len(scales.rescales) == len(activations):
        raise ValueError("scales are not one of each activation")
    for activation, rescale in zip(activations, scales.rescales, strict=True):
        if activation.degree > 2 and rescale not in (AFTER, BOTH):
            raise ValueError(f"an activation of degree {activation.degree} keeps its scale")
    try:
        followed = tuple(scales.follow(network.layers))
    except _FAULTS_OF_SCALES as error:
        raise ValueError(f"scales do not fit the plan's primes ({error!r})") from error
    for here in followed:
        for scale, level in ((here.product, here.level), (here.result.scale, here.result.level)):
            if not 0 < scale < 2.0 ** sum(plan.prime_bits[:level]):
                raise ValueError(f"scales do not fit the plan's primes at level {level}")
    if followed[-1].level != plan.answer_level:
        raise ValueError(
            f"the last layer reads level {followed[-1].level}, the plan {plan.answer_level}"
        )
    return scales, followed


def _sums(name: str, value: Any, slots: int) -> Sums:
    groups = tuple(wholes(f"{name}.sums", each, 0, slots - 1) for each in items(name, value))
    # Each group multiplies how many values a slot has summed; a conjugate may come on top.
    if math.prod(1 + len(group) for group in groups) > 2 * slots:
        raise ValueError(f"{name}.sums add up more rotations than a ciphertext has slots")
    return groups


def _gather(name: str, plan: Plan, value: Any, parts: Parts, count: int | None) -> Gather:
    slots = plan.degree // 2
    (sums,) = entries(name, value, "sums")
    weights = parts.take_complex(f"{name}.weights", count, slots)
    if count is None and not 1 <= len(weights) <= plan.ciphertexts:
        raise ValueError(f"{name}.weights are for {len(weights)} ciphertexts")
    return Gather(np.empty((0, 0, 0), dtype=np.int32), weights, _sums(name, sums, slots))


def _with_taps(gather: Gather, taps: NDArray[np.int32]) -> Gather:
    """With the plan's taps, less an imaginary part that is empty."""
    parts = 1 if len(taps) > 1 and bool((taps[1] == EMPTY).all()) else len(taps)
    return Gather(taps[:parts], gather.weights, gather.sums)


def _diagonals(name: str, plan: Plan, source: int, value: Any, parts: Parts) -> Diagonals:
    slots = plan.degree // 2
    width, sums = entries(name, value, "window", "sums")
    (window,) = wholes(f"{name}.window", [width], 1, slots)
    steps = parts.take(f"{name}.steps", None, 2, kind=np.int32).astype(np.int64)
    numbers = steps[:, 0] * window + steps[:, 1]
    inside = (steps >= 0).all() and (steps[:, 1] < window).all() and (numbers < slots).all()
    if not len(steps) or not inside or len(np.unique(numbers)) != len(steps):
        raise ValueError(f"{name}.steps are none, not of one ciphertext, or twice the same")
    weights = parts.take(f"{name}.weights", len(steps), slots)
    named = {(big, small): row for (big, small), row in zip(steps.tolist(), weights, strict=True)}
    return Diagonals(source, window, named, _sums(name, sums, slots))


def _check_rotations(
    name: str,
    plan: Plan,
    layer: PackedLayer,
    here: LayerScales,
    scales: Scales,
    network: Network,
    index: int,
) -> None:
    """Refuse rotations for which the plan has no key."""
    if layer.activation is None:
        return
    before = sum(each.activation is not None for each in network.layers[:index])
    added = here.entry.level if scales.rescales[before] == FIRST else here.level
    steps: set[tuple[int, int]] = set()
    for each in layer.maps:
        steps |= {(step, added) for group in each.sums for step in group}
        if isinstance(each, Diagonals):
            steps |= {(baby, here.level) for _, baby in each.weights if baby}
            if any(giant for giant, _ in each.weights):
                steps.add((each.window, here.level))
    keys = dict(plan.rotation_levels)
    for step, level in sorted(steps):
        if keys.get(galois_element(step, plan.degree), 0) < level:
            raise ValueError(f"{name} rotates by {step} at level {level}, and the plan has no key")


def _readouts(plan: Plan, network: Network, parts: Parts) -> tuple[Readout, ...]:
    sources, slots = network.layers[-1].sources, plan.degree // 2
    if 0 in sources:
        raise ValueError("the last layer reads the input itself")
    return tuple(
        Readout(
            parts.take_complex(f"last.{number}.weights", len(sources), slots),
            positions,
            parts.take(f"last.{number}.bias", len(positions)),
        )
        for number, positions in enumerate(plan.answers)
    )


def _affine(name: str, inputs: int, layer: Any, parts: Parts) -> Affine:
    bias = parts.take(f"{name}.bias", None)
    shape = (len(bias), inputs)
    matrix = _matrix(name, shape, parts, parts.take(f"{name}.weights", None))
    return Affine(matrix, bias, _matrix(f"{name}.structure", shape, parts), _name(layer))


def _matrix(
    name: str, shape: tuple[int, int], parts: Parts, data: NDArray[Any] | None = None
) -> sparse.csr_array:
    """A sparse matrix; without ``data`` of where entries are."""
    columns = parts.take(f"{name}.columns", None if data is None else len(data), kind=np.int32)
    rows = parts.take(f"{name}.rows", shape[0] + 1, kind=np.int64)
    values = np.ones(len(columns), dtype=bool) if data is None else data
    try:
        matrix = sparse.csr_array((values, columns, rows), shape=shape)
        matrix.check_format(full_check=True)
    except ValueError as error:
        raise ValueError(f"{name} is no matrix of shape {shape}: {error}") from error
    once = matrix.copy()
    once.sum_duplicates()
    if once.nnz != matrix.nnz:
        raise ValueError(f"{name} has entries twice")
    return matrix
