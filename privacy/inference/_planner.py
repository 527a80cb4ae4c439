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
from collections.abc import Sequence
from dataclasses import dataclass

from privacy.inference._bounds import Ranges
from privacy.inference._costs import total_ms
from privacy.inference._lowering import Activation, Network
from privacy.inference._noise import (
    FRESH_NOISE,
    ROUNDING,
    SIGMAS,
    error,
    public_noise,
    rescale_noise,
    switch_noise,
)
from privacy.inference._packing import power_of_two
from privacy.inference._polynomials import DEPTH
from privacy.inference._scales import LayerScales, Scales
from privacy.inference._seal import MAX_MODULUS_BITS
from privacy.inference._sensitivity import Sensitivity
from privacy.inference._shapes import Shape, batch_shape, rescaled, shapes

_MAX_PRIME_BITS = 60
_MIN_PRIME_BITS = 24
_MIN_SCALE_BITS = 16.0
_MIN_WEIGHT_BITS = 8.0
_IMPOSSIBLE = 1e30
Point = tuple[float, ...]
"""Bits of every prime, of the input's scale and of the weights' scales."""
_CANDIDATES = 6
"""Packings that are looked at in one ring."""
_MIN_ROUNDED = 1.0
"""Root of the mean square of a layer's encoded weights, below which they may round to nothing."""
_RESCALINGS = 16
"""Ways of rescaling the chosen packing that are looked at."""
_SPARE_BITS = (1, 3, 6, 12)
"""Bits above the largest logit that are tried for the error of the worst input."""
_PRIME_SLACK = 0.01
"""SEAL's primes of b bits are above 2^(b - 0.01)."""


class CannotPlanError(ValueError):
    """No parameters at 128-bit security hold this model; the message says what crossed the line."""


@dataclass(frozen=True)
class Choice:
    """The planner's decision."""

    shape: Shape
    scales: Scales
    error: float
    worst_error: float


def choose(
    network: Network,
    bounds: Ranges,
    gains: Sensitivity,
    *,
    batch_size: int,
    tolerance: float,
    max_query_bytes: int,
    encrypted: bool,
) -> Choice:
    """The quickest parameters for a network with activations.

    Raises
    ------
    CannotPlanError
        If none at 128-bit security reaches the tolerance.
    """
    depth = 1 + sum(DEPTH[activation.degree] for activation in network.activations)
    refusals = []
    vanishing: Choice | None = None
    for degree in (4096, 8192, 16384):
        if batch_size > degree // 2:
            refusals.append(f"N={degree}: {degree // 2} slots for {batch_size} images")
            continue
        packings = (
            shapes(network, degree, encrypted=encrypted)
            if batch_size == 1
            else [batch_shape(network, degree)]
        )
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
            if choice.error <= tolerance and not _vanishes(choice, network):
                return _quicken(choice, network, bounds, gains, tolerance)
            if choice.error <= tolerance and vanishing is None:
                vanishing = choice
        if best is None:
            fit = (MAX_MODULUS_BITS[degree] - 1) // _MIN_PRIME_BITS - 1
            refusals.append(f"N={degree}: needs {depth} levels, {fit} fit at 128 bits")
        else:
            refusals.append(
                f"N={degree}: the best predicted error is {best.error:.3g}, tolerance {tolerance:g}"
            )
    if vanishing is not None:
        # A model before training may have next to no weights.
        return vanishing
    raise CannotPlanError(
        "no parameters at 128-bit security hold this model; "
        + "; ".join(refusals)
        + ". Narrow input_range, make the model shallower, or allow a larger tolerance"
    )


def _quicken(
    choice: Choice, network: Network, bounds: Ranges, gains: Sensitivity, tolerance: float
) -> Choice:
    """The quickest way of rescaling the chosen packing that still reaches the tolerance."""

    def spent(shape: Shape) -> float:
        return total_ms(shape.operations(), shape.degree)

    quicker = [shape for shape in rescaled(choice.shape) if spent(shape) < spent(choice.shape)]
    for shape in sorted(quicker, key=spent)[:_RESCALINGS]:
        found = _choose_scales(shape, network, bounds, gains)
        if found is None or found.error > tolerance:
            continue
        if not _vanishes(found, network):
            return found
    return choice


def _vanishes(choice: Choice, network: Network) -> bool:
    """Whether the weights of a layer may round to nothing: biases alone can be within tolerance."""
    shape, slots = choice.shape, choice.shape.degree / 2
    layers = choice.scales.walk(network.activations)
    for affine, layer in zip(network.affines, layers, strict=True):
        norm = layer.weights * math.sqrt(float((affine.matrix.data**2).sum()))
        if shape.batch:
            # An integer each; the largest is at least the root of their mean square.
            rounded = norm / math.sqrt(max(1, affine.matrix.nnz))
        else:
            # By Parseval; the last layer's values are spread over coefficients on purpose.
            spread = slots / math.sqrt(shape.copies) if layer is layers[-1] else 1.0
            rounded = norm * spread * math.sqrt(2) / shape.degree
        if rounded < _MIN_ROUNDED:
            return True
    return False


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
        scales = _scales_at(point, shape, reserved)
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
    return _scales_at(point, shape, reserved) if best < _IMPOSSIBLE else None


def _scales_at(point: Point, shape: Shape, reserved: int) -> Scales:
    # One bit of the last prime is for the sign.
    levels = shape.levels
    primes = tuple(int(bits) for bits in point[: levels + 1])
    answer = primes[0] - 1 - reserved
    return Scales(primes, int(point[levels + 1]), point[levels + 2 :], answer, shape.rescales)


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
    """The planner's decision for a model that is one affine map.

    One prime and no key switching; with encrypted weights a special prime too, since the answer
    is relinearised.
    """

    degree: int
    primes: tuple[int, ...]
    input_bits: int
    weight_bits: int
    error: float
    worst_error: float


def choose_products(
    network: Network, bounds: Ranges, *, batch_size: int, tolerance: float, encrypted: bool
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
    # At N = 2048 nothing is left for a special prime.
    for degree in (4096, 8192) if encrypted else (2048, 4096, 8192):
        budget = MAX_MODULUS_BITS[degree]
        primes: tuple[int, ...]
        if encrypted:
            primes = (min(_MAX_PRIME_BITS, budget // 2), min(_MAX_PRIME_BITS, budget - budget // 2))
            sealed = rescale_noise(degree)
            closing = sealed + switch_noise(primes, degree, 1)
        else:
            primes, sealed, closing = (min(_MAX_PRIME_BITS, budget),), 0.0, 0.0
        answer = primes[0] - 2 - logit_bits(bounds)
        if max(affine.outputs, batch_size) > degree:
            continue
        for inputs in range(2, answer - 1):
            weights = answer - inputs
            variance = weight * (FRESH_NOISE**2 + ROUNDING) / 4.0**inputs
            variance += square * (ROUNDING + sealed) / 4.0**weights
            variance += (public_noise(degree) + closing) / 4.0**answer
            if variance < best:
                best, scales = variance, (inputs, weights)
        predicted = SIGMAS * math.sqrt(best)
        if predicted <= tolerance:
            return ProductChoice(degree, primes, *scales, predicted, predicted)
    if not math.isfinite(best):
        raise CannotPlanError(
            f"{affine.outputs} outputs and batch_size {batch_size} do not fit 8192 coefficients; "
            "split the batch"
        )
    raise CannotPlanError(
        f"the best predicted error is {SIGMAS * math.sqrt(best):.3g}, tolerance {tolerance:g}; "
        "narrow input_range or allow a larger tolerance"
    )
