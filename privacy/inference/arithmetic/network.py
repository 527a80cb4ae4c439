"""A lowered network: affine maps with polynomials between them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Vector = NDArray[np.float64]


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

    def then(self, after: "Affine") -> "Affine":
        """``self`` and then ``after``, as one map."""
        if not self.name:
            return after  # large inputs make even an identity slow to multiply with
        return Affine(
            sparse.csr_array(after.matrix @ self.matrix),
            after.matrix @ self.bias + after.bias,
            sparse.csr_array((after.structure.astype(float) @ self.structure.astype(float)) > 0),
            " + ".join(name for name in (self.name, after.name) if name),
        )

    def scaled(self, *, after: float = 1.0, shift: float = 0.0) -> "Affine":
        """The map times ``after``, plus ``shift``."""
        name = self.name or "scaling"  # no identity any more
        return Affine(self.matrix * after, self.bias * after + shift, self.structure, name)

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
class Network:
    """Affine maps with one activation between each and the next.

    Attributes
    ----------
    affines : tuple of Affine
    activations : tuple of Activation, one fewer
    """

    affines: tuple[Affine, ...]
    activations: tuple[Activation, ...]

    def __call__(self, x: Vector) -> Vector:
        """Logits of inputs of shape (inputs, ...), in double precision."""
        for affine, activation in zip(self.affines, self.activations, strict=False):
            x = activation(affine(x))
        return self.affines[-1](x)
