"""Operators of ONNX that choose, repeat or reorder values, against onnxruntime."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from privacy.inference import compile_model, from_onnx
from privacy.inference.errors import UnsupportedModelError
from tests.privacy.inference.importers.onnx_graphs import answers, node, runtime, save

MIXED = "mixes the inputs of a batch|other inputs of a batch"


def whole(*numbers: Any) -> np.ndarray:
    return np.array(numbers, dtype=np.int64)


def check(path: Path, nodes: Any, shape: Any, weights: Any = None, **options: Any) -> None:
    file = save(path / "model.onnx", nodes, shape, weights, **options)
    inputs = np.random.default_rng(0).normal(size=(options.get("batch", 3), *shape))
    ours, theirs = (
        ask(inputs.astype(np.float32))
        for ask in (lambda x: answers(from_onnx(file), x), lambda x: runtime(file, x))
    )
    assert ours.shape == theirs.shape
    assert abs(ours - theirs).max() <= 2e-5 * max(1.0, abs(theirs).max())


def refused(
    path: Path, words: str, nodes: Any, shape: Any, weights: Any = None, **options: Any
) -> None:
    file = save(path / "model.onnx", nodes, shape, weights, **options)
    with pytest.raises(UnsupportedModelError, match=words):
        from_onnx(file)


def test_slices(tmp_path: Path) -> None:
    ends = whole(-100, -2, 0, 1, 3, 2**62)
    for start, end, step in product(ends, ends, (1, 2, -1, -3)):
        chosen = len(range(*slice(start, None if step < 0 and end < -6 else end, step).indices(6)))
        weights = {"s": whole(start), "e": whole(end), "a": whole(-1), "t": whole(step)}
        slices = [node("Slice", "x s e a t")]
        if chosen:
            check(tmp_path, slices, [2, 6], weights)
        else:
            refused(tmp_path, "makes shape", slices, [2, 6], weights)
    several = {"s": whole(-1, 0), "e": whole(-100, 100), "a": whole(2, 1), "t": whole(-2, 3)}
    check(tmp_path, [node("Slice", "x s e a t")], [4, 6], several)
    check(tmp_path, [node("Slice", "x", starts=[1], ends=[9], axes=[-1])], [4, 6], opset=9)
    whole_batch = {"s": whole(0), "e": whole(2**62), "a": whole(0)}
    check(tmp_path, [node("Slice", "x s e a")], [4], whole_batch)
    refused(tmp_path, MIXED, [node("Slice", "x s e a")], [4], whole_batch | {"s": whole(1)})


@pytest.mark.parametrize("indices", [whole(0, 2, 2, -1), np.array(1), whole([0, 1], [2, 2])])
@pytest.mark.parametrize("axis", [1, -1])
def test_gathered_values(indices: np.ndarray, axis: int, tmp_path: Path) -> None:
    check(tmp_path, [node("Gather", "x i", axis=axis)], [4, 3], {"i": indices})
    refused(tmp_path, MIXED, [node("Gather", "x i")], [4, 3], {"i": indices % 2})
    refused(tmp_path, "does not go", [node("Gather", "x i", axis=1)], [2], {"i": indices + 9})


@pytest.mark.parametrize("opset", [11, 13, 18, 20])
@pytest.mark.parametrize("length", [4, 5])
@pytest.mark.parametrize("given", [None, [1, 3], [2, 3]])
def test_parts(opset: int, length: int, given: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"axis": 1}
    names = ["x"]
    if given is None and opset >= 18:
        options["num_outputs"] = 2
    elif given is not None and opset < 13:
        options["split"] = given
    elif given is not None:
        names.append("s")
    split = helper.make_node("Split", names, ["a", "b"], **options)
    graph = [split, node("Concat", "b a a", axis=1)]
    weights = {} if given is None else {"s": whole(*given)}
    fits = sum(given) == length if given else length % 2 == 0 or opset >= 18
    if fits:
        check(tmp_path, graph, [length], weights, opset=opset)
    elif given:
        refused(tmp_path, "makes 2 values of lengths", graph, [length], weights, opset=opset)
    batch = helper.make_node("Split", ["x"], ["a", "b"], axis=0)
    refused(tmp_path, MIXED, [batch, node("Concat", "b a", axis=1)], [4], opset=13)


def test_repeated_values(tmp_path: Path) -> None:
    check(tmp_path, [node("Tile", "x s")], [4, 2], {"s": whole(1, 2, 3)})
    check(tmp_path, [node("Expand", "x s")], [1, 3], {"s": whole(1, 4, 1)})
    check(tmp_path, [node("Expand", "x s")], [1], {"s": whole(3, 4)}, batch=3)
    refused(tmp_path, MIXED, [node("Tile", "x s")], [4], {"s": whole(2, 1)})
    refused(tmp_path, MIXED, [node("Expand", "x s")], [4], {"s": whole(2, 1, 4)})
    refused(tmp_path, "larger than", [node("Tile", "x s")], [4], {"s": whole(1, 10**12)})
    refused(tmp_path, "larger than", [node("Expand", "x s")], [1], {"s": whole(1, 10**12)})
    refused(tmp_path, "depend on the model", [node("Tile", "x x")], [4])


@pytest.mark.parametrize("batch", ["batch", 3])
def test_sizes_that_the_graph_computes(batch: Any, tmp_path: Path) -> None:
    """As exporters write x.expand(x.size(0), 4), and interpolations to a size."""
    size = [node("Shape", "x", "n", end=1), node("Concat", "n r", "s", axis=0)]
    for shape, rest, last in (
        ([1], whole(4), node("Expand", "x s")),
        ([2, 3], whole(2, 6), node("Resize", "x - - s", mode="nearest")),
    ):
        file = save(tmp_path / "model.onnx", [*size, last], shape, {"r": rest}, batch=batch)
        inputs = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
        assert (answers(from_onnx(file), inputs) == runtime(file, inputs)).all()
    twice = [node("Shape", "x", "n", end=1), node("Add", "n n", "m")]
    twice += [node("Concat", "m r", "s", axis=0), node("Expand", "x s")]
    words = "depend on the number" if batch == "batch" else "does not go"
    refused(tmp_path, words, twice, [1], {"r": whole(4)}, batch=batch)


def test_blocks(tmp_path: Path) -> None:
    for mode in ("DCR", "CRD"):
        check(tmp_path, [node("DepthToSpace", "x", blocksize=2, mode=mode)], [8, 2, 3])
    check(tmp_path, [node("SpaceToDepth", "x", blocksize=2)], [3, 4, 6])
    for operator in ("DepthToSpace", "SpaceToDepth"):
        refused(tmp_path, "does not go", [node(operator, "x", blocksize=5)], [8, 2, 3])


@pytest.mark.parametrize(
    "rule", ["half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners"]
)
@pytest.mark.parametrize("nearest", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
def test_resizing_to_the_nearest(rule: str, nearest: str, tmp_path: Path) -> None:
    options = {"coordinate_transformation_mode": rule, "nearest_mode": nearest}
    for names, weights in (
        ("x - s", np.float32([1, 1, 2, 3])),
        ("x - s", np.float32([1, 1, 1.7, 0.5])),
        ("x - - s", whole(3, 2, 4, 7)),
    ):
        resize = node("Resize", names, mode="nearest", **options)
        check(tmp_path, [resize], [2, 3, 4], {"s": weights}, batch=3)


@pytest.mark.parametrize("factor", [0.3, 0.5, 0.6, 2 / 3, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 2.5])
@pytest.mark.parametrize("other", [0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("operator", "opset"), [("Upsample", 7), ("Upsample", 9), ("Resize", 10), ("Resize", 13)]
)
def test_resizing_is_as_the_runtime_does_it_or_refused(
    operator: str, opset: int, other: float, factor: float, tmp_path: Path
) -> None:
    scales = np.float32([1, 1, other, factor])
    options: dict[str, Any] = {"mode": "nearest"}
    if opset == 7:
        options["scales"] = scales.tolist()
    elif opset == 13:
        options |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    names = {7: "x", 9: "x s", 10: "x s", 13: "x - s"}[opset]
    weights = {} if opset == 7 else {"s": scales}
    refusals = []
    for size in (2, 3, 4, 5, 8):
        made = [node(operator, names, **options)]
        file = save(tmp_path / "model.onnx", made, [1, 4, size], weights, opset=opset)
        inputs = np.random.default_rng(0).normal(size=(3, 1, 4, size)).astype(np.float32)
        try:
            model = from_onnx(file)
        except UnsupportedModelError as error:
            refusals.append(str(error))
            continue
        assert (answers(model, inputs) == runtime(file, inputs)).all()
    known = re.compile("precisions differ|runtimes differ|shrinks its input|makes shape")
    assert all(map(known.search, refusals))
    may_shrink = operator == "Resize" or min(other, factor) >= 1
    assert not refusals or factor not in (0.5, 2.0) or not may_shrink


def test_resizing_of_other_kinds(tmp_path: Path) -> None:
    twice = {"s": np.float32([1, 1, 2, 3])}
    check(tmp_path, [node("Resize", "x s", mode="nearest")], [2, 3, 5], twice, opset=10)
    check(tmp_path, [node("Upsample", "x s", mode="nearest")], [2, 3, 5], twice, opset=9)
    old = node("Upsample", "x", mode="nearest", scales=[1.0, 1.0, 2.0, 3.0])
    check(tmp_path, [old], [2, 3, 5], opset=7)
    for words, options in (
        ("interpolates", {"mode": "linear"}),
        ("chooses places", {"coordinate_transformation_mode": "tf_crop_and_resize"}),
        ("chooses places", {"axes": [2, 3]}),
        ("aspect", {"keep_aspect_ratio_policy": "not_larger"}),
    ):
        refused(tmp_path, words, [node("Resize", "x - s", **options)], [2, 3, 5], twice)
    batch = {"s": np.float32([2, 1, 2, 3])}
    refused(tmp_path, MIXED, [node("Resize", "x - s")], [2, 3, 5], batch)
    uneven = {"s": np.float32([1, 1, 1, 0.6])}
    floor = node("Resize", "x - s", nearest_mode="floor")
    refused(tmp_path, "precisions differ", [floor], [2, 3, 5], uneven)


@pytest.mark.parametrize("mode", ["edge", "reflect", "wrap"])
def test_padding_with_values_that_are_there(mode: str, tmp_path: Path) -> None:
    pad = [node("Pad", "x p", mode=mode)]
    check(tmp_path, pad, [2, 4, 5], {"p": whole(0, 0, 1, 2, 0, 0, 3, 1)})
    check(tmp_path, pad, [2, 4], {"p": whole(0, 1, 0, 0, 0, 0)})
    check(tmp_path, [node("Pad", "x", mode=mode, pads=[0, 0, 1, 0, 0, 1])], [2, 4], opset=9)
    refused(tmp_path, "pads 4 values by", pad, [2, 4], {"p": whole(0, 0, -1, 0, 0, 1)})
    if mode != "edge":
        refused(tmp_path, "pads 4 values by", pad, [2, 4], {"p": whole(0, 0, 9, 0, 0, 1)})
    refused(tmp_path, "mixes the inputs", pad, [4], {"p": whole(1, 0, 0, 0)})


def test_sums_along_axes(tmp_path: Path) -> None:
    for keep in (0, 1):
        total = node("ReduceSum", "x a", keepdims=keep)
        check(tmp_path, [total], [4, 3, 2], {"a": whole(1, -1)})
        check(tmp_path, [node("ReduceSum", "x", axes=[2], keepdims=keep)], [4, 3], opset=11)
    check(tmp_path, [node("ReduceSum", "x", noop_with_empty_axes=1)], [4])
    refused(tmp_path, MIXED, [node("ReduceSum", "x")], [4])


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
def test_transposed_convolutions(stride: int, dilation: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    weight = generator.normal(size=(4, 3, 3)).astype(np.float32)
    for pad, more, groups in product([0, 1], [0, 1, 2], [1, 2]):
        options = {"strides": [stride], "dilations": [dilation], "group": groups}
        around = {"pads": [pad, pad], "output_padding": [more]}
        weights = {"w": weight, "b": generator.normal(size=3 * groups).astype(np.float32)}
        layer = [node("ConvTranspose", "x w b", **options, **around)]
        if more < stride:  # as onnxruntime takes it
            check(tmp_path, layer, [4, 5], weights)
        elif more >= dilation:
            refused(tmp_path, "output_padding", layer, [4, 5], weights)
    images = {"w": generator.normal(size=(2, 3, 3, 2)).astype(np.float32)}
    for words, options in (
        ("", {"pads": [1, 0, 1, 0], "output_padding": [stride - 1, 0]}),
        ("both ends", {"pads": [1, 0, 0, 0]}),
        ("auto_pad or output_shape", {"output_shape": [8, 8]}),
        ("auto_pad or output_shape", {"auto_pad": "SAME_UPPER"}),
        ("makes shape", {"pads": [9, 9, 9, 9]}),
        ("in 3 groups", {"group": 3}),
        ("do not go", {"strides": [2]}),
    ):
        layer = [node("ConvTranspose", "x w", **{"strides": [stride, 2], **options})]
        if words:
            refused(tmp_path, words, layer, [2, 4, 4], images)
        else:
            check(tmp_path, layer, [2, 4, 4], images)


def test_what_is_selected_compiles(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        node("Mul", "a b", "c"),
        node("Pad", "c p", "d", mode="reflect"),
        node("Slice", "d s e s", "f"),
        node("Gather", "f i", axis=1),
    ]
    weights = {"p": whole(0, 1, 0, 1), "s": whole(1), "e": whole(4), "i": whole(2, 0)}
    file = save(tmp_path / "model.onnx", nodes, [6], weights)
    compiled = compile_model(from_onnx(file), input_shape=6, input_range=(-1.0, 1.0))
    x = np.random.default_rng(0).uniform(-1, 1, (5, 6))
    assert np.allclose(compiled.predict(x), runtime(file, x.astype(np.float32)), atol=1e-6)
