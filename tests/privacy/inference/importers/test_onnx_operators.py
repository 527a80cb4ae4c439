"""Each operator of ONNX with its options, against onnxruntime and onnx's own reference."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.inference import from_onnx
from privacy.inference.errors import UnsupportedModelError
from tests.privacy.inference.importers.onnx_graphs import (
    answers,
    node,
    reference,
    runtime,
    save,
)

GENERATOR = np.random.default_rng(0)
BOTH = (runtime, reference)


def drawn(*shape: int) -> np.ndarray:
    return np.asarray(GENERATOR.normal(size=shape), dtype=np.float32)


def assert_alike(path: Path, shape: Any, judges: Any = BOTH, batch: int = 3) -> None:
    inputs = drawn(batch, *shape)
    model = from_onnx(path)
    assert model.input_shape == tuple(shape)
    ours = answers(model, inputs)
    for judge in judges:
        theirs = judge(path, inputs)
        assert ours.shape == theirs.shape
        assert abs(ours - theirs).max() <= 2e-5 * max(1.0, abs(theirs).max())


def check(path: Path, nodes: Any, shape: Any, weights: Any = None, **options: Any) -> None:
    judges = options.pop("judges", BOTH)
    file = save(path / "model.onnx", nodes, shape, weights, **options)
    batch = options.get("batch", 3)
    assert_alike(file, shape, judges, batch)


def refused(
    path: Path, words: str, nodes: Any, shape: Any, weights: Any = None, **options: Any
) -> None:
    file = save(path / "model.onnx", nodes, shape, weights, **options)
    with pytest.raises(UnsupportedModelError, match=words):
        from_onnx(file)


@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("dilation", [1, 2])
def test_convolutions(auto_pad: str, dilation: int, tmp_path: Path) -> None:
    """Over one axis: padding, kernel, stride, groups, bias, size."""
    paddings = [(0, 0), (1, 1), (0, 2), (3, 1)] if auto_pad == "NOTSET" else [None]
    # onnxruntime does not take dilations beside auto_pad.
    judges = (reference,) if dilation > 1 and auto_pad.startswith("SAME") else BOTH
    for pads, kernel, stride, groups, bias, size in product(
        paddings, (1, 2, 3), (1, 2, 3), (1, 2), (False, True), (7, 8)
    ):
        options: dict[str, Any] = {"strides": [stride], "group": groups, "auto_pad": auto_pad}
        options |= {"dilations": [dilation]} if dilation > 1 else {}
        options |= {} if pads is None else {"pads": list(pads)}
        weights = {"w": drawn(6, 4 // groups, kernel)} | ({"b": drawn(6)} if bias else {})
        nodes = [node("Conv", "x w b" if bias else "x w", **options)]
        check(tmp_path, nodes, [4, size], weights, judges=judges)


@pytest.mark.parametrize("pads", [[1, 0, 2, 3], [1, 2, 1, 2], "SAME_LOWER", "SAME_UPPER", "VALID"])
@pytest.mark.parametrize("strides", [[1, 1], [2, 1], [2, 3]])
def test_windows_over_two_axes(pads: Any, strides: list[int], tmp_path: Path) -> None:
    padding = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    options = {"strides": strides, **padding}
    check(tmp_path, [node("Conv", "x w", **options)], [3, 9, 8], {"w": drawn(5, 3, 3, 2)})
    if not isinstance(pads, str):
        dilated = [node("Conv", "x w", dilations=[1, 2], kernel_shape=[3, 2], **options)]
        check(tmp_path, dilated, [3, 9, 8], {"w": drawn(5, 3, 3, 2)})
    for counted in (0, 1):
        pool = node("AveragePool", "x", kernel_shape=[3, 4], count_include_pad=counted, **options)
        check(tmp_path, [pool], [3, 9, 8])


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("counted", [0, 1])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"])
def test_averages(ceil_mode: int, counted: int, auto_pad: str, tmp_path: Path) -> None:
    """The reference does without ceil_mode: where windows overhang it answers otherwise."""
    paddings = [(0, 0), (1, 1), (0, 1), (2, 1)] if auto_pad == "NOTSET" else [None]
    for pads, kernel, stride, dilation, size in product(
        paddings, (2, 3), (1, 2, 3), (1, 2), (7, 8)
    ):
        if max(pads or (0,)) >= kernel or (pads is None and dilation > 1):
            continue
        options: dict[str, Any] = {} if pads is None else {"pads": list(pads)}
        options |= {"dilations": [dilation]} if dilation > 1 else {}
        pool = node(
            "AveragePool",
            "x",
            kernel_shape=[kernel],
            strides=[stride],
            ceil_mode=ceil_mode,
            count_include_pad=counted,
            auto_pad=auto_pad,
            **options,
        )
        judges = (runtime,) if ceil_mode else BOTH
        check(tmp_path, [pool], [2, size], judges=judges)


def test_averages_that_runtimes_compute_differently_are_refused(tmp_path: Path) -> None:
    pool = node("AveragePool", "x", kernel_shape=[2], dilations=[2], auto_pad="SAME_UPPER")
    refused(tmp_path, "runtimes differ", [pool], [2, 7])


@pytest.mark.parametrize("turned", [0, 1])
@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("beta", [1.0, -2.0])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,), (), (1, 1)])
def test_gemm(turned: int, alpha: float, beta: float, bias: Any, tmp_path: Path) -> None:
    weights = {"w": drawn(5, 4) if turned else drawn(4, 5)}
    weights |= {} if bias is None else {"c": drawn(*bias)}
    gemm = node("Gemm", "x w" if bias is None else "x w c", transB=turned, alpha=alpha, beta=beta)
    check(tmp_path, [gemm], [4], weights)


def test_matrix_products(tmp_path: Path) -> None:
    check(tmp_path, [node("MatMul", "x w")], [4], {"w": drawn(4, 5)})
    check(tmp_path, [node("MatMul", "x w")], [3, 4], {"w": drawn(4, 5)})
    check(tmp_path, [node("MatMul", "w x")], [3, 4], {"w": drawn(5, 3)})
    check(tmp_path, [node("MatMul", "w x")], [2, 3, 4], {"w": drawn(5, 3)})
    for shape in ((5,), (3, 5), (3, 1), (1, 3, 5)):
        nodes = [node("MatMul", "x w", "z"), node("Add", "b z")]
        check(tmp_path, nodes, [3, 4], {"w": drawn(4, 5), "b": drawn(*shape)})


def test_a_product_and_its_bias_become_one_layer(tmp_path: Path) -> None:
    nodes = [node("MatMul", "x w", "z"), node("Add", "z b")]
    model = from_onnx(save(tmp_path / "m.onnx", nodes, [4], {"w": drawn(4, 5), "b": drawn(5)}))
    assert len(model) == 1


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_arithmetic_with_constants(operator: str, first: bool, kind: type, tmp_path: Path) -> None:
    number = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    for shape in ((), (1,), (4,), (3, 1), (3, 4), (1, 3, 4), (1, 1, 1), (1, 1, 4), (3, 3, 4)):
        constant = {"c": drawn(*shape).astype(kind)}
        nodes = [node(operator, "c x" if first else "x c")]
        path = save(tmp_path / "model.onnx", nodes, [3, 4], constant, kind=number)
        if (operator == "Div" and first) or shape == (3, 3, 4):
            with pytest.raises(UnsupportedModelError):
                from_onnx(path)
            continue
        inputs = drawn(3, 3, 4).astype(kind)
        ours = answers(from_onnx(path), inputs)
        assert ours.dtype == kind
        room = 1e-12 if kind is np.float64 else 2e-5
        assert abs(ours - reference(path, inputs)).max() <= room


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul"])
def test_arithmetic_of_two_paths(operator: str, tmp_path: Path) -> None:
    relu, mean = node("Relu", "x", "z"), node("ReduceMean", "x a", "z")
    check(tmp_path, [relu, node(operator, "z x")], [3, 4])
    check(tmp_path, [relu, node(operator, "x z")], [3, 4])
    check(tmp_path, [mean, node(operator, "z x")], [3, 4], {"a": np.array([1])})
    dropped = node("ReduceMean", "x a", "z", keepdims=0)
    words = "the batch of one meets another axis"
    refused(tmp_path, words, [dropped, node(operator, "z x")], [3, 4], {"a": np.array([1])})


def test_powers_and_products_with_themselves(tmp_path: Path) -> None:
    for exponent in range(1, 8):
        check(tmp_path, [node("Pow", "x e")], [3], {"e": np.float32(exponent)})
    check(tmp_path, [node("Pow", "x e")], [3], {"e": np.full(3, 2, dtype=np.float32)})
    check(tmp_path, [node("Pow", "x e")], [3], {"e": np.int64(2)})
    check(tmp_path, [node("Mul", "x x")], [3])
    for exponent in (0.5, -1.0, 8.0, 0.0):
        refused(
            tmp_path, "whole number from 1 to 7", [node("Pow", "x e")], [3],
            {"e": np.float32(exponent)},
        )  # fmt: skip
    refused(tmp_path, "Pow .* takes a constant", [node("Pow", "e x")], [3], {"e": np.float32(2)})


@pytest.mark.parametrize("axis", range(-4, 5))
@pytest.mark.parametrize("batch", ["open", 1])
def test_flatten(axis: int, batch: Any, tmp_path: Path) -> None:
    """Of (1, 3, 4): axes 1 and 2 are before the first with several elements."""
    options = {"batch": batch}
    nodes = [node("Flatten", "x", axis=axis)]
    if (axis % 4 in (1, 2) and axis != 4) or (batch == 1 and axis in (0, -4)):
        check(tmp_path, nodes, [1, 3, 4], **({} if batch == "open" else options))
    else:
        refused(tmp_path, "mixes the inputs", nodes, [1, 3, 4], **options)


@pytest.mark.parametrize("batch", ["open", 1, 2])
@pytest.mark.parametrize(
    ("target", "batches"),
    [
        ([-1, 12], ("open", 1, 2)),
        ([0, 12], ("open", 1, 2)),
        ([0, -1], ("open", 1, 2)),
        ([0, 0, -1], ("open", 1, 2)),
        ([0, 3, 2, 2], ("open", 1, 2)),
        ([-1, 4, 3], ("open", 1, 2)),
        ([1, -1], (1,)),
        ([1, 12], (1,)),
        ([2, 6, 2], (2,)),
        ([-1], ()),
        ([4, -1], ()),
        ([6, -1], ()),
        ([3, 4], ()),
    ],
)
def test_reshape(target: list[int], batches: Any, batch: Any, tmp_path: Path) -> None:
    nodes, weights = [node("Reshape", "x t")], {"t": np.array(target)}
    if batch in batches:
        check(tmp_path, nodes, [3, 4], weights, **({} if batch == "open" else {"batch": batch}))
    else:
        words = "mixes the inputs of a batch|does not fit its input"
        refused(tmp_path, words, nodes, [3, 4], weights, batch=batch)


def test_transpose_and_concat(tmp_path: Path) -> None:
    check(tmp_path, [node("Transpose", "x", perm=[0, 2, 1])], [3, 4])
    check(tmp_path, [node("Transpose", "x", perm=[0, 3, 1, 2])], [2, 3, 4])
    check(tmp_path, [node("Transpose", "x", perm=[0, 1, 2])], [3, 4])
    for perm in ([1, 0, 2], [2, 1, 0]):
        refused(tmp_path, "mixes the inputs", [node("Transpose", "x", perm=perm)], [3, 4])
    refused(tmp_path, "mixes the inputs", [node("Transpose", "x")], [3, 4])
    for axis in (1, 2, -1):
        check(tmp_path, [node("Relu", "x", "z"), node("Concat", "x z x", axis=axis)], [2, 3])
    refused(tmp_path, "mixes the inputs", [node("Concat", "x x", axis=0)], [2, 3])
    words = "takes a constant for input 1"
    refused(tmp_path, words, [node("Concat", "x c", axis=1)], [2, 3], {"c": drawn(1, 2, 3)})


def listed(operator: str, name: str, values: Any, since: int, opset: int, **more: Any) -> Any:
    """An operator with a list as an attribute, or from some opset on as an input."""
    if values is None:
        return node(operator, "x", **more), {}
    if opset < since:
        return node(operator, "x", **{name: values}, **more), {}
    return node(operator, "x a", **more), {"a": np.array(values)}


@pytest.mark.parametrize("opset", [9, 11, 13, 20])
def test_axes_of_one_element_and_means(opset: int, tmp_path: Path) -> None:
    for axes in ([1], [-1], [1, 2], [2, 4]):
        made, weights = listed("Unsqueeze", "axes", axes, 13, opset)
        if opset >= 11 or min(axes) > 0:
            check(tmp_path, [made], [3, 4], weights, opset=opset)
    for axes in ([1], [3], [1, 3]):
        made, weights = listed("Squeeze", "axes", axes, 13, opset)
        check(tmp_path, [made], [1, 3, 1], weights, opset=opset)
    check(tmp_path, [node("Squeeze", "x")], [1, 3, 1], opset=opset)
    for axes, keep in product(([1], [1, 2], [2, 3]), (0, 1)):
        made, weights = listed("ReduceMean", "axes", axes, 18, opset, keepdims=keep)
        check(tmp_path, [made], [2, 3, 4], weights, opset=opset)
    for operator, since, shape in (("Unsqueeze", 13, [3]), ("ReduceMean", 18, [3, 4])):
        made, weights = listed(operator, "axes", [0], since, opset)
        refused(tmp_path, "mixes the inputs", [made], shape, weights, opset=opset)
    made, weights = listed("Squeeze", "axes", [2], 13, opset)
    refused(tmp_path, "removes axes", [made], [1, 3, 1], weights, opset=opset)
    refused(tmp_path, "name the axes", [node("Squeeze", "x")], [1, 3, 1], opset=opset, batch=1)
    refused(tmp_path, "mixes the inputs", [node("ReduceMean", "x")], [2, 3], opset=opset)


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_padding(opset: int, tmp_path: Path) -> None:
    for pads in ([0, 1, 2, 0, 3, 4], [0, 0, 0, 0, 2, 0]):
        if opset < 11:
            check(tmp_path, [node("Pad", "x", pads=pads, value=1.5)], [5, 6], opset=opset)
        else:
            weights = {"p": np.array(pads), "v": np.float32(1.5)}
            check(tmp_path, [node("Pad", "x p v")], [5, 6], weights, opset=opset)
            check(tmp_path, [node("Pad", "x p")], [5, 6], weights, opset=opset)
    if opset < 11:
        return
    cut = {"p": np.array([0, 0, 0, 0, -1, -2])}
    check(tmp_path, [node("Pad", "x p")], [5, 6], cut, opset=opset, judges=(runtime,))
    if opset >= 18:
        weights = {"p": np.array([1, 2, 3, 4]), "a": np.array([-1, 1])}
        check(tmp_path, [node("Pad", "x p - a")], [5, 6], weights, opset=opset)
    batch = {"p": np.array([1, 0, 0, 0, 0, 0])}
    refused(tmp_path, "mixes the inputs", [node("Pad", "x p")], [5, 6], batch, opset=opset)
    refused(tmp_path, "pads by 'odd'", [node("Pad", "x p", mode="odd")], [5, 6], cut, opset=opset)


@pytest.mark.parametrize("shape", [[4], [4, 5], [4, 5, 3]])
def test_normalisation_and_global_averages(shape: list[int], tmp_path: Path) -> None:
    weights = {name: abs(drawn(4)) for name in "sbmv"}
    nodes = [node("BatchNormalization", "x s b m v", epsilon=0.01)]
    check(tmp_path, nodes, shape, weights)
    if len(shape) > 1:
        check(tmp_path, [node("GlobalAveragePool", "x")], shape)
    training = node("BatchNormalization", "x s b m v", training_mode=1)
    refused(tmp_path, "after eval", [training], shape, weights)
    weights["v"] = weights["v"] - 5
    refused(tmp_path, "variance of zero or less", nodes, shape, weights)


def test_what_does_nothing(tmp_path: Path) -> None:
    nodes = [node("Identity", "x", "z"), node("Dropout", "z", "w"), node("Cast", "w", to=1)]
    check(tmp_path, nodes, [3])
    weights = {"r": np.float32(0.5), "t": np.array(False)}
    check(tmp_path, [node("Dropout", "x r t")], [3], weights)
    refused(
        tmp_path, "training mode", [node("Dropout", "x r t")], [3], weights | {"t": np.array(True)}
    )
    refused(tmp_path, "casts to other", [node("Cast", "x", to=7)], [3])


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        *((name, {}) for name in ("Relu", "Tanh", "Sigmoid", "Softplus", "Mish", "HardSwish")),
        *((name, {}) for name in ("Selu", "LeakyRelu", "Elu", "Celu", "Gelu", "Neg")),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.5}),
        ("Celu", {"alpha": 0.7}),
        ("Gelu", {"approximate": "tanh"}),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    ],
)
def test_activations_are_taken_over(operator: str, options: Any, tmp_path: Path) -> None:
    check(tmp_path, [node(operator, "x", **options)], [20])


UNBOUNDED = {(None, np.inf), (-np.inf, np.inf), (None, None), (-np.inf, None)}


def test_bounds_and_gates_are_activations(tmp_path: Path) -> None:
    ends = (None, -np.inf, -1, 0, 0.5, 6, np.inf)
    for low, high in product(ends[:-1], ends[2:]):
        if (low or 0) < (1 if high is None else high) and (low, high) not in UNBOUNDED:
            given = {"a": low, "b": high}
            names = ["x", *("-" if end is None else name for name, end in given.items())]
            weights = {name: np.float32(end) for name, end in given.items() if end is not None}
            check(tmp_path, [node("Clip", " ".join(names))], [20], weights)
    check(tmp_path, [node("Clip", "x", min=0.0, max=6.0)], [20], opset=9)
    check(tmp_path, [node("Clip", "x", max=0.5)], [20], opset=9)
    for words, low, high in (
        ("give a bound", -np.inf, np.inf),
        ("between 1 and 0", 1, 0),
        ("no number", np.nan, 1),
        ("no number", 0, np.nan),
        ("bounds of shape", [0, 0], 1),
    ):
        weights = {"a": np.float32(low), "b": np.array(high, dtype=np.float32)}
        refused(tmp_path, words, [node("Clip", "x a b")], [2], weights)
    for gate, kind in (
        (node("Sigmoid", "x", "z"), "SiLU"),
        (node("HardSigmoid", "x", "z", alpha=1 / 6, beta=0.5), "Hardswish"),
    ):
        for names in ("x z", "z x"):
            check(tmp_path, [gate, node("Mul", names)], [20])
            (layer,) = from_onnx(tmp_path / "model.onnx")
            assert type(layer).__name__ == kind


def test_shapes_that_the_graph_computes(tmp_path: Path) -> None:
    """As exporters write x.view(x.size(0), -1), and divisions by a size."""
    size = [node("Shape", "x", "s"), node("Gather", "s i", "b", axis=0)]
    joined = [node("Unsqueeze", "b z", "u"), node("Concat", "u m", "t", axis=0)]
    weights = {"i": np.array(0), "z": np.array([0]), "m": np.array([-1])}
    check(tmp_path, [*size, *joined, node("Reshape", "x t")], [3, 4], weights)
    start = [node("Shape", "x", "s", start=0, end=1), node("Concat", "s m", "t", axis=0)]
    check(tmp_path, [*start, node("Reshape", "x t")], [3, 4], {"m": np.array([4, 3])})
    half = [
        *size,
        node("Unsqueeze", "b z", "u"),
        node("Gather", "s k", "c"),
        node("Div", "c two", "h"),
        node("Unsqueeze", "h z", "v"),
        node("Concat", "u v m", "t", axis=0),
        node("Reshape", "x t"),
    ]
    weights |= {"k": np.array(2), "two": np.array(2)}
    check(tmp_path, half, [3, 4], weights)
    scaled = [
        node("Shape", "x", "s"),
        node("Slice", "s a b", "t"),
        node("Cast", "t", "u", to=1),
        node("Mul", "x u"),
    ]
    check(tmp_path, scaled, [3, 4], {"a": np.array([2]), "b": np.array([3])})
    weights = {"a": np.array([0]), "b": np.array([1])}
    refused(tmp_path, "depend on the number of inputs in a batch", scaled, [3, 4], weights)
    filled = node("ConstantOfShape", "s", "c", value=onnx.helper.make_tensor("v", 1, [1], [2.0]))
    check(tmp_path, [filled, node("Mul", "x c")], [3], {"s": np.array([3])})
    for options in ({"value_floats": [1.0, 2.0, 3.0]}, {"value_float": 2.0}):
        check(tmp_path, [node("Constant", "", "c", **options), node("Mul", "x c")], [3])


def test_sums_of_several(tmp_path: Path) -> None:
    check(tmp_path, [node("Sum", "x c x")], [3], {"c": drawn(3)})


@pytest.mark.parametrize(
    ("words", "nodes", "shape", "weights"),
    [
        ("Exp .*none of the operators", [node("Exp", "x")], [3], {}),
        ("MaxPool .*AveragePool", [node("MaxPool", "x", kernel_shape=[2])], [1, 4], {}),
        ("Softmax .*output='z'", [node("Relu", "x", "z"), node("Softmax", "z")], [3], {}),
        ("divides by a value", [node("Div", "x x")], [3], {}),
        ("divides by zero", [node("Div", "x c")], [3], {"c": np.float32(0)}),
        ("as attention does", [node("MatMul", "x x")], [3, 3], {}),
        ("mixes those of a batch", [node("MatMul", "w x")], [3], {"w": drawn(3, 3)}),
        ("transA=1", [node("Gemm", "x w", transA=1)], [3], {"w": drawn(3, 3)}),
        ("another bias", [node("Gemm", "x w c")], [3], {"w": drawn(3, 3), "c": drawn(3, 3)}),
        ("rows of weights", [node("Gemm", "x w")], [3], {"w": drawn(4, 3)}),
        ("has weights of shape", [node("Conv", "x w")], [1, 4, 4, 4], {"w": drawn(1, 1, 2, 2, 2)}),
        ("in 1 groups", [node("Conv", "x w")], [2, 4], {"w": drawn(3, 1, 2)}),
        ("larger than its inputs", [node("Conv", "x w")], [1, 4], {"w": drawn(3, 1, 5)}),
        ("weights that depend", [node("Conv", "x x")], [1, 4], {}),
        ("not finite", [node("Gemm", "x w")], [3], {"w": np.full((3, 2), np.nan, np.float32)}),
        ("'beta2'", [node("Gemm", "x w", beta2=1.0)], [3], {"w": drawn(3, 3)}),
        ("another kind", [node("Gemm", "x w", alpha="two")], [3], {"w": drawn(3, 3)}),
        ("auto_pad", [node("Conv", "x w", auto_pad="SAME")], [1, 4], {"w": drawn(3, 1, 2)}),
        ("Loop", [node("Loop", "x")], [3], {}),
        ("before anything makes it", [node("Relu", "z"), node("Relu", "x", "z")], [3], {}),
        ("two operators make 'y'", [node("Relu", "x"), node("Relu", "x")], [3], {}),
        ("does not depend on any input", [node("Relu", "x", "z"), node("Identity", "c")], [3],
         {"c": drawn(3)}),
        ("does not depend on its input", [node("Shape", "x")], [3], {}),
    ],
)  # fmt: skip
def test_refusals_by_name(words: str, nodes: Any, shape: Any, weights: Any, tmp_path: Path) -> None:
    refused(tmp_path, words, nodes, shape, weights)


@pytest.mark.parametrize("operator", ["Add", "Sub", "Mul", "Div", "Pow"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 4), (4,), (2, 1), (1, 1, 1), (3, 1)])
@pytest.mark.parametrize("size", [1, 4])
def test_constants_of_every_shape_are_broadcast_or_refused(
    operator: str, shape: Any, size: int, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    save(file, [node(operator, "x c")], [size], {"c": np.full(shape, 2, dtype=np.float32)})
    try:
        from_onnx(file)
    except UnsupportedModelError:
        assert shape not in ((), (1,), (1, 1))
    else:
        assert_alike(file, [size])


@pytest.mark.parametrize("opset", [7, 9, 13, 14, 15, 20])
def test_statistics_that_are_given_out_are_those_of_training(opset: int, tmp_path: Path) -> None:
    made = ["y", "mean", "var"] if opset >= 14 else ["y", "mean", "var", "old_mean", "old_var"]
    options = {"training_mode": 1} if opset >= 14 else {}
    for outputs in (made, made[:2]):
        training = onnx.helper.make_node("BatchNormalization", ["x", *"sbmv"], outputs, **options)
        weights = {name: np.float32([1, 2, 3]) for name in "sbmv"}
        refused(tmp_path, "training mode", [training], [3], weights, opset=opset)


LEARNED = {"w": drawn(3, 3), "k": drawn(3, 3, 1)}
SAMPLES: dict[str, tuple[Any, Any]] = {
    "Gemm": (node("Gemm", "x w", transB=1, alpha=0.5, beta=2.0), [3]),
    "Conv": (node("Conv", "x k", strides=[2], pads=[1, 1]), [3, 6]),
    "AveragePool": (node("AveragePool", "x", kernel_shape=[2], ceil_mode=1), [3, 5]),
    "Flatten": (node("Flatten", "x", axis=1), [3, 2]),
    "Transpose": (node("Transpose", "x", perm=[0, 2, 1]), [3, 2]),
    "Concat": (node("Concat", "x x", axis=1), [3]),
    "LeakyRelu": (node("LeakyRelu", "x", alpha=0.5), [3]),
    "Relu": (node("Relu", "x"), [3]),
}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_what_is_not_asked_for_is_refused(name: str, tmp_path: Path) -> None:
    """Further outputs, and attributes without a kind: as numbers they would be 0."""
    sample, shape = SAMPLES[name]
    check(tmp_path, [sample], shape, LEARNED)
    several = onnx.NodeProto()
    several.CopyFrom(sample)
    several.output.append("another")
    refused(tmp_path, "makes 2 values", [several], shape, LEARNED)
    for place in range(len(sample.attribute)):
        unkind = onnx.NodeProto()
        unkind.CopyFrom(sample)
        unkind.attribute[place].ClearField("type")
        refused(tmp_path, "of a kind that is not taken", [unkind], shape, LEARNED)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(["conv", "pool", "pad", "norm", "square", "skip", "scale", "turn", "join"]),
        max_size=6,
    ),
    st.integers(1, 3),
    st.integers(6, 10),
    st.integers(0, 100),
)
def test_random_graphs(
    tmp_path_factory: pytest.TempPathFactory, kinds: Any, channels: int, size: int, seed: int
) -> None:
    """Chains and paths of operators answer as in onnxruntime."""
    generator = np.random.default_rng(seed)
    nodes, weights, name, before = [], {}, "x", channels
    for index, kind in enumerate(kinds):
        made, w = f"v{index}", f"w{index}"
        if kind == "conv":
            weights[w] = generator.normal(size=(2, channels, 3, 3)).astype(np.float32) / 4
            nodes.append(node("Conv", f"{name} {w}", made, pads=[1, 1, 1, 1]))
            channels = 2
        elif kind == "pool":
            nodes.append(node("AveragePool", name, made, kernel_shape=[2, 2], pads=[0, 1, 1, 0]))
        elif kind == "pad":
            weights[w] = np.array([0, 0, 1, 0, 0, 0, 0, 1])
            nodes.append(node("Pad", f"{name} {w}", made))
        elif kind == "norm":
            names = []
            for part in "sbmv":
                weights[w + part] = generator.uniform(0.5, 1, channels).astype(np.float32)
                names.append(w + part)
            nodes.append(node("BatchNormalization", " ".join([name, *names]), made))
        elif kind == "square":
            nodes.append(node("Mul", f"{name} {name}", made))
        elif kind == "skip":
            nodes += [node("Neg", name, made + "n"), node("Add", f"{name} {made}n", made)]
        elif kind == "scale":
            weights[w] = generator.uniform(0.5, 1, (channels, 1, 1)).astype(np.float32)
            nodes.append(node("Mul", f"{w} {name}", made))
        elif kind == "turn":
            nodes.append(node("Transpose", name, made, perm=[0, 1, 3, 2]))
        else:
            nodes.append(node("Concat", f"{name} {name}", made, axis=1))
            channels *= 2
        name = made
    nodes.append(node("GlobalAveragePool", name, "g"))
    nodes.append(node("Flatten", "g"))
    path = save(tmp_path_factory.mktemp("graph") / "m.onnx", nodes, [before, size, size], weights)
    assert_alike(path, [before, size, size], (runtime,))
