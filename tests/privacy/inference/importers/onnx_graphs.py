"""Hand-made ONNX files for tests, and what onnxruntime and onnx's own reference answer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn

OPSET = 20


def node(operator: str, inputs: str, output: str = "y", **attributes: Any) -> Any:
    """An operator; names of inputs apart by spaces, "-" for one that is left out."""
    names = ["" if name == "-" else name for name in inputs.split()]
    return helper.make_node(operator, names, [output], **attributes)


def save(
    path: Path,
    nodes: Sequence[Any],
    shape: Sequence[int | str],
    weights: dict[str, np.ndarray] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = OPSET,
    kind: int = TensorProto.FLOAT,
    batch: int | str = "batch",
    domains: Sequence[str] = (),
) -> Path:
    """A file whose input is x, of a shape without the batch."""
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, [batch, *shape])],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    versions = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 3) for d in domains)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
    onnx.save(model, path)
    return path


def runtime(path: Path, inputs: np.ndarray, output: str | None = None) -> np.ndarray:
    """What onnxruntime answers."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (name,) = [each.name for each in session.get_inputs()]
    return np.asarray(session.run(None if output is None else [output], {name: inputs})[0])


def reference(path: Path, inputs: np.ndarray) -> np.ndarray:
    """What onnx's reference evaluator answers."""
    evaluator = ReferenceEvaluator(str(path))
    return np.asarray(evaluator.run(None, {evaluator.input_names[0]: inputs})[0])


def answers(model: nn.Module, inputs: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(inputs)).numpy()
