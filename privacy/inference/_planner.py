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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from privacy.inference._bounds import Ranges
from privacy.inference._costs import Operation, total_ms
from privacy.inference._lowering import Activation, Network
from privacy.inference._packing import power_of_two, steps_between, steps_of
from privacy.inference._polynomials import (
    DEPTH,
    PRODUCTS,
    Narrowing,
    ScaleAlgebra,
    Scaled,
    evaluate,
)
from privacy.inference._seal import MAX_MODULUS_BITS, SEED_BYTES
from privacy.inference._sensitivity import Sensitivity, Stage

FRESH_NOISE = 3.24
"""Standard deviation of SEAL's centred binomial noise, per coefficient."""
SIGMAS = 6.0
_MAX_PRIME_BITS = 60
_MIN_PRIME_BITS = 24
_MIN_SCALE_BITS = 16.0
_MIN_WEIGHT_BITS = 8.0
_IMPOSSIBLE = 1e30
Point = tuple[float, ...]
"""Bits of every prime, of the input's scale and of the weights' scales."""
_CANDIDATES = 6
_SPARE_BITS = (1, 3, 6, 12)
"""Bits above the largest logit that are tried for the error of the worst input."""
_PRIME_SLACK = 0.01
"""SEAL's primes of b bits are above 2^(b - 0.01)."""
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
    weights : tuple of float
        One a layer but the last, whose scale follows from the answer's.
    answer : int
    """

    primes: tuple[int, ...]
    inputs: int
    weights: tuple[float, ...]
    answer: int

    def walk(self, activations: Sequence[Activation]) -> tuple["LayerScales", ...]:
        """The scales of every layer, from the nominal sizes of the primes."""
        return walk(self, activations, [2.0**bits for bits in self.primes])


@dataclass(frozen=True)
class LayerScales:
    """One affine map and the activation after it.

    Attributes
    ----------
    level : int
        Data primes left at its products.
    inputs, weights : float
        Scales of what is multiplied.
    narrowings : tuple of Narrowing
    constants : tuple of float
        Scales of the constants in the activation.
    """

    level: int
    inputs: float
    weights: float
    narrowings: tuple[Narrowing, ...]
    constants: tuple[float, ...]


def walk(
    scales: Scales, activations: Sequence[Activation], primes: Sequence[float]
) -> tuple[LayerScales, ...]:
    """The scales of every layer, given the primes themselves."""
    dropped = dict(enumerate(primes[:-1], start=1))
    level, scale = max(1, len(primes) - 1), 2.0**scales.inputs
    layers = []
    for weight_bits, activation in zip(scales.weights, activations, strict=True):
        weights = 2.0**weight_bits
        algebra = ScaleAlgebra(dropped)
        result = evaluate(algebra, activation, Scaled(scale * weights, level))
        layers.append(
            LayerScales(level, scale, weights, tuple(algebra.narrowings), tuple(algebra.constants))
        )
        level, scale = result.level, result.scale
    layers.append(LayerScales(level, scale, 2.0**scales.answer / scale, (), ()))
    return tuple(layers)


@dataclass(frozen=True)
class Shape:
    """What the error and the time depend on, of a packing.

    Attributes
    ----------
    degree : int
    blocks, paired, ciphertexts :
        Of the first layer.
    following : int or None
    doublings : tuple of int
        Tree rotations (and conjugation) of each layer but the last.
    babies, giants, terms : tuple of int
        Of each layer but the last: rotations; of each layer: products in a sum. Coefficients
        that are read count as one product of every slot, by the mean.
    copies : int
        Of each entry in the slots, at the last layer.
    answers : int
    degrees : tuple of int
        Of the activations.
    repeats : tuple of float
        The share of slots after which each layer's plaintexts repeat, of each layer but the last.
    late : bool
        Whether the last activation is relinearised after the last layer: quicker, and rougher.
    batch : bool
        Whether a slot holds an image; then nothing is rotated and weights are integers.
    sizes : tuple of int
        Of a batch: outputs of each layer.
    """

    degree: int
    blocks: int
    paired: bool
    ciphertexts: int
    following: int | None
    doublings: tuple[int, ...]
    babies: tuple[int, ...]
    giants: tuple[int, ...]
    terms: tuple[int, ...]
    copies: int
    answers: int
    degrees: tuple[int, ...]
    repeats: tuple[float, ...] = ()
    late: bool = False
    batch: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def levels(self) -> int:
        """Data primes that are needed: one for each rescaling in a row, and one for the answer."""
        return 1 + sum(DEPTH[degree] for degree in self.degrees)

    def leaves_large(self, index: int) -> bool:
        """Whether activation ``index`` leaves its result to be relinearised after the next layer.

        It is where that is cheaper: there are fewer to relinearise, or they are at a lower level.
        """
        if self.batch:
            return self.sizes[index + 1] < self.sizes[index]
        return self.late and index + 1 == len(self.degrees)

    def operations(self) -> Counter[Operation]:
        """How often each operation is done, and at which level."""
        if self.batch:
            return _batch_operations(
                self.levels, self.ciphertexts, self.terms, self.sizes, self.degrees
            )
        count: Counter[Operation] = Counter()
        level = self.levels
        count["load", level] += self.ciphertexts
        for index, (doublings, power) in enumerate(zip(self.doublings, self.degrees, strict=True)):
            products = self.ciphertexts if index == 0 else self.babies[index] * self.giants[index]
            count["multiply plain", level] += products
            count["rotate", level] += doublings + self.babies[index] + self.giants[index] - 2
            for step in range(PRODUCTS[power]):
                # Products of one depth happen at one level; the deepest ones are counted there.
                here = level - min(step, DEPTH[power] - 1)
                count["multiply", here] += 1
                count["relinearise", here] += 1
                count["rescale", here] += 1
            level -= DEPTH[power]
        if self.late:
            # The last activation is relinearised after the last layer, where it is cheapest.
            count["relinearise", 2] -= 1
            count["relinearise", 1] += 1
        count["multiply plain", 1] += self.answers
        count["mask", 1] += self.answers
        return +count

    @property
    def query_bytes(self) -> int:
        """Bytes of a query's residues and seeds."""
        return self.ciphertexts * (8 * self.degree * self.levels + SEED_BYTES)


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
            following = sizes[1] if middle else None
            doublings, babies, giants = [log_blocks + paired], [1], [1]
            terms, repeats = [width], [1.0]
            here = sizes[0] if following is None else period
            for index in range(1, len(sizes) - 1):
                before, after = sizes[index - 1], sizes[index]
                steps = steps_between(before, after, here)
                baby, giant = steps_of(steps)
                babies.append(baby)
                giants.append(giant)
                doublings.append((max(here, after) // after).bit_length() - 1)
                terms.append(steps * max(here, after) // after)
                repeats.append(max(here, after) / slots)
                here = after
            terms.append(1)
            copies = slots // here
            answers = -(-network.affines[-1].outputs // (2 * copies))
            shape = Shape(
                degree,
                blocks,
                paired,
                ciphertexts,
                following,
                tuple(doublings),
                tuple(babies),
                tuple(giants),
                tuple(terms),
                copies,
                answers,
                tuple(activation.degree for activation in network.activations),
                tuple(repeats),
            )
            yield shape
            if answers == 1:
                yield replace(shape, late=True)


def batch_shape(network: Network, degree: int) -> Shape:
    """The packing of a batch."""
    layers = len(network.activations)
    return Shape(
        degree,
        1,
        False,
        network.affines[0].inputs,
        None,
        (0,) * layers,
        (1,) * layers,
        (1,) * layers,
        tuple(int(max(affine.structure.sum(axis=1))) for affine in network.affines),
        1,
        network.affines[-1].outputs,
        tuple(activation.degree for activation in network.activations),
        (1.0,) * layers,
        batch=True,
        sizes=tuple(affine.outputs for affine in network.affines),
    )


def batch_operations(network: Network, level: int) -> Counter[Operation]:
    """Counts for a batch through a model that is one affine map."""
    affine = network.affines[0]
    terms = (int(max(affine.structure.sum(axis=1))),)
    return _batch_operations(level, affine.inputs, terms, (affine.outputs,), ())


def _batch_operations(
    level: int,
    inputs: int,
    terms: tuple[int, ...],
    sizes: tuple[int, ...],
    degrees: tuple[int, ...],
) -> Counter[Operation]:
    count: Counter[Operation] = Counter({("load", level): inputs, ("unload", level): inputs})
    for index, power in enumerate(degrees):
        count["scalar", level] += terms[index] * sizes[index]
        narrows = sizes[index + 1] < sizes[index]
        count["load", level] += sizes[index]
        for step in range(PRODUCTS[power]):
            here = level - min(step, DEPTH[power] - 1)
            count["multiply", here] += sizes[index]
            count["rescale", here] += sizes[index]
            if step + 1 < PRODUCTS[power] or not narrows:
                count["relinearise", here] += sizes[index]
        level -= DEPTH[power]
        count["unload", level] += sizes[index]
        if narrows:
            count["relinearise", level] += sizes[index + 1]
    count["scalar", level] += terms[-1] * sizes[-1]
    count["mask", level] += sizes[-1]
    return count


def _switch_noise(scales: Scales, degree: int, level: int) -> float:
    """Variance of a key switch, per coefficient."""
    primes = sum(4.0 ** (bits - scales.primes[-1]) for bits in scales.primes[:level])
    return FRESH_NOISE**2 * degree / 3 * primes + _rescale_noise(degree)


def _switch_peak(scales: Scales, degree: int, level: int) -> float:
    """Variance of a key switch in the slot it hits hardest.

    The digits that SEAL multiplies keys with lie in [0, q), not around zero. Their mean is a
    polynomial with equal coefficients, which is large where ζ is near one: half of the noise of
    a key switch falls into one slot, N times what the others get.
    """
    primes = sum(4.0 ** (bits - scales.primes[-1]) for bits in scales.primes[:level])
    # (q/2)² · |Σζᵏ|² · Nσ²/2, with |Σζᵏ| = 2N/π at the nearest root, and 1/8 for the next ones.
    return primes / 4 * (2 * degree / math.pi) ** 2 * 1.125 * degree * FRESH_NOISE**2 / 2


def _rescale_noise(degree: int) -> float:
    """Variance of a rescaling, per coefficient; the secret is ternary."""
    return (1 + 2 * degree / 3) * _ROUNDING


def error(
    shape: Shape, scales: Scales, layers: Sequence[LayerScales], stages: Sequence[Stage]
) -> float:
    """Six standard deviations of a logit's predicted error."""
    degree, half = shape.degree, shape.degree / 2
    variance = 0.0
    rescale = half * _rescale_noise(degree)
    # The third polynomial's rounding meets the square of the secret.
    rescale_large = half * (2 * degree / 3) ** 2 * _ROUNDING
    # The rounding of a plaintext meets every slot; that of an integer only its own product.
    plain = _ROUNDING if shape.batch else half * _ROUNDING
    levels = range(1, shape.levels + 1)
    switches = {level: half * _switch_noise(scales, degree, level) for level in levels}
    peaks = {level: _switch_peak(scales, degree, level) for level in levels}
    for index, doublings in enumerate(shape.doublings):
        layer, stage = layers[index], stages[index]
        switch = switches[layer.level]
        if index == 0:
            fresh = half * (FRESH_NOISE**2 + _ROUNDING) / layer.inputs**2
            variance += stage.inputs * fresh
        else:
            steps = (shape.babies[index] - 1) / 2
            variance += stage.inputs * steps * switch / layer.inputs**2
            variance += stage.input_peak * 2 * steps * peaks[layer.level] / layer.inputs**2
        # Weights that repeat leave most coefficients of their plaintext zero, and those exact.
        rounding = plain / layer.weights**2 * shape.repeats[index]
        if index == 0 and shape.paired:
            rounding *= 4
        variance += stage.outputs * shape.terms[index] * stage.energy * rounding
        added = (2.0**doublings * shape.giants[index] - 1) * switch
        product = (layer.inputs * layer.weights) ** 2
        variance += stage.outputs * added / product
        peak = (doublings + shape.giants[index] - 1) * peaks[layer.level] / product
        variance += stage.output_peak * peak
        # Where a slot is hit hardest, its error squared counts too.
        variance += stage.narrowing_peaks[-1] * stage.curvature * 3 * peak**2
        for gain, top, narrowing in zip(
            stage.narrowings, stage.narrowing_peaks, layer.narrowings, strict=True
        ):
            variance += gain * switches[narrowing.level] / narrowing.before**2
            variance += top * peaks[narrowing.level] / narrowing.before**2
            variance += gain * rescale / narrowing.after**2
        if shape.leaves_large(index):
            variance += stage.narrowings[-1] * rescale_large / layer.narrowings[-1].after ** 2
            later, gain = layers[index + 1], stages[index + 1].outputs
            variance += gain * switches[later.level] / (later.inputs * later.weights) ** 2
        for gain, constant in zip(stage.constants, layer.constants, strict=True):
            variance += gain * _ROUNDING / constant**2
    variance += _ROUNDING * shape.terms[-1] * stages[-1].energy / layers[-1].weights ** 2
    closing = _switch_noise(scales, degree, 1) + 2 * _rescale_noise(degree)
    variance += (half if shape.batch else 1) * closing / 4.0**scales.answer
    return SIGMAS * math.sqrt(variance)


def choose(
    network: Network,
    bounds: Ranges,
    gains: Sensitivity,
    *,
    batch_size: int,
    tolerance: float,
    max_query_bytes: int,
) -> Choice:
    """The quickest parameters for a network with activations.

    Raises
    ------
    CannotPlanError
        If none at 128-bit security reaches the tolerance.
    """
    depth = 1 + sum(DEPTH[activation.degree] for activation in network.activations)
    refusals = []
    for degree in (4096, 8192, 16384):
        if batch_size > degree // 2:
            refusals.append(f"N={degree}: {degree // 2} slots for {batch_size} images")
            continue
        packings = shapes(network, degree) if batch_size == 1 else [batch_shape(network, degree)]
        fitting = [s for s in packings if s.query_bytes <= max_query_bytes]
        fitting.sort(key=lambda s: total_ms(s.operations(), degree))
        if not fitting:
            refusals.append(_no_room(network, degree))
            continue
        best: Choice | None = None
        for shape in fitting[:_CANDIDATES]:
            choice = _choose_scales(shape, network, bounds, gains)
            if choice is None:
                break
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


def _choose_scales(
    shape: Shape, network: Network, bounds: Ranges, gains: Sensitivity
) -> Choice | None:
    """The best scales for a packing, with room in the answer for the worst input's error."""
    logits = logit_bits(bounds)
    for spare in _SPARE_BITS:
        scales = _spend_bits(shape, network.activations, gains, logits + spare)
        if scales is None:
            return None
        layers = scales.walk(network.activations)
        typical = error(shape, scales, layers, gains.typical)
        worst = error(shape, scales, layers, gains.worst)
        if 2.0**logits + 2.0 ** math.ceil(math.log2(worst)) <= 2.0 ** (
            logits + spare - _PRIME_SLACK
        ):
            return Choice(shape, scales, typical, worst)
    return None


def _no_room(network: Network, degree: int) -> str:
    for affine in network.affines[:-1]:
        if power_of_two(affine.outputs) > degree // 2:
            return (
                f"N={degree}: {affine.name} has {affine.outputs} outputs, "
                f"{degree // 2} slots are there"
            )
    return f"N={degree}: no packing keeps a query below max_query_bytes"


def logit_bits(bounds: Ranges) -> int:
    """B ≥ 0 such that every |logit| < 2^B over the declared range."""
    return math.floor(math.log2(max(float(bounds.logits.magnitude.max()), 0.5))) + 1


def _spend_bits(
    shape: Shape, activations: Sequence[Activation], gains: Sensitivity, reserved: int
) -> Scales | None:
    """Distribute the bits of the ring degree, by descent from an even start.

    ``reserved`` bits of the last prime are for the size of a logit and its error.
    """
    levels, budget = shape.levels, MAX_MODULUS_BITS[shape.degree]
    if (levels + 1) * _MIN_PRIME_BITS > budget:
        return None
    even = min(_MAX_PRIME_BITS, budget // (levels + 1))

    def value(point: Point) -> float:
        scales = _scales_at(point, levels, reserved)
        layers = scales.walk(activations)
        missing = _missing_bits(scales, layers, budget)
        if missing > 0:
            return _IMPOSSIBLE * (1 + missing)
        return error(shape, scales, layers, gains.typical)

    # From here every activation returns to the scale it started from: its degree d takes
    # (d - 1) primes off d times the scale of its input.
    steps = [round(even * (0.5 - 0.5 / power)) for power in shape.degrees]
    point: Point = (*[even] * (levels + 1), even // 2, *steps)
    best = value(point)
    moves: list[tuple[int, float]] = [
        (index, step) for index in range(levels + 2) for step in (-4, -2, -1, 1, 2, 4)
    ]
    moves += [
        (index, step)
        for index in range(levels + 2, len(point))
        for step in (-4, -2, -1, -0.25, 0.25, 1, 2, 4)
    ]
    groups = [(one,) for one in moves] + [
        (one, two) for one in moves for two in moves if one[0] < two[0]
    ]
    improved = True
    while improved:
        improved = False
        for group in groups:
            trial = list(point)
            for index, step in group:
                trial[index] += step
            here = value(tuple(trial))
            if here < best * (1 - 1e-6):
                point, best, improved = tuple(trial), here, True
    return _scales_at(point, levels, reserved) if best < _IMPOSSIBLE else None


def _scales_at(point: Point, levels: int, reserved: int) -> Scales:
    # One bit of the last prime is for the sign.
    primes = tuple(int(bits) for bits in point[: levels + 1])
    return Scales(primes, int(point[levels + 1]), point[levels + 2 :], primes[0] - 1 - reserved)


def _missing_bits(scales: Scales, layers: Sequence[LayerScales], budget: int) -> float:
    """By how many bits scales are too small to hold a value, or too large for their modulus."""
    missing = max(0, sum(scales.primes) - budget)
    missing += sum(max(0, bits - _MAX_PRIME_BITS, _MIN_PRIME_BITS - bits) for bits in scales.primes)
    bounds: list[tuple[float, float, float]] = []
    for layer in layers:
        # The last layer's weights are spread over all copies of a value, and larger by as much.
        least = 0.0 if layer is layers[-1] else _MIN_WEIGHT_BITS
        room = sum(scales.primes[: layer.level]) - 2.0
        bounds.append((_MIN_SCALE_BITS, math.log2(layer.inputs), room))
        bounds.append((least, math.log2(layer.weights), room - math.log2(layer.inputs)))
        for narrowing in layer.narrowings:
            room = sum(scales.primes[: narrowing.level]) - 2.0
            bounds.append((_MIN_SCALE_BITS, math.log2(narrowing.after), room))
            bounds.append((_MIN_SCALE_BITS, math.log2(narrowing.before), room))
        bounds += [(_MIN_SCALE_BITS, math.log2(constant), math.inf) for constant in layer.constants]
    return missing + sum(max(0.0, low - bits, bits - high) for low, bits, high in bounds)


@dataclass(frozen=True)
class ProductChoice:
    """The planner's decision for a model that is one affine map: one prime, no key switching."""

    degree: int
    prime_bits: int
    input_bits: int
    weight_bits: int
    error: float
    worst_error: float


def choose_products(
    network: Network, bounds: Ranges, *, batch_size: int, tolerance: float
) -> ProductChoice:
    """The smallest ring for a model that is one affine map.

    Raises
    ------
    CannotPlanError
        If no ring reaches the tolerance.
    """
    affine = network.affines[0]
    rows = affine.matrix.multiply(affine.matrix).sum(axis=1)
    # For one image noise fills every coefficient, so that a logit meets all rows of the weights.
    weight = float(rows.sum() if batch_size == 1 else rows.max())
    square = float((bounds.inputs.magnitude**2).sum())
    best = math.inf
    for degree in (2048, 4096, 8192):
        prime_bits = min(_MAX_PRIME_BITS, MAX_MODULUS_BITS[degree])
        answer = prime_bits - 2 - logit_bits(bounds)
        if max(affine.outputs, batch_size) > degree:
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
    if not math.isfinite(best):
        raise CannotPlanError(
            f"{affine.outputs} outputs and batch_size {batch_size} do not fit 8192 coefficients; "
            "split the batch"
        )
    raise CannotPlanError(
        f"the best predicted error is {SIGMAS * math.sqrt(best):.3g}, tolerance {tolerance:g}; "
        "narrow input_range or allow a larger tolerance"
    )
