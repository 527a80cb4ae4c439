"""A lowered network: affine maps of earlier values, with polynomials after them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Vector = NDArray[np.float64]
_FAR = 0.75
"""Share of its mean square that the square of a value's mean has, from which on it is centred."""


@dataclass(frozen=True)
class Affine:
    """y = A·x + b.

    Attributes
    ----------
    matrix : scipy.sparse.csr_array, shape (outputs, inputs)
    bias : ndarray, shape (outputs,)
    structure : scipy.sparse.csr_array of bool, shape (outputs, inputs)
        Where the architecture allows a weight.
    name : str
        The layers it came from; empty for an identity.
    """

    matrix: sparse.csr_array
    bias: Vector
    structure: sparse.csr_array
    name: str

    @classmethod
    def identity(cls, size: int) -> "Affine":
        """The map that changes nothing."""
        eye = sparse.csr_array(sparse.identity(size, format="csr"))
        return cls(eye, np.zeros(size), sparse.csr_array(eye != 0), "")

    @property
    def inputs(self) -> int:
        """Number of inputs."""
        return int(self.matrix.shape[1])

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return int(self.matrix.shape[0])

    @property
    def terms(self) -> int:
        """The largest number of inputs that the architecture lets an output read."""
        return int(np.diff(self.structure.indptr).max(initial=0))

    def __call__(self, x: Vector) -> Vector:
        """The map of inputs of shape (inputs, ...)."""
        return np.asarray(self.matrix @ x + self.bias.reshape(-1, *[1] * (x.ndim - 1)))

    def supports(self) -> dict[tuple[int, ...], list[int]]:
        """Outputs by the inputs that the architecture lets them read."""
        rows: dict[tuple[int, ...], list[int]] = {}
        for row in range(self.outputs):
            part = slice(self.structure.indptr[row], self.structure.indptr[row + 1])
            inputs = tuple(np.sort(self.structure.indices[part]).tolist())
            rows.setdefault(inputs, []).append(row)
        return rows


@dataclass(frozen=True)
class Activation:
    """A polynomial of degree 2 to 7 on every element: c₀ + c₁x + ... .

    In a :class:`Network` it is monic and depressed: c₀ = c_(d-1) = 0 and c_d = 1.
    """

    coefficients: tuple[float, ...]
    name: str

    @property
    def degree(self) -> int:
        """Its degree."""
        return len(self.coefficients) - 1

    def __call__(self, x: Vector) -> Vector:
        """Evaluate on every element."""
        return np.asarray(np.polynomial.polynomial.polyval(x, self.coefficients), dtype=np.float64)


@dataclass(frozen=True)
class Layer:
    """The sum of affine maps of one or several earlier values, and the polynomial after it.

    Attributes
    ----------
    sources : tuple of int
        Which values it reads: 0 is the input, k the value of layer k - 1.
    affines : tuple of Affine
        One of each source.
    activation : Activation or None
        None of the last layer, and of one that hands on elements of the input as they are.
    centre : float
        What is subtracted from the polynomial's values; the maps that read them add it again.
    """

    sources: tuple[int, ...]
    affines: tuple[Affine, ...]
    activation: Activation | None
    centre: float = 0.0

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.affines[0].outputs

    @property
    def bias(self) -> Vector:
        """Of all its maps."""
        return np.asarray(sum(affine.bias for affine in self.affines))

    @property
    def name(self) -> str:
        """The layers it came from."""
        names = dict.fromkeys(affine.name for affine in self.affines if affine.name)
        return " and ".join(names) or "scaling"

    @property
    def reads_input(self) -> bool:
        """Whether it reads the input alone."""
        return self.sources == (0,)

    def before(self, values: Sequence[Vector]) -> Vector:
        """The sum of its maps, of values by source."""
        maps = zip(self.sources, self.affines, strict=True)
        return np.asarray(sum(affine(values[source]) for source, affine in maps))

    def after(self, z: Vector) -> Vector:
        """The value of the layer, of the sum of its maps."""
        return z if self.activation is None else self.activation(z) - self.centre

    def with_bias(self, bias: Vector) -> "Layer":
        """The same maps, with another bias."""
        first, *others = self.affines
        rest = (replace(affine, bias=np.zeros(self.outputs)) for affine in others)
        return replace(self, affines=(replace(first, bias=bias), *rest))


@dataclass(frozen=True)
class Network:
    """Layers in the order in which they are evaluated; the last one has the logits.

    Its values are a directed acyclic graph: a residual connection is a layer that reads two
    values, and a value with more elements than a ciphertext has slots is several.
    """

    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> int:
        """Number of elements of an input."""
        return next(layer.affines[0].inputs for layer in self.layers if layer.sources[0] == 0)

    @property
    def outputs(self) -> int:
        """Number of logits."""
        return self.layers[-1].outputs

    @property
    def activations(self) -> tuple[Activation, ...]:
        """The polynomials, in order."""
        return tuple(layer.activation for layer in self.layers if layer.activation is not None)

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """By source, the layers that read it."""
        numbered = list(enumerate(self.layers))
        return tuple(
            tuple(index for index, layer in numbered if source in layer.sources)
            for source in range(len(numbered))
        )

    def narrows(self, index: int) -> bool:
        """Whether one layer alone reads a layer, and nothing else, and has fewer outputs."""
        users = self.users[index + 1]
        user = self.layers[users[0]]
        alone = len(users) == 1 and len(user.sources) == 1
        return alone and user.outputs < self.layers[index].outputs

    def __call__(self, x: Vector) -> Vector:
        """Logits of inputs of shape (inputs, ...), in double precision."""
        values = [x]
        for layer in self.layers:
            values.append(layer.after(layer.before(values)))
        return values[-1]

    def raised(self, constants: Sequence[float]) -> "Network":
        """The same for values that are more than they were by a constant, one of each source."""
        return Network(
            tuple(
                layer.with_bias(
                    layer.bias
                    - sum(
                        affine.matrix @ np.full(affine.inputs, constants[source])
                        for source, affine in zip(layer.sources, layer.affines, strict=True)
                    )
                )
                for layer in self.layers
            )
        )

    def centred(self, samples: Vector) -> "Network":
        """The same with values around zero where they lie far from it, at inputs (inputs, ...).

        The rounding of weights meets what they multiply: a constant in that is noise for nothing.
        """
        values, shifts = [samples], [0.0]
        for layer in self.layers:
            value = layer.after(layer.before(values))
            values.append(value)
            mean, square = float(value.mean()), float((value**2).mean())
            far = layer.activation is not None and mean**2 > _FAR * square
            shifts.append(-mean if far and np.isfinite(square) else 0.0)
        if not any(shifts):
            return self
        raised = self.raised(shifts)
        return Network(
            tuple(
                replace(layer, centre=layer.centre - shift)
                for layer, shift in zip(raised.layers, shifts[1:], strict=True)
            )
        )
