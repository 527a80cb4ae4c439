"""How noise at each place of a network reaches the logits, to first order.

Errors of CKKS are independent, small and about Gaussian in every slot, so the variance of a logit
is the sum over places of (variance there) x (squared derivatives of the logit). The derivatives are
taken at typical inputs, and once more at the bounds of interval arithmetic, where they hold for
every input. Values and derivatives can peak at the same elements, so that what a weight's rounding
does is summed up weight by weight. Equal weights can be rounded alike: their errors add up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from privacy.inference.arithmetic.network import Network, Vector
from privacy.inference.arithmetic.polynomials import constant_left_over, evaluate
from privacy.inference.compiler.ranges import Ranges
from privacy.inference.compiler.rounded_weights import RoundedWeights

_EVEN = 16
_PATTERNS = 4
_CELLS = (2, 3, 5, 8)
"""Along each side of a pattern."""


@dataclass(frozen=True)
class _Differentiated:
    """A value, and its derivatives by each source of noise, elementwise."""

    value: Vector
    by: dict[str, Vector]


@dataclass
class _DerivativeAlgebra:
    """Follows derivatives by the activation's input, its narrowings and its constants.

    With ``absolute``, values are bounds of magnitudes and constants count by their size, so that
    the derivatives are bounds too.
    """

    absolute: bool
    narrowed: int = 0
    multiplied: int = 0

    def start(self, value: Vector) -> _Differentiated:
        return _Differentiated(value, {"y": np.ones_like(value)})

    def _constant(self, constant: float) -> float:
        return abs(constant) if self.absolute else constant

    def product(self, one: _Differentiated, other: _Differentiated) -> _Differentiated:
        by = {
            key: one.by.get(key, 0.0) * other.value + other.by.get(key, 0.0) * one.value
            for key in one.by | other.by
        }
        return _Differentiated(one.value * other.value, by)

    def narrow(self, value: _Differentiated) -> _Differentiated:
        name = f"narrowing {self.narrowed}"
        self.narrowed += 1
        return _Differentiated(value.value, {**value.by, name: np.ones_like(value.value)})

    def relinearise(self, value: _Differentiated) -> _Differentiated:
        return value

    def plus(self, value: _Differentiated, constant: float) -> _Differentiated:
        return _Differentiated(value.value + self._constant(constant), value.by)

    def times(
        self, value: _Differentiated, constant: float, *, meet: _Differentiated
    ) -> _Differentiated:
        by = {key: part * self._constant(constant) for key, part in value.by.items()}
        by[f"constant {self.multiplied}"] = value.value
        self.multiplied += 1
        return _Differentiated(value.value * self._constant(constant), by)

    def times_for(
        self,
        value: _Differentiated,
        constant: float,
        *,
        partner: _Differentiated,
        meet: _Differentiated,
    ) -> _Differentiated:
        return self.narrow(self.times(value, constant, meet=meet))

    def add(self, one: _Differentiated, other: _Differentiated) -> _Differentiated:
        zero = np.zeros_like(one.value)
        by = {k: one.by.get(k, zero) + other.by.get(k, zero) for k in one.by | other.by}
        return _Differentiated(one.value + other.value, by)


@dataclass(frozen=True)
class Stage:
    """One layer and the activation after it; each gain is the largest over the logits.

    Attributes
    ----------
    energies : tuple of float
        Mean of x² over each of its sources.
    inputs : tuple of float
        Of each source, gain of a unit variance on each term of its sums, weighted: ΣA².
    products : tuple of float
        Of each source, gain of a unit variance on each of its weights, where equal ones of one
        output, or of a batch's whole layer, have one error.
    gaps : tuple of float
        Of each source, gain of a unit variance on as many places without weight as outputs have
        fewer weights than ``widest``, and energy 1 there.
    elsewhere : tuple of float
        Of each source, x² at places without weight.
    widest : tuple of float
        Of each source, the largest number of inputs that an output may read.
    outputs : float
        Gain of a unit variance on each of its outputs.
    narrowings : tuple of float
        Gains of a unit variance at each rescaling of the activation, in order.
    constants : tuple of float
        Squared effect of a unit error of each constant that multiplies in the activation.
    """

    energies: tuple[float, ...]
    inputs: tuple[float, ...]
    products: tuple[float, ...]
    gaps: tuple[float, ...]
    elsewhere: tuple[float, ...]
    widest: tuple[float, ...]
    outputs: float
    narrowings: tuple[float, ...]
    constants: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Gains by layer: the largest of typical inputs, and for the worst in the range."""

    typical: tuple[Stage, ...]
    worst: tuple[Stage, ...]


def drawn_inputs(bounds: Ranges, input_shape: Sequence[int]) -> Vector:
    """Inputs drawn from the range, shape (samples, inputs), where no sample is given.

    Half are noise, drawn evenly. Layers that average their inputs, as filters of images do, hardly
    respond to noise; the other half are patterns of blocks, coarse and fine, each block at one
    end of the range.
    """
    # A fixed seed: the same model must compile alike everywhere, and no secret depends on it.
    generator = np.random.default_rng(0)
    low, high = bounds.inputs.low, bounds.inputs.high
    drawn = [generator.uniform(low, high, (_EVEN, len(low)))]
    sizes = tuple(input_shape)
    before, across = (sizes[:-2], sizes[-2:]) if len(sizes) > 1 else ((), sizes)
    for cells in _CELLS:
        grid = (_PATTERNS, *before, *(min(cells, size) for size in across))
        pattern = generator.random(grid) < 0.5
        for axis, size in enumerate(across, start=1 + len(before)):
            pattern = pattern.take(np.arange(size) * pattern.shape[axis] // size, axis=axis)
        drawn.append(np.where(pattern.reshape(_PATTERNS, -1), high, low))
    return np.vstack(drawn)


def sensitivity(network: Network, bounds: Ranges, samples: Vector, *, batch: bool) -> Sensitivity:
    """Gains of every stage of ``network``, the largest at typical inputs (samples, inputs).

    Those of a ``batch`` are of weights that are integers, each rounded by itself.
    """
    alike = [
        [RoundedWeights.of(each, batch=batch) for each in layer.affines] for layer in network.layers
    ]
    stages = zip(*(_at_sample(network, x, alike) for x in samples), strict=True)
    typical = tuple(_largest(stage) for stage in stages)
    return Sensitivity(typical, _at_bounds(network, bounds, alike))


def _largest(stages: Sequence[Stage]) -> Stage:
    """Each gain at the input where it is largest, so that none of the inputs has a larger error."""

    def most(gains: tuple[Any, ...]) -> Any:
        if isinstance(gains[0], tuple):
            return tuple(map(max, zip(*gains, strict=True)))
        return max(gains)

    return Stage(*map(most, zip(*(vars(stage).values() for stage in stages), strict=True)))


def _at_sample(network: Network, x: Vector, alike: list[list[RoundedWeights]]) -> tuple[Stage, ...]:
    values, multiplied = [x], [x]
    activated: list[_Differentiated | None] = []
    for layer in network.layers:
        z = layer.before(values)
        if layer.activation is None:
            activated.append(None)
            values.append(z)
            multiplied.append(z)
        else:
            algebra = _DerivativeAlgebra(absolute=False)
            activated.append(evaluate(algebra, layer.activation, algebra.start(z)))
            values.append(layer.after(z))
            # The next weights multiply the constant left over too.
            multiplied.append(values[-1] + constant_left_over(layer.activation))
    return _backwards(network, multiplied, activated, alike, absolute=False)


def _at_bounds(
    network: Network, bounds: Ranges, alike: list[list[RoundedWeights]]
) -> tuple[Stage, ...]:
    multiplied = [bounds.inputs.magnitude]
    activated: list[_Differentiated | None] = []
    for layer, before, after in zip(network.layers, bounds.before, bounds.after, strict=True):
        if layer.activation is None:
            activated.append(None)
            multiplied.append(after.magnitude)
        else:
            algebra = _DerivativeAlgebra(absolute=True)
            start = algebra.start(before.magnitude)
            activated.append(evaluate(algebra, layer.activation, start))
            multiplied.append(after.magnitude + abs(constant_left_over(layer.activation)))
    return _backwards(network, multiplied, activated, alike, absolute=True)


def _backwards(
    network: Network,
    values: list[Vector],
    activated: list[_Differentiated | None],
    alike: list[list[RoundedWeights]],
    *,
    absolute: bool,
) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    # By source, the derivatives of the logits by its elements, shape (elements, logits).
    after: dict[int, Vector] = {len(network.layers): np.eye(network.outputs)}
    for index in range(len(network.layers) - 1, -1, -1):
        layer, effect, made = network.layers[index], after.pop(index + 1), activated[index]
        by = {} if made is None else made.by
        effects = [effect * by[name][:, None] for name in _numbered("narrowing", by)]
        narrowings = tuple(float((each**2).sum(axis=0).max()) for each in effects)
        constants = tuple(
            float(((effect * by[name][:, None]).sum(axis=0) ** 2).max())
            for name in _numbered("constant", by)
        )
        if made is not None:
            effect = effect * by["y"][:, None]
        gains = effect**2
        energies, inputs, products, gaps, elsewhere = [], [], [], [], []
        for source, affine, weights in zip(layer.sources, layer.affines, alike[index], strict=True):
            products.append(weights.gain(values[source], effect, absolute=absolute))
            gaps.append(weights.gaps(effect))
            # What is gathered from the input has nothing where there is no weight.
            elsewhere.append(weights.elsewhere(values[source], absolute=absolute and source > 0))
            squares = affine.matrix.multiply(affine.matrix).sum(axis=1)
            energies.append(float(np.mean(values[source] ** 2)))
            inputs.append(float((np.asarray(squares).ravel() @ gains).max()))
            if source:
                matrix = abs(affine.matrix) if absolute else affine.matrix
                before = np.asarray(matrix.T @ effect)
                after[source] = after[source] + before if source in after else before
        outputs = float(gains.sum(axis=0).max())
        stages.append(
            Stage(
                tuple(energies),
                tuple(inputs),
                tuple(products),
                tuple(gaps),
                tuple(elsewhere),
                tuple(float(affine.terms) for affine in layer.affines),
                outputs,
                narrowings,
                constants,
            )
        )
    return tuple(reversed(stages))


def _numbered(kind: str, by: dict[str, Vector]) -> list[str]:
    return [f"{kind} {index}" for index in range(sum(name.startswith(kind) for name in by))]
