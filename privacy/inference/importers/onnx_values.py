"""Values of an ONNX graph: constants, computed here, and what depends on the model's input."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.errors import UnsupportedModelError
from privacy.untrusted_text import one_line, quoted

Array = NDArray[Any]
MAX_ELEMENTS = 1 << 26
"""Of a constant, and of a value of one input: far more than can be evaluated under encryption."""

_LONGEST_NAME = 60


@dataclass(frozen=True)
class Constant:
    """A constant of the graph.

    Attributes
    ----------
    array : ndarray
    other : ndarray
        The same in a batch of another size: not equal where it depends on that.
    """

    array: Array = field(repr=False)
    other: Array = field(repr=False)

    @property
    def depends_on_batch(self) -> bool:
        """Whether the size of a batch is in it."""
        if self.array is self.other:
            return False
        return self.array.shape != self.other.shape or bool((self.array != self.other).any())


@dataclass(frozen=True)
class Data:
    """What depends on the model's input.

    Attributes
    ----------
    index : int
        0 is the input, k the output of the k-th layer.
    shape : tuple of int
        Of one input, without the batch, which is the first axis.
    """

    index: int
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Number of axes, with the batch's."""
        return len(self.shape) + 1


Value = Constant | Data


@dataclass(frozen=True)
class Untaken:
    """An attribute of a kind that is never taken, such as a graph, or without a kind."""

    kind: str


def constant(array: Array) -> Constant:
    """A constant that no batch changes."""
    return Constant(array, array)


class Node:
    """An operator of the graph with its inputs; every attribute must be asked for.

    Parameters
    ----------
    proto : onnx.NodeProto
    inputs : sequence of Value or None
        None where an optional one is left out.
    opset : int
    attributes : mapping of str to Any
        Numbers, lists, bytes and arrays; :class:`Untaken` for what is none of these.

    Attributes
    ----------
    outputs : list of str
        Names of the values that it makes.
    """

    def __init__(
        self,
        proto: Any,
        inputs: Sequence[Value | None],
        opset: int,
        attributes: Mapping[str, Any],
    ) -> None:
        self.operator = str(proto.op_type)
        self.name = str(proto.name or proto.output[0])
        self.inputs, self.opset = list(inputs), opset
        self.outputs = [str(output) for output in proto.output if output]
        self._attributes, self._left = dict(attributes), set(attributes)

    def refused(self, reason: str) -> UnsupportedModelError:
        """The refusal of this operator."""
        operator = one_line(self.operator[:_LONGEST_NAME])
        return UnsupportedModelError(f"{operator} ({quoted(self.name)}) {reason}")

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute, of the default's kind; text comes as text, lists as lists of numbers."""
        self._left.discard(name)
        value = self._attributes.get(name, default)
        if isinstance(value, Untaken):
            raise self.refused(f"has an attribute {name} of a kind that is not taken, {value.kind}")
        if isinstance(value, bytes):
            value = value.decode(errors="replace")
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if default is not None and value is not default and not isinstance(value, type(default)):
            raise self.refused(f"has {name} = {quoted(value)}, which is of another kind")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refused(f"has {name} = {value}")
        return value

    def has(self, name: str) -> bool:
        """Whether the attribute is there."""
        return name in self._attributes

    def check_attributes(self) -> None:
        """Refuse attributes that nobody asked for."""
        if self._left:
            raise self.refused(f"has attributes that are not known: {quoted(sorted(self._left))}")

    def check_outputs(self, taken: int) -> None:
        """Refuse further outputs than are taken: some change what the first one is."""
        if len(self.outputs) > taken:
            raise self.refused(
                f"makes {len(self.outputs)} values, {quoted(self.outputs)}, of which "
                f"{taken} is taken; export the model without the others"
            )

    def given(self, place: int) -> Value | None:
        """An input, or None."""
        return self.inputs[place] if place < len(self.inputs) else None

    def value(self, place: int) -> Value:
        """An input that must be there."""
        value = self.given(place)
        if value is None:
            raise self.refused(f"has no input {place}")
        return value

    def data(self, place: int = 0) -> Data:
        """An input that depends on the model's."""
        value = self.value(place)
        if isinstance(value, Constant):
            raise self.refused(
                f"takes a constant for input {place}; a value that depends on the model's input "
                "belongs there"
            )
        return value

    def array(self, place: int, what: str) -> Array:
        """A constant input that no batch changes."""
        value = self.value(place)
        if isinstance(value, Data):
            raise self.refused(
                f"takes {what} that depend on the model's input; only constants are taken there"
            )
        if value.depends_on_batch:
            raise self.refused(f"takes {what} that depend on the number of inputs in a batch")
        return value.array

    def weights(self, place: int, what: str, *dimensions: int) -> Array:
        """Finite numbers in double precision."""
        array = self.array(place, what)
        if not bool(np.isfinite(array.astype(np.float64)).all()):
            raise self.refused(f"has {what} that are not finite; export other weights")
        if dimensions and array.ndim not in dimensions:
            raise self.refused(f"has {what} of shape {array.shape}")
        return np.array(array, dtype=np.float64)

    def axes(self, place: int, rank: int, since: int) -> list[int] | None:
        """Axes from an input, or from an attribute before an opset; None where there are none."""
        if self.opset < since:
            given = self.attribute("axes", None)
        else:
            value = self.given(place)
            given = None if value is None else self.array(place, "axes").reshape(-1).tolist()
        if given is None:
            return None
        if not isinstance(given, list):
            raise self.refused(f"has axes {quoted(given)}; a list belongs there")
        return [self.axis(axis, rank) for axis in given]

    def axis(self, axis: Any, rank: int) -> int:
        """An axis, counted from the front."""
        if not isinstance(axis, int) or not -rank <= axis < rank:
            raise self.refused(f"names axis {quoted(axis)} of {rank}")
        return axis % rank


def resolved_shape(node: Node, target: Sequence[int], given: Sequence[int]) -> list[int]:
    """The shape that a Reshape gives, of zeros and a -1 too."""
    keep_zeros = bool(node.attribute("allowzero", 0))
    target = [
        given[place] if size == 0 and not keep_zeros and place < len(given) else size
        for place, size in enumerate(target)
    ]
    total, rest = math.prod(given), math.prod(size for size in target if size != -1)
    if target.count(-1) == 1 and rest > 0:
        target = [total // rest if size == -1 else size for size in target]
    if min(target, default=1) < 0 or math.prod(target) != total:
        raise node.refused(f"makes shape {quoted(list(target))}, which does not fit its input")
    return target
