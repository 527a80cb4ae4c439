"""What the rounding of weights does to the logits: those that are rounded alike count together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.network import Affine, Vector


@dataclass(frozen=True)
class RoundedWeights:
    """The weights of a map, and which are rounded alike.

    Of a batch those of the same size are, wherever they are. In slots a weight's error is that of
    its whole plaintext: those of one output are rounded alike where the plaintexts are equal.

    Attributes
    ----------
    rows, columns : ndarray of int, shape (weights,)
    groupings : tuple of (ndarray of int, ndarray), each of shape (weights,)
        The class of each weight and its sign, by each way to lay weights out; none where all
        weights are different.
    """

    affine: Affine
    batch: bool
    rows: NDArray[np.intp]
    columns: NDArray[np.intp]
    groupings: tuple[tuple[NDArray[np.intp], Vector], ...]

    @classmethod
    def of(cls, affine: Affine, *, batch: bool) -> "RoundedWeights":
        """Compare the weights of a map."""
        entries = affine.matrix.tocoo()
        used = np.flatnonzero(entries.data)
        used = used[np.argsort(entries.row[used], kind="stable")]
        rows, columns, data = entries.row[used], entries.col[used], entries.data[used]
        if batch:
            sizes, classes = np.unique(abs(data), return_inverse=True)
            grouped = ((classes, np.sign(data)),) if len(sizes) < len(data) else ()
            return cls(affine, batch, rows, columns, grouped)
        # Plaintexts by input, and by place among the inputs that an output reads. Equal ones have
        # equal products with a random vector.
        place = np.arange(len(rows)) - np.searchsorted(rows, rows)
        vector = np.random.default_rng(0).normal(size=affine.outputs)
        groupings = []
        for by in (columns, place):
            plaintexts, keys = np.unique(by, return_inverse=True)
            product = np.bincount(keys, data * vector[rows])
            sizes, alike = np.unique(abs(product), return_inverse=True)
            if len(sizes) < len(plaintexts):
                pairs = alike[keys] * affine.outputs + rows
                classes = np.unique(pairs, return_inverse=True)[1]
                groupings.append((classes, np.sign(product)[keys]))
        return cls(affine, batch, rows, columns, tuple(groupings))

    def gain(self, value: Vector, effect: Vector, *, absolute: bool) -> float:
        """Of a unit variance on each weight, the largest over the logits.

        ``value`` has shape (inputs,), ``effect`` (outputs, logits).
        """
        gain = float((self._by_output(value**2) @ effect**2).max())
        for classes, signs in self.groupings:
            read = value[self.columns] * (1.0 if absolute else signs)
            for each in effect.T:
                derivative = abs(each) if absolute else each
                summed = np.bincount(classes, read * derivative[self.rows])
                gain = max(gain, float((summed**2).sum()))
        return gain

    def _by_output(self, squares: Vector) -> Vector:
        return np.asarray(
            np.bincount(self.rows, squares[self.columns], self.affine.outputs), dtype=np.float64
        )

    def gaps(self, effect: Vector) -> float:
        """Gain of a unit variance on each place without weight up to the widest output's number."""
        missing = self.affine.terms - np.bincount(self.rows, minlength=self.affine.outputs)
        return float((np.maximum(missing, 0) @ effect**2).max())

    def elsewhere(self, value: Vector, *, absolute: bool) -> float:
        """x² at a place without weight: the mean, or the largest that not all outputs read."""
        if self.batch:
            return 0.0  # a weight of 0 is exact
        if absolute:
            read = np.bincount(self.columns, minlength=self.affine.inputs)
            uneven = value[read < self.affine.outputs]
            if len(uneven):
                return float((uneven**2).max())
        return float(np.mean(value**2))
