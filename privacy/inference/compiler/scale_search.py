"""The primes and scales of a packing: the bits of a ring, spent so that the error is least."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

from privacy.inference.arithmetic.network import Network
from privacy.inference.arithmetic.scales import LayerScales, Scales
from privacy.inference.ckks import MAX_MODULUS_BITS, MAX_PRIME_BITS
from privacy.inference.compiler.candidates import PackingCandidate
from privacy.inference.compiler.error_model import predicted_logit_error
from privacy.inference.compiler.ranges import Ranges
from privacy.inference.compiler.sensitivity import Sensitivity

MIN_PRIME_BITS = 24
_MIN_SCALE_BITS = 16.0
_MIN_WEIGHT_BITS = 8.0
_IMPOSSIBLE = 1e30
_BEYOND = 1100.0
_SPARE_BITS = (1, 3, 6, 12)
"""Bits above the largest logit that are tried for the error of the worst input."""
_PRIME_SLACK = 0.01
"""SEAL's primes of b bits are above 2^(b - 0.01)."""
_Point = tuple[float, ...]
"""Bits of every prime, of the input's scale and of the weights' scales."""


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


def choose_scales(
    candidate: PackingCandidate, network: Network, bounds: Ranges, gains: Sensitivity
) -> Choice | None:
    """The best scales for a packing, with room in the answer for the worst input's error."""
    logits = logit_bits(bounds)
    taken = -1
    for spare in _SPARE_BITS:
        if spare <= taken:
            continue  # fewer bits of scale do not make the worst error smaller
        scales = _Descent(candidate, network, gains, logits + spare).best()
        if scales is None:
            return None
        layers = tuple(scales.follow(network.activations))
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

    ``reserved`` bits of the last prime are for the size of a logit and its error.
    """

    candidate: PackingCandidate
    network: Network
    gains: Sensitivity
    reserved: int

    def best(self) -> Scales | None:
        """The scales at the best point; None if none is possible."""
        levels, budget = self.candidate.levels, MAX_MODULUS_BITS[self.candidate.degree]
        if (levels + 1) * MIN_PRIME_BITS > budget:
            return None
        even = min(MAX_PRIME_BITS, budget // (levels + 1))
        # From here every activation returns to the scale it started from: its degree d takes
        # (d - 1) primes off d times the scale of its input.
        weights = [round(even * (0.5 - 0.5 / power)) for power in self.candidate.degrees]
        point: _Point = (*[even] * (levels + 1), even // 2, *weights)
        best = self._error(point, math.inf)
        whole = (-4, -2, -1, 1, 2, 4)
        moves: list[tuple[int, float]] = [(i, by) for i in range(levels + 2) for by in whole]
        for index in range(levels + 2, len(point)):
            moves += [(index, by) for by in (-4, -2, -1, -0.25, 0.25, 1, 2, 4)]
        groups = [(one,) for one in moves] + [
            (one, two) for one in moves for two in moves if one[0] < two[0]
        ]
        # Until none of them, one after the other, has led any further.
        untried = len(groups)
        for group in cycle(groups):
            trial = list(point)
            for index, by in group:
                trial[index] += by
            error = self._error(tuple(trial), best)
            untried -= 1
            if error < best * (1 - 1e-6):
                point, best, untried = tuple(trial), error, len(groups)
            if untried == 0:
                break
        return self._scales(point) if best < _IMPOSSIBLE else None

    def _scales(self, point: _Point) -> Scales:
        levels = self.candidate.levels
        primes = tuple(int(bits) for bits in point[: levels + 1])
        answer = primes[0] - 1 - self.reserved  # one bit of the last prime is for the sign
        rescales = self.candidate.rescales
        return Scales(primes, int(point[levels + 1]), point[levels + 2 :], answer, rescales)

    def _error(self, point: _Point, bar: float) -> float:
        """The predicted error; where bits are missing, more than any, and the more of them."""
        levels = self.candidate.levels
        missing = _missing_primes(point[: levels + 1], MAX_MODULUS_BITS[self.candidate.degree])
        possible = bar < _IMPOSSIBLE  # then only whether bits are missing counts
        if missing > 0 and possible:
            return _IMPOSSIBLE
        scales = self._scales(point)
        layers: list[LayerScales] = []
        try:
            for lacking in self._missing_bits(scales, layers):
                missing += lacking
                if missing > 0 and possible:
                    return _IMPOSSIBLE
            if missing > 0:
                return _IMPOSSIBLE * (1 + missing)
            return predicted_logit_error(self.candidate, scales, layers, self.gains.typical)
        except ArithmeticError:
            return math.inf  # scales beyond what doubles hold

    def _missing_bits(self, scales: Scales, layers: list[LayerScales]) -> Iterator[float]:
        """By how many bits scales are too small to hold a value, or too large for their modulus.

        Layer by layer, each of which is appended to ``layers``.
        """
        activations = self.network.activations
        for layer in scales.follow(activations):
            last = len(layers) == len(activations)
            layers.append(layer)
            inputs, weights = _bits(layer.inputs), _bits(layer.weights)
            room = sum(scales.primes[: layer.level]) - 2.0
            yield max(0.0, _MIN_SCALE_BITS - inputs, inputs - room)
            # The last layer's weights are spread over all copies of a value, and larger by as much.
            yield max(0.0, (0.0 if last else _MIN_WEIGHT_BITS) - weights, weights - room + inputs)
            for narrowing in layer.narrowings:
                room = sum(scales.primes[: narrowing.level]) - 2.0
                for scale in (narrowing.after, narrowing.before):
                    bits = _bits(scale)
                    yield max(0.0, _MIN_SCALE_BITS - bits, bits - room)
            for constant in layer.constants:
                yield max(0.0, _MIN_SCALE_BITS - _bits(constant))


def _missing_primes(primes: Sequence[float], budget: int) -> float:
    """By how many bits primes are too large or too small."""
    missing = max(0, sum(primes) - budget)
    return missing + sum(max(0, p - MAX_PRIME_BITS, MIN_PRIME_BITS - p) for p in primes)


def _bits(scale: float) -> float:
    """Its logarithm; far out where it is none that doubles hold."""
    if 0 < scale < math.inf:
        return math.log2(scale)
    return -_BEYOND if scale == 0 else _BEYOND
