"""Matrix products and normalisations of ONNX."""

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from privacy.inference.importers.onnx_builder import Builder
from privacy.inference.importers.onnx_layers import Permuted, Scaled, Shifted
from privacy.inference.importers.onnx_values import Array, Data, Node


def dense(node: Node, graph: Builder, data: Data, weight: Array, bias: Array | None = None) -> Data:
    """``nn.Linear`` on the last axis; ``weight`` has a row for each output."""
    if weight.shape[1] != data.shape[-1]:
        raise node.refused(
            f"multiplies inputs of shape {data.shape} with {weight.shape[1]} rows of weights"
        )
    layer = nn.utils.skip_init(
        nn.Linear,
        weight.shape[1],
        weight.shape[0],
        bias=bias is not None,
        dtype=graph.kind,
        device="cpu",
    )
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        if bias is not None:
            layer.bias.copy_(torch.from_numpy(np.ascontiguousarray(bias)))
    return graph.add(node, layer, [data], (*data.shape[:-1], len(weight)))


def gemm(node: Node, graph: Builder) -> Data:
    """Gemm: alpha·A·B + beta·C."""
    data, weight = node.data(), node.weights(1, "weights", 2)
    alpha, beta = node.attribute("alpha", 1.0), node.attribute("beta", 1.0)
    if node.attribute("transA", 0):
        raise node.refused("has transA=1, which turns the inputs of a batch into features")
    if data.rank != 2:
        raise node.refused(f"multiplies inputs of shape {data.shape}; flatten them before it")
    rows = weight if node.attribute("transB", 0) else weight.T
    bias = None
    if node.given(2) is not None:
        given = node.weights(2, "a bias", 0, 1, 2)
        if given.ndim == 2 and len(given) != 1:
            raise node.refused("adds another bias to each input of a batch")
        given = given.reshape(-1)
        if len(given) not in (1, len(rows)):
            raise node.refused(f"has a bias of {len(given)} numbers for {len(rows)} outputs")
        bias = beta * np.broadcast_to(given, len(rows))
    return dense(node, graph, data, alpha * rows, bias)


def product(node: Node, graph: Builder) -> Data:
    """MatMul with a constant matrix, from either side."""
    first, second = node.value(0), node.value(1)
    if isinstance(first, Data) and isinstance(second, Data):
        raise node.refused(
            "multiplies two values that depend on the model's input, as attention does; only "
            "products with a constant matrix, and element by element, are taken"
        )
    if isinstance(first, Data):
        return dense(node, graph, first, node.weights(1, "weights", 2).T)
    data, weight = node.data(1), node.weights(0, "weights", 2)
    if data.rank < 3:
        raise node.refused("has a matrix to the left of its inputs, which mixes those of a batch")
    axes = [*range(data.rank - 2), data.rank - 1, data.rank - 2]

    def swapped(value: Data) -> Data:
        shape = (*value.shape[:-2], value.shape[-1], value.shape[-2])
        return graph.add(node, Permuted(axes), [value], shape)

    return swapped(dense(node, graph, swapped(data), weight))


def normalisation(node: Node, graph: Builder) -> Data:
    """BatchNormalization with the statistics of training."""
    data = node.data()
    scale, bias, mean, variance = (
        node.weights(place, what, 1)
        for place, what in enumerate(("scales", "biases", "means", "variances"), start=1)
    )
    epsilon = node.attribute("epsilon", 1e-5)
    node.attribute("momentum", 0.9)
    # Before opset 14 it is statistics among the outputs that say so.
    training = node.attribute("training_mode", 0) or len(node.outputs) > 1
    if training or not node.attribute("spatial", 1):
        raise node.refused("is in training mode or not spatial; export the model after eval()")
    if not data.shape or data.rank > 4:
        raise node.refused(f"works on inputs of shape {data.shape}; at most two axes are taken")
    sizes = {len(each) for each in (scale, bias, mean, variance)}
    if sizes != {data.shape[0]}:
        raise node.refused(f"has statistics of {sorted(sizes)} channels, inputs {data.shape}")
    if float(variance.min()) + epsilon <= 0:
        raise node.refused("has a variance of zero or less to divide by; export other weights")
    kind: Any = nn.BatchNorm2d if data.rank == 4 else nn.BatchNorm1d
    layer = kind(len(scale), eps=epsilon, dtype=graph.kind, device="cpu")
    with torch.no_grad():
        for given, values in (
            (layer.weight, scale),
            (layer.bias, bias),
            (layer.running_mean, mean),
            (layer.running_var, variance),
        ):
            given.copy_(torch.from_numpy(values))
    return graph.add(node, layer, [data], data.shape)


def scaler(node: Node, graph: Builder) -> Data:
    """Scaler of scikit-learn's converters: (x - offset)·scale."""
    data = node.data()
    offset, scale = (
        np.asarray(node.attribute(name, [0.0]), dtype=np.float64) for name in ("offset", "scale")
    )
    if data.rank != 2 or {len(offset), len(scale)} - {1, data.shape[0]}:
        raise node.refused(f"has {len(scale)} scales for inputs of shape {data.shape}")
    moved = graph.add(node, Shifted(_tensor(-offset, graph)), [data], data.shape)
    return graph.add(node, Scaled(_tensor(scale, graph)), [moved], data.shape)


def linear_model(node: Node, graph: Builder) -> Data:
    """LinearRegressor, and the scores of LinearClassifier."""
    data = node.data()
    classifier = node.operator == "LinearClassifier"
    weights = np.asarray(node.attribute("coefficients", []), dtype=np.float64)
    biases = np.asarray(node.attribute("intercepts", [0.0]), dtype=np.float64)
    if data.rank != 2 or weights.size % max(data.shape[0], 1) or not weights.size:
        raise node.refused(f"has {weights.size} coefficients for inputs of shape {data.shape}")
    rows = weights.reshape(-1, data.shape[0])
    if node.attribute("post_transform", "NONE") != "NONE":
        raise node.refused(
            "ends in probabilities; convert the estimator with raw scores, "
            "to_onnx(..., options={'raw_scores': True, 'zipmap': False}), or give the estimator "
            "itself to from_sklearn"
        )
    node.attribute("targets", 1)
    if classifier:
        for name in ("classlabels_ints", "classlabels_strings", "multi_class"):
            node.attribute(name, None)
    if len(biases) not in (1, len(rows)) or not np.isfinite([*weights, *biases]).all():
        raise node.refused("has coefficients that are not finite, or intercepts that do not fit")
    return dense(node, graph, data, rows, np.broadcast_to(biases, len(rows)))


def fused_bias(node: Node, graph: Builder, data: Data, offset: Array) -> Data | None:
    """The product before with a bias, where it has none and the constant is one for each output."""
    layer = graph.layer(data)
    if type(layer) is not nn.Linear or "bias" in dict(layer.named_parameters()):
        return None
    if math.prod(offset.shape) != layer.out_features or offset.shape[-1:] != data.shape[-1:]:
        return None
    (source,) = graph.sources(data)
    weight = layer.weight.detach().double().numpy()
    before = Data(source, (*data.shape[:-1], layer.in_features))
    return dense(node, graph, before, weight, offset.reshape(-1))


def _tensor(array: Array, graph: Builder) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(graph.kind)
