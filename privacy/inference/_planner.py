"""Choosing the ring, the primes, the scales and the packing.

Two things are known before a key is made. *Overflow*: every step of the evaluation is exact
arithmetic modulo the primes that are left, and rescaling keeps it so; a value that wraps around
in the middle of the evaluation is therefore harmless, and the one condition is that the answer
itself, |logit|·2^scale and its noise, is below half of the last prime. *Error*: it comes from
the rounding of encoded weights, from fresh encryptions, from key switching and from rescaling.
The planner spends the bits of a ring degree on primes and scales so that the predicted error is
least, and takes the smallest ring that reaches the tolerance.
"""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from privacy.inference._bounds import Ranges
from privacy.inference._costs import Operation, total_ms
from privacy.inference._lowering import Network
from privacy.inference._packing import power_of_two, steps_of
from privacy.inference._seal import MAX_MODULUS_BITS, SEED_BYTES
from privacy.inference._sensitivity import Sensitivity, Stage

FRESH_NOISE = 3.24
"""Standard deviation of SEAL's centred binomial noise, per coefficient."""
SIGMAS = 6.0
_MAX_PRIME_BITS = 60
_MIN_PRIME_BITS = 24
_MIN_WEIGHT_BITS = 4
_ROUNDING = 1 / 12


class CannotPlanError(ValueError):
    """No parameters at 128-bit security hold this model; the message says what crossed the line."""


@dataclass(frozen=True)
class Scales:
    """Primes and scales, in bits; scale 2^inputs for a query, 2^weights[i] for layer i's weights.

    Attributes
    ----------
    primes : tuple of int
        In SEAL's order: the last one left first, the special prime (if any) last.
    inputs : int
    weights : tuple of int
        One a layer but the last, whose scale follows from the answer's.
    answer : int
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[int, ...]
    answer: int

    @property
    def before(self) -> tuple[float, ...]:
        """The scale, in bits, of each layer's input."""
        scale = [float(self.inputs)]
        for weight, prime in zip(self.weights, self.dropped, strict=True):
            scale.append(2 * (scale[-1] + weight) - prime)
        return tuple(scale)

    @property
    def dropped(self) -> tuple[int, ...]:
        """The primes that rescaling drops, first dropped first."""
        return tuple(reversed(self.primes[1:-1]))

    @property
    def last_weight(self) -> float:
        """Bits of the scale of the last layer's weights."""
        return self.answer - self.before[-1]


@dataclass(frozen=True)
class Shape:
    """What the error and the time depend on, of a packing.

    Attributes
    ----------
    degree : int
    blocks, paired, ciphertexts :
        Of the first layer.
    spread : int or None
    doublings : tuple of int
        Tree rotations (and conjugation) of each layer but the last.
    babies, giants, terms : tuple of int
        Of each layer but the last: rotations, and products in a sum.
    copies : int
        Of each entry in the slots, at the last layer.
    answers : int
    """

    degree: int
    blocks: int
    paired: bool
    ciphertexts: int
    spread: int | None
    doublings: tuple[int, ...]
    babies: tuple[int, ...]
    giants: tuple[int, ...]
    terms: tuple[int, ...]
    copies: int
    answers: int

    @property
    def layers(self) -> int:
        """Number of affine maps."""
        return len(self.doublings) + 1

    def operations(self) -> Counter[Operation]:
        """How often each operation is done, and at which level."""
        count: Counter[Operation] = Counter()
        levels = self.layers
        count["load", levels] += self.ciphertexts
        for index, doublings in enumerate(self.doublings):
            level = levels - index
            products = self.ciphertexts if index == 0 else self.babies[index] * self.giants[index]
            count["multiply plain", level] += products
            count["rotate", level] += doublings + self.babies[index] - 1 + self.giants[index] - 1
            count["square", level] += 1
            if index + 1 < len(self.doublings) or self.answers > 1:
                count["relinearise", level] += 1
            count["rescale", level] += 1
        if self.answers == 1 and self.doublings:
            count["relinearise", 1] += 1
        count["multiply plain", 1] += self.answers
        count["mask", 1] += self.answers
        return count

    @property
    def query_bytes(self) -> int:
        """Bytes of a query's residues and seeds."""
        return self.ciphertexts * (8 * self.degree * self.layers + SEED_BYTES)


@dataclass(frozen=True)
class Choice:
    """The planner's decision."""

    shape: Shape
    scales: Scales
    error: float
    worst_error: float


def shapes(network: Network, degree: int) -> Iterator[Shape]:
    """Every packing of a network with activations that fits a ring degree."""
    slots = degree // 2
    sizes = [power_of_two(affine.outputs) for affine in network.affines]
    if max(sizes[:-1]) > slots:
        return
    first = network.affines[0]
    width = max(1, int(max(first.structure.sum(axis=1))))
    for log_blocks in range((slots // sizes[0]).bit_length()):
        for paired in (False, True):
            blocks = 1 << log_blocks
            period = slots // blocks
            ciphertexts = -(-width // (blocks * (2 if paired else 1)))
            middle = network.affines[1:-1]
            spread = sizes[1] if middle and sizes[1] >= period // sizes[0] else None
            doublings, babies, giants = [log_blocks + paired], [1], [1]
            terms = [width]
            here = period if spread is not None else sizes[0]
            for index, _ in enumerate(middle, start=1):
                steps = min(sizes[index], here)
                if index == 1 and spread is not None:
                    steps = max(1, min(here, sizes[1] * sizes[0] // period))
                    if sizes[1] > here:
                        steps = sizes[0]
                baby, giant = steps_of(steps)
                babies.append(baby)
                giants.append(giant)
                doublings.append((max(here, sizes[index]) // sizes[index]).bit_length() - 1)
                terms.append(steps * max(here, sizes[index]) // sizes[index])
                here = sizes[index]
            copies = slots // here
            yield Shape(
                degree,
                blocks,
                paired,
                ciphertexts,
                spread,
                tuple(doublings),
                tuple(babies),
                tuple(giants),
                tuple(terms),
                copies,
                -(-network.affines[-1].outputs // (2 * copies)),
            )


def _switch_noise(scales: Scales, degree: int, level: int) -> float:
    """Variance of a key switch, per coefficient."""
    primes = sum(4.0 ** (bits - scales.primes[-1]) for bits in scales.primes[:level])
    return FRESH_NOISE**2 * degree / 3 * primes + _rescale_noise(degree)


def _rescale_noise(degree: int) -> float:
    """Variance of a rescaling, per coefficient; the secret is ternary."""
    return (1 + 2 * degree / 3) * _ROUNDING


def error(shape: Shape, scales: Scales, stages: tuple[Stage, ...]) -> float:
    """Six standard deviations of a logit's predicted error."""
    degree, half = shape.degree, shape.degree / 2
    variance = 0.0
    before = scales.before
    for index, doublings in enumerate(shape.doublings):
        level, stage = shape.layers - index, stages[index]
        weight_scale, scale = scales.weights[index], before[index]
        product_scale = scale + weight_scale
        switch = half * _switch_noise(scales, degree, level)
        spread = 2.0**doublings
        if index == 0:
            fresh = half * (FRESH_NOISE**2 + _ROUNDING) / 4.0**scale
            variance += stage.inputs * fresh
        else:
            variance += stage.inputs * (shape.babies[index] - 1) / 2 * switch / 4.0**scale
        rounding = half * _ROUNDING / 4.0**weight_scale * (4 if shape.paired and index == 0 else 1)
        variance += stage.outputs * shape.terms[index] * stage.energy * rounding
        added = (spread * (shape.giants[index] - 1) + spread - 1) * switch
        variance += stage.outputs * added / 4.0**product_scale
        variance += stage.activated * switch / 4.0 ** (2 * product_scale)
        variance += stage.activated * half * _rescale_noise(degree) / 4.0 ** before[index + 1]
    variance += _ROUNDING * stages[-1].energy / 4.0**scales.last_weight
    closing = _switch_noise(scales, degree, 1) + 2 * _rescale_noise(degree)
    variance += closing / 4.0**scales.answer
    return SIGMAS * math.sqrt(variance)


def choose(
    network: Network, bounds: Ranges, gains: Sensitivity, *, tolerance: float, max_query_bytes: int
) -> Choice:
    """The quickest parameters for a network with activations.

    Raises
    ------
    CannotPlanError
        If none at 128-bit security reaches the tolerance.
    """
    depth = len(network.affines)
    refusals = []
    for degree in (4096, 8192, 16384):
        fitting = [s for s in shapes(network, degree) if s.query_bytes <= max_query_bytes]
        fitting.sort(key=lambda s: total_ms(s.operations(), degree))
        if not fitting:
            refusals.append(_no_room(network, degree))
            continue
        best: Choice | None = None
        for shape in fitting[:3]:
            scales = _spend_bits(shape, bounds, gains)
            if scales is None:
                break
            choice = Choice(
                shape,
                scales,
                error(shape, scales, gains.typical),
                error(shape, scales, gains.worst),
            )
            if best is None or choice.error < best.error:
                best = choice
            if choice.error <= tolerance:
                return choice
        if best is None:
            fit = (MAX_MODULUS_BITS[degree] - 1) // _MIN_PRIME_BITS - 1
            refusals.append(f"N={degree}: needs {depth} levels, {fit} fit at 128 bits")
        else:
            refusals.append(
                f"N={degree}: the best predicted error is {best.error:.3g}, tolerance {tolerance:g}"
            )
    raise CannotPlanError(
        "no parameters at 128-bit security hold this model; "
        + "; ".join(refusals)
        + ". Narrow input_range, make the model shallower, or allow a larger tolerance"
    )


def _no_room(network: Network, degree: int) -> str:
    for affine in network.affines[:-1]:
        if power_of_two(affine.outputs) > degree // 2:
            return (
                f"N={degree}: {affine.name} has {affine.outputs} outputs, "
                f"{degree // 2} slots are there"
            )
    return f"N={degree}: no packing keeps a query below max_query_bytes"


def logit_bits(bounds: Ranges) -> int:
    """B such that every |logit| < 2^B over the declared range."""
    return math.floor(math.log2(max(float(bounds.logits.magnitude.max()), 2.0**-16))) + 1


def _spend_bits(shape: Shape, bounds: Ranges, gains: Sensitivity) -> Scales | None:
    """Distribute the bits of the ring degree, by descent from an even start."""
    layers, budget = shape.layers, MAX_MODULUS_BITS[shape.degree]
    if (layers + 1) * _MIN_PRIME_BITS > budget:
        return None
    even = min(_MAX_PRIME_BITS, budget // (layers + 1))
    logits = logit_bits(bounds)

    def scales_of(point: tuple[int, ...]) -> Scales | None:
        primes, inputs, weights = point[: layers + 1], point[layers + 1], point[layers + 2 :]
        if sum(primes) > budget or min(primes) < _MIN_PRIME_BITS or max(primes) > _MAX_PRIME_BITS:
            return None
        # One bit for the sign and one for noise, which is checked again where the plan is made.
        scales = Scales(primes, inputs, weights, primes[0] - 2 - logits)
        before = scales.before
        if min(before) < 8 or min(weights) < _MIN_WEIGHT_BITS or scales.last_weight < 0:
            return None
        for index, weight in enumerate(weights):
            room = sum(primes[: layers - index])
            if 2 * (before[index] + weight) > room - 2:
                return None
        return scales

    def value(point: tuple[int, ...]) -> float:
        scales = scales_of(point)
        return math.inf if scales is None else error(shape, scales, gains.typical)

    start = (even,) * (layers + 1) + (even // 2 - 2,) + (even // 4,) * (layers - 1)
    point, best = start, value(start)
    moves = [(index, step) for index in range(len(start)) for step in (-4, -2, -1, 1, 2, 4)]
    pairs = [(one,) for one in moves] + [
        (one, two) for one in moves for two in moves if one[0] < two[0]
    ]
    improved = True
    while improved:
        improved = False
        for pair in pairs:
            trial = list(point)
            for index, step in pair:
                trial[index] += step
            here = value(tuple(trial))
            if here < best * (1 - 1e-9):
                point, best, improved = tuple(trial), here, True
    return scales_of(point)


@dataclass(frozen=True)
class ProductChoice:
    """The planner's decision for a model that is one affine map: one prime, no key switching."""

    degree: int
    prime_bits: int
    input_bits: int
    weight_bits: int
    error: float
    worst_error: float


def choose_products(network: Network, bounds: Ranges, *, tolerance: float) -> ProductChoice:
    """The smallest ring for a model that is one affine map.

    Raises
    ------
    CannotPlanError
        If no ring reaches the tolerance.
    """
    affine = network.affines[0]
    # Noise fills every coefficient of a query, so that a logit meets all rows of the weights.
    weight = float((affine.matrix.multiply(affine.matrix)).sum())
    square = float((bounds.inputs.magnitude**2).sum())
    best = math.inf
    for degree in (2048, 4096, 8192):
        prime_bits = min(_MAX_PRIME_BITS, MAX_MODULUS_BITS[degree])
        answer = prime_bits - 2 - logit_bits(bounds)
        if affine.outputs > degree:
            continue
        for inputs in range(2, answer - 1):
            weights = answer - inputs
            variance = weight * (FRESH_NOISE**2 + _ROUNDING) / 4.0**inputs
            variance += square * _ROUNDING / 4.0**weights
            variance += FRESH_NOISE**2 * (1 + 4 * degree / 3) / 4.0**answer
            if variance < best:
                best, scales = variance, (inputs, weights)
        predicted = SIGMAS * math.sqrt(best)
        if predicted <= tolerance:
            return ProductChoice(degree, prime_bits, *scales, predicted, predicted)
    raise CannotPlanError(
        f"the best predicted error is {SIGMAS * math.sqrt(best):.3g}, tolerance {tolerance:g}; "
        "narrow input_range or allow a larger tolerance"
    )
