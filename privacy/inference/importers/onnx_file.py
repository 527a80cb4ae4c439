"""An ONNX file that a stranger wrote, read within limits.

**Guarantee.** Nothing in the file is executed. No more than 512 MB of files are read, all of them
in the file's own folder; what a tensor claims to be is compared with its bytes before it is made.

**Assumptions.** The ``onnx`` package is used for the message format alone: its parser, Protocol
Buffers', is trusted with hostile bytes.

**Not covered.** Whether the model is a good one.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.imports import needing
from privacy.inference.errors import UnsupportedModelError
from privacy.untrusted_text import quoted

Array = NDArray[Any]
_MAX_BYTES = 512_000_000
_MAX_NODES = 20_000
_OLDEST_OPSET = 7
"""Since then operators broadcast as NumPy does."""


@dataclass
class OnnxFile:
    """A parsed file.

    Attributes
    ----------
    graph : onnx.GraphProto
    opset : int
        Version of ONNX's own operators.
    folder : Path
        Where tensors in other files lie.
    bytes_left : int
        How much may still be read.
    """

    graph: Any
    opset: int
    folder: Path
    bytes_left: int

    def array(self, tensor: Any) -> Array:
        """A tensor of the file as an array."""
        with needing("from_onnx", extra="onnx"):
            import onnx

        name = f"tensor {quoted(tensor.name)}"
        shape = tuple(tensor.dims)
        if min(shape, default=0) < 0:
            raise UnsupportedModelError(f"{name} has shape {shape}")
        kinds = onnx.TensorProto
        taken = (kinds.FLOAT, kinds.DOUBLE, kinds.FLOAT16, kinds.BFLOAT16, kinds.INT64)
        if tensor.data_type not in (*taken, kinds.INT32, kinds.BOOL):
            raise UnsupportedModelError(
                f"{name} is of {_kind_name(tensor.data_type)}; export the model in float32, "
                "without quantisation"
            )
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        if tensor.data_location == kinds.EXTERNAL:
            content = self._external(tensor, name, math.prod(shape) * kind.itemsize)
            return np.frombuffer(content, dtype=kind).reshape(shape)
        try:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except Exception as error:  # whatever the package raises of a malformed tensor
            raise UnsupportedModelError(
                f"{name} does not hold the numbers of its shape {shape}: {error}"
            ) from error

    def _external(self, tensor: Any, name: str, size: int) -> bytes:
        """The bytes of a tensor that lies in another file of the same folder."""
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        place = PurePosixPath(location)
        if place.name != location or location in ("", ".", "..") or "\\" in location:
            raise UnsupportedModelError(
                f"{name} lies in {quoted(location)}, outside the model's own folder; save the "
                "model in one file, with its weights"
            )
        try:
            offset, length = (
                int(entries.get(key, default)) for key, default in (("offset", 0), ("length", size))
            )
        except ValueError as error:
            raise UnsupportedModelError(f"{name} has no place in its file: {error}") from error
        path = self.folder / location
        if path.is_symlink() or not path.is_file():
            raise UnsupportedModelError(
                f"{name} lies in {quoted(location)}, which is no file beside the model; keep both "
                "in one folder"
            )
        if length != size or offset < 0 or offset + size > path.stat().st_size:
            raise UnsupportedModelError(
                f"{name} takes {size:,} bytes, which are not in {quoted(location)}; export it again"
            )
        self.bytes_left -= size
        if self.bytes_left < 0:
            raise _too_large()
        with path.open("rb") as file:
            file.seek(offset)
            return bytes(file.read(size))


def read_onnx(path: "str | os.PathLike[str]") -> OnnxFile:
    """Parse a file.

    Raises
    ------
    MissingExtraError
        If the ``onnx`` package is missing.
    UnsupportedModelError
        If it is no ONNX file, too large, or of a form that is not taken.
    """
    with needing("from_onnx", extra="onnx"):
        import onnx
    given = Path(path)
    if not given.is_file():
        raise FileNotFoundError(f"path is {str(given)!r}, and there is no such file")
    size = given.stat().st_size
    if size > _MAX_BYTES:
        raise _too_large()
    try:
        model = onnx.ModelProto.FromString(given.read_bytes())
    except Exception as error:  # the parser's own, of another package
        raise UnsupportedModelError(f"{given.name} is no ONNX file: {error}") from error
    graph = model.graph
    if not graph.node or not graph.output:
        raise UnsupportedModelError(f"{given.name} is no ONNX file: it holds no model")
    if len(graph.node) > _MAX_NODES:
        raise UnsupportedModelError(
            f"the model has {len(graph.node):,} operators, {_MAX_NODES:,} are taken at most"
        )
    if graph.sparse_initializer:
        raise UnsupportedModelError("the model has sparse weights; export it with dense ones")
    if model.functions:
        names = _listed(function.name for function in model.functions)
        raise UnsupportedModelError(
            f"the model has functions of its own ({names}); put their operators in their place: "
            "onnx.save(onnx.inliner.inline_local_functions(onnx.load(path)), new_path)"
        )
    own = [entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    opset = max(own, default=1)
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST_OPSET <= opset <= newest:
        raise UnsupportedModelError(
            f"the model is of opset {opset}; {_OLDEST_OPSET} to {newest} are taken (convert it "
            "with onnx.version_converter, or update the onnx package)"
        )
    return OnnxFile(graph, opset, given.absolute().parent, _MAX_BYTES - size)


def _kind_name(kind: int) -> str:
    with needing("from_onnx", extra="onnx"):
        import onnx

    names = {value: key for key, value in onnx.TensorProto.DataType.items()}
    return str(names.get(kind, f"the unknown kind {kind}"))


def _too_large() -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model's files hold more than {_MAX_BYTES:,} bytes, far more than can be evaluated "
        "under encryption; use a smaller model"
    )


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(map(quoted, list(names)[:5]))
