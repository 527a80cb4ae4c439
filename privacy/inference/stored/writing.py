"""A program as arrays by name, and an outline in plain values for JSON."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from privacy.inference.arithmetic.network import Layer
from privacy.inference.arithmetic.program import (
    BatchProgram,
    ComplexSlots,
    Diagonals,
    Gather,
    ProductProgram,
    Program,
    SlotProgram,
)
from privacy.inference.arithmetic.scales import Scales

Arrays = dict[str, NDArray[Any]]
Outline = dict[str, Any]


def written_program(program: Program) -> tuple[Outline, Arrays]:
    """The outline and the arrays of a program; what its plan says is in neither."""
    if isinstance(program, ProductProgram):
        return {}, {"weights": program.products.weights, "bias": program.products.bias}
    if isinstance(program, BatchProgram):
        return _written_batch(program)
    return _written_slots(program)


def _written_slots(program: SlotProgram) -> tuple[Outline, Arrays]:
    arrays: Arrays = {}
    outlines = [_of_layer(layer) for layer in program.network.layers]
    for index, packed in enumerate(program.layers):
        name = f"layers.{index}"
        maps = []
        for number, each in enumerate(packed.maps):
            outline: Outline = {"sums": [list(group) for group in each.sums]}
            if isinstance(each, Diagonals):
                outline["window"] = each.window
            maps.append(outline)
            arrays |= _of_map(f"{name}.maps.{number}", each)
        outlines[index]["maps"] = maps
        if packed.activation is not None:
            arrays[f"{name}.bias"] = packed.bias
        if packed.centre is not None:
            arrays[f"{name}.centre"] = packed.centre
    for number, answer in enumerate(program.last):
        arrays[f"last.{number}.weights"] = _halves(answer.weights)
        arrays[f"last.{number}.bias"] = answer.bias
    outline = {
        "scales": _of_scales(program.scales),
        "layers": outlines,
        "relinearise_after_last_layer": program.relinearise_after_last_layer,
    }
    return outline, arrays


def _of_map(name: str, each: Gather | Diagonals) -> Arrays:
    if isinstance(each, Gather):
        return {f"{name}.weights": _halves(each.weights)}
    return {
        f"{name}.steps": np.array(list(each.weights), dtype=np.int32),
        f"{name}.weights": np.stack(list(each.weights.values())),
    }


def _written_batch(program: BatchProgram) -> tuple[Outline, Arrays]:
    arrays: Arrays = {}
    for index, layer in enumerate(program.network.layers):
        for number, affine in enumerate(layer.affines):
            name = f"layers.{index}.maps.{number}"
            matrix, structure = sparse.csr_array(affine.matrix), sparse.csr_array(affine.structure)
            arrays[f"{name}.weights"] = matrix.data
            arrays[f"{name}.bias"] = affine.bias
            for part, of in (("", matrix), ("structure.", structure)):
                arrays[f"{name}.{part}columns"] = of.indices.astype(np.int32)
                arrays[f"{name}.{part}rows"] = of.indptr.astype(np.int64)
    layers = [_of_layer(layer) | {"name": layer.name} for layer in program.network.layers]
    return {"scales": _of_scales(program.scales), "layers": layers}, arrays


def _of_layer(layer: Layer) -> Outline:
    activation = layer.activation
    return {
        "sources": list(layer.sources),
        "activation": None if activation is None else list(map(float, activation.coefficients)),
        "centre": float(layer.centre),
    }


def _of_scales(scales: Scales) -> Outline:
    return {
        "weights": list(map(float, scales.weights)),
        "rescales": list(map(int, scales.rescales)),
    }


def _halves(slots: ComplexSlots) -> NDArray[np.float64]:
    """Real and imaginary parts along a last axis of two."""
    return np.stack([slots.real, slots.imag], axis=-1)
