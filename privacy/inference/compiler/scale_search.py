"""The primes and scales of a packing: the bits of a ring, spent so that the error is least."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference.arithmetic.network import Affine, Network
from privacy.inference.arithmetic.scales import LayerScales, Scales
from privacy.inference.ckks import MAX_MODULUS_BITS, MAX_PRIME_BITS
from privacy.inference.compiler.candidates import PackingCandidate
from privacy.inference.compiler.error_model import predicted_logit_error
from privacy.inference.compiler.ranges import Ranges
from privacy.inference.compiler.sensitivity import Sensitivity
from privacy.inference.rescaling import BOTH, FIRST, SUMMED

MIN_PRIME_BITS = 24
_MIN_SCALE_BITS = 16.0
_MIN_QUERY_BITS = 14.0
"""Of a query that meets encrypted weights, whose noise is larger."""
_MIN_WEIGHT_BITS = 8.0
MAX_WEIGHT_BITS = 44
"""Of weights, which have no more precision than a double's; of smaller ones, as much more."""
_BEYOND_VANISHING = 32.0
_EXACT_BITS = 51
"""Of a batch's weights, summed up in a row: a bit less than hold, for what rounding adds."""
_MIN_ROUNDED = 1.0
"""Root of the mean square of a layer's encoded weights, below which they may round to nothing."""
_IMPOSSIBLE = 1e30
_SPARE_BITS = (1, 3, 6, 12)
"""Bits above the largest logit that are tried for the error of the worst input."""
_PRIME_SLACK = 0.01
"""SEAL's primes of b bits are above 2^(b - 0.01)."""
_PRIME_STEPS = (-4, -2, -1, 1, 2, 4)
_WEIGHT_STEPS = (-4, -2, -1, -0.25, 0.25, 1, 2, 4)
_MANY = 14
"""Coordinates of a point, up to which its neighbours by two moves are looked at from the start."""
_GAIN = 1e-6
"""Share of the error by which a move must be better."""
_TIE = 1e-9


@dataclass(frozen=True)
class Choice:
    """A packing with its scales; the error of typical inputs, and of the worst one."""

    candidate: PackingCandidate
    scales: Scales
    error: float
    worst_error: float


def logit_bits(bounds: Ranges) -> int:
    """B ≥ 0 such that every |logit| < 2^B over the declared range."""
    return math.floor(math.log2(max(float(bounds.logits.magnitude.max()), 0.5))) + 1


def vanishing_bits(candidate: PackingCandidate, network: Network) -> list[list[float]]:
    """Bits of the scale of each layer's weights, on each source, below which they may vanish.

    Biases alone can be within tolerance.
    """
    degree, result = candidate.degree, []
    for layer in network.layers:
        here = []
        for affine in layer.affines:
            norm = math.sqrt(float((affine.matrix.data**2).sum()))
            if candidate.batch:
                # An integer each; the largest is at least the root of their mean square.
                rounded = norm / math.sqrt(max(1, affine.matrix.nnz))
            else:
                # By Parseval; the last layer's values are spread over coefficients on purpose.
                last = layer is network.layers[-1]
                spread = degree / 2 / math.sqrt(candidate.copies) if last else 1.0
                rounded = norm * spread * math.sqrt(2) / degree
            here.append(math.log2(_MIN_ROUNDED / rounded) if rounded > 0 else math.inf)
        result.append(here)
    return result


def exact_bits(affine: Affine) -> float:
    """Bits of the scale up to which a batch's products with integer weights are exact.

    They are made of doubles, whose sums must stay below 2^53 (``ckks.modular``).
    """
    largest = float(abs(affine.matrix).sum(axis=1).max())
    return _EXACT_BITS - math.log2(largest) if largest > 0 else math.inf


def choose_scales(
    candidate: PackingCandidate, network: Network, bounds: Ranges, gains: Sensitivity
) -> Choice | None:
    """The best scales for a packing, with room in the answer for the worst input's error."""
    logits = logit_bits(bounds)
    taken = -1
    for spare in _SPARE_BITS:
        if spare <= taken:
            continue  # fewer bits of scale do not make the worst error smaller
        scales = _Descent(candidate, network, gains, logits + spare, vanish=False).best()
        # A model before training may have next to no weights.
        scales = scales or _Descent(candidate, network, gains, logits + spare, vanish=True).best()
        if scales is None:
            return None
        layers = tuple(scales.follow(network.layers))
        typical = predicted_logit_error(candidate, scales, layers, gains.typical)
        worst = predicted_logit_error(candidate, scales, layers, gains.worst)
        if not worst < 2.0 ** (logits + _SPARE_BITS[-1]):
            return None
        taken = math.ceil(math.log2(worst)) - logits
        if 2.0**logits + 2.0 ** (logits + taken) <= 2.0 ** (logits + spare - _PRIME_SLACK):
            return Choice(candidate, scales, typical, worst)
    return None


@dataclass(frozen=True)
class _Descent:
    """A search for the point of least error, from an even start.

    A point holds the bits of every prime, of the input's scale, and of the weights' scales. All
    moves of one or two coordinates are looked at together, as arrays, and the best is made.
    ``reserved`` bits of the answer's modulus are for the size of a logit and its error. ``vanish``
    allows scales at which weights may round to nothing.
    """

    candidate: PackingCandidate
    network: Network
    gains: Sensitivity
    reserved: int
    vanish: bool

    @cached_property
    def _weights(self) -> list[list[tuple[float, float]]]:
        """Bits of the scale of each layer's weights on each source: at least, and at most."""
        limits = []
        for layer, here in zip(
            self.network.layers, vanishing_bits(self.candidate, self.network), strict=True
        ):
            # The last layer's weights are spread over all copies of a value, and larger by as much.
            few = _MIN_WEIGHT_BITS if layer.activation is not None else 0.0
            limits.append(
                [
                    (max(few, bits), max(MAX_WEIGHT_BITS, bits + _BEYOND_VANISHING))
                    if not self.vanish and bits < math.inf
                    else (few, MAX_WEIGHT_BITS)
                    for bits in here
                ]
            )
        if not self.candidate.batch:
            return limits
        return [
            [
                (few, min(most, exact_bits(affine)))
                for (few, most), affine in zip(here, layer.affines, strict=True)
            ]
            for here, layer in zip(limits, self.network.layers, strict=True)
        ]

    def best(self) -> Scales | None:
        """The scales at the best point; None if none is possible."""
        levels, budget = self.candidate.levels, MAX_MODULUS_BITS[self.candidate.degree]
        if (levels + 1) * MIN_PRIME_BITS > budget:
            return None
        even = min(MAX_PRIME_BITS, budget // (levels + 1))
        start, weights = self._even(even)
        point = np.array([*[even] * (levels + 1), start, *weights], dtype=np.float64)
        # Pairs of moves are many where coordinates are: single ones go ahead then.
        for moves in (self._single(), self._pairs())[0 if len(point) > _MANY else 1 :]:
            point, best = self._descended(point, moves)
        return self._chosen(point) if best < _IMPOSSIBLE else None

    def _even(self, prime: int) -> tuple[int, list[int]]:
        """Bits of the input's scale and of the weights', for primes of equal length.

        Every activation then returns to about the scale it started from: its degree d takes (d - 1)
        primes off d times the scale of its input, a square that is rescaled before none off twice.
        """
        ways = self.candidate.rescales
        if all(way == BOTH for way in ways):
            return prime - 2, [prime] * len(ways)
        if all(way in (FIRST, SUMMED) for way in ways):
            start = round(0.8 * prime)
            return start, [prime - start // 2] * len(ways)
        weights = dict.fromkeys((FIRST, SUMMED, BOTH), prime)
        return prime // 2, [
            weights.get(way, round(prime * (0.5 - 0.5 / power)))
            for power, way in zip(self.candidate.degrees, ways, strict=True)
        ]

    def _descended(
        self, point: NDArray[np.float64], moves: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], float]:
        """The point from which no move makes the error smaller, and the error there."""
        best = math.inf
        while True:
            trials = point + moves
            # An array to each coordinate: arithmetic is then on what lies side by side.
            errors = self._errors(list(np.ascontiguousarray(trials.T)))
            # Of equal ones the first, also where a processor rounds otherwise than another.
            chosen = int((errors <= errors.min() * (1 + _TIE)).argmax())
            if not errors[chosen] < best * (1 - _GAIN):
                return point, best
            point, best = trials[chosen], float(errors[chosen])

    def _single(self) -> NDArray[np.float64]:
        """No move, and every one of one coordinate, shape (moves, coordinates)."""
        integers, weights = self.candidate.levels + 2, len(self.candidate.degrees)
        rows = np.eye(integers + weights)
        moves = [
            by * row
            for index, row in enumerate(rows)
            for by in (_PRIME_STEPS if index < integers else _WEIGHT_STEPS)
        ]
        return np.array([np.zeros(len(rows)), *moves])

    def _pairs(self) -> NDArray[np.float64]:
        """The same, and every move of two coordinates."""
        moves = self._single()
        one, two = np.triu_indices(len(moves) - 1, 1)
        apart = ~((moves[one + 1] != 0) & (moves[two + 1] != 0)).any(axis=1)
        return np.vstack([moves, moves[one[apart] + 1] + moves[two[apart] + 1]])

    def _scales(self, point: Sequence[Any]) -> Scales:
        levels = self.candidate.levels
        primes = tuple(point[: levels + 1])
        # One bit of the modulus is for the sign.
        answer = sum(primes[: self.candidate.answer_level]) - 1.0 - self.reserved
        weights = tuple(point[levels + 2 :])
        return Scales(primes, point[levels + 1], weights, answer, self.candidate.rescales)

    def _chosen(self, point: NDArray[np.float64]) -> Scales:
        """The scales of one point, whose bits but the weights' are whole."""
        scales = self._scales(point.tolist())
        primes = tuple(map(int, scales.primes))
        return replace(scales, primes=primes, inputs=int(scales.inputs), answer=int(scales.answer))

    def _errors(self, points: Sequence[Any]) -> NDArray[np.float64]:
        """The predicted errors; where bits are missing, more than any, and the more of them."""
        scales = self._scales(points)
        # Scales may lie beyond what doubles hold.
        with np.errstate(all="ignore"):
            layers = tuple(scales.follow(self.network.layers))
            missing = self._missing_bits(scales, layers)
            errors: Any = predicted_logit_error(self.candidate, scales, layers, self.gains.typical)
            errors = np.where(missing > 0, _IMPOSSIBLE * (1 + missing), errors)
        return np.asarray(np.nan_to_num(errors, nan=np.inf, posinf=np.inf))

    def _missing_bits(self, scales: Scales, layers: Sequence[LayerScales]) -> Any:
        """By how many bits scales are too small to hold a value, or too large for their modulus."""
        missing = np.maximum(0.0, sum(scales.primes) - MAX_MODULUS_BITS[self.candidate.degree])
        for prime in scales.primes:
            missing = missing + _beyond(prime, MIN_PRIME_BITS, MAX_PRIME_BITS)
        for index, (layer, limits) in enumerate(zip(layers, self._weights, strict=True)):
            room = sum(scales.primes[: layer.level]) - 2.0
            copied = not self.candidate.layers[index].degree and layer is not layers[-1]
            reads_query = self.candidate.layers[index].ciphertexts > 0
            encrypted = reads_query and self.candidate.encrypted
            least_input = _MIN_QUERY_BITS if encrypted else _MIN_SCALE_BITS
            for scale, weight, (least, most) in zip(
                layer.inputs, layer.weights, limits, strict=True
            ):
                inputs = np.log2(scale)
                missing = missing + _beyond(inputs, least_input, room)
                if not copied:
                    top = np.minimum(most, room - inputs)
                    missing = missing + _beyond(np.log2(weight), least, top)
            for narrowing in layer.narrowings:
                room = sum(scales.primes[: narrowing.level]) - 2.0
                for scale in (narrowing.after, narrowing.before):
                    missing = missing + _beyond(np.log2(scale), _MIN_SCALE_BITS, room)
            for constant in layer.constants:
                missing = missing + _beyond(np.log2(constant), _MIN_SCALE_BITS, math.inf)
        return missing


def _beyond(bits: Any, least: Any, most: Any) -> Any:
    """By how much bits are too few or too many."""
    return np.maximum(0.0, np.maximum(least - bits, bits - most))
