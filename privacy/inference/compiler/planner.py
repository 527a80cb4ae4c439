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
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle

import numpy as np

from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.arithmetic.scales import LayerScales, Scales, follow
from privacy.inference.ckks.ring import MAX_MODULUS_BITS
from privacy.inference.compiler.candidates import (
    Shape,
    batch_shape,
    message_bytes,
    rescaled,
    shapes,
    with_fewest_levels,
)
from privacy.inference.compiler.costs import total_ms
from privacy.inference.compiler.error_model import (
    FRESH_NOISE,
    ROUNDING,
    SIGMAS,
    error,
    public_noise,
    rescale_noise,
    switch_noise,
)
from privacy.inference.compiler.lowering import Activation, Network
from privacy.inference.compiler.ranges import Ranges
from privacy.inference.compiler.sensitivity import Sensitivity
from privacy.inference.errors import CannotPlanError

_RINGS = (4096, 8192, 16384)
"""Ring degrees that are looked at for a network with activations."""
LARGEST_SLOTS = _RINGS[-1] // 2
"""Values that one ciphertext holds at most."""
_MAX_PRIME_BITS = 60
_MAX_LOGIT_BITS = 56
"""Of which an answer, of at most 60 bits, could have any precision."""
_HOPELESS = 2.0**12
"""Of so many tolerances a predicted error is not mended by another packing."""
_MIN_PRIME_BITS = 24
_MIN_SCALE_BITS = 16.0
_MIN_WEIGHT_BITS = 8.0
_IMPOSSIBLE = 1e30
_BEYOND = 1100.0
Point = tuple[float, ...]
"""Bits of every prime, of the input's scale and of the weights' scales."""
_CANDIDATES = 6
"""Packings that are looked at in one ring."""
_MIN_ROUNDED = 1.0
"""Root of the mean square of a layer's encoded weights, below which they may round to nothing."""
_RESCALINGS = 16
"""Ways of rescaling the chosen packing that are looked at, with up to three activations."""
_SPARE_BITS = (1, 3, 6, 12)
"""Bits above the largest logit that are tried for the error of the worst input."""
_PRIME_SLACK = 0.01
"""SEAL's primes of b bits are above 2^(b - 0.01)."""


@dataclass(frozen=True)
class Choice:
    """The planner's decision."""

    shape: Shape
    scales: Scales
    error: float
    worst_error: float


@dataclass(frozen=True)
class _Search:
    """What came of looking for parameters under one limit of a query's bytes.

    Attributes
    ----------
    choice : Choice or None
    nearest : tuple of (float, int, int), or None
        The least predicted error that was found, its ring degree and the bytes of its query.
    larger : bool
        Whether larger queries would have given more to look at.
    """

    choice: Choice | None
    nearest: tuple[float, int, int] | None
    larger: bool


def check_depth(network: Network) -> None:
    """Refuse a network that takes more levels than any ring has.

    Raises
    ------
    CannotPlanError
    """
    levels = _levels(network)
    fit = (MAX_MODULUS_BITS[_RINGS[-1]] - 1) // _MIN_PRIME_BITS - 1
    if levels > fit:
        raise CannotPlanError(
            f"the model needs {levels} levels, {fit} fit at 128 bits (N={_RINGS[-1]}): make it "
            "shallower, with fewer activations or ones of a lower degree"
        )


def check_size(network: Network, bounds: Ranges) -> None:
    """Refuse a network whose logits no answer can hold.

    Raises
    ------
    CannotPlanError
    """
    remedy = (
        "narrow input_range, make the model shallower, or train with privacy.inference."
        "logit_bound in the loss"
    )
    stages = [*bounds.before, bounds.logits]
    for affine, stage in zip(network.affines, stages, strict=True):
        if not bool(np.isfinite(stage.magnitude).all()):
            raise CannotPlanError(
                f"over input_range the values after layer {affine.name} can be larger than any "
                f"number of double precision; {remedy}"
            )
    bits = logit_bits(bounds)
    if bits > _MAX_LOGIT_BITS:
        raise CannotPlanError(
            f"over input_range a logit can reach 2^{bits}, and an answer holds less than "
            f"2^{_MAX_PRIME_BITS} with all its precision; {remedy}"
        )


def choose(
    network: Network,
    bounds: Ranges,
    gains: Sensitivity,
    *,
    batch_size: int,
    tolerances: Sequence[float],
    spread: float,
    query_limits: Sequence[int],
    encrypted: bool,
) -> Choice:
    """The quickest parameters for a network with activations.

    ``query_limits`` are bytes that a query may take, rising: the first that allows a plan counts.
    ``tolerances`` rise as well: a further one counts where no plan reaches those before it.
    ``spread`` is how far the logits of typical inputs lie apart, and is for the words of a refusal.

    Raises
    ------
    CannotPlanError
        If none at 128-bit security reaches the tolerance.
    """

    @cache  # the best scales of a packing depend on no tolerance and on no limit
    def scaled(shape: Shape) -> Choice | None:
        return _choose_scales(shape, network, bounds, gains)

    return _choose(
        network,
        bounds,
        scaled,
        batch_size=batch_size,
        tolerances=tolerances,
        spread=spread,
        query_limits=query_limits,
        encrypted=encrypted,
    )


def _choose(
    network: Network,
    bounds: Ranges,
    scaled: Callable[[Shape], Choice | None],
    *,
    batch_size: int,
    tolerances: Sequence[float],
    spread: float,
    query_limits: Sequence[int],
    encrypted: bool,
) -> Choice:
    """As :func:`choose`; ``scaled`` gives the best scales of a packing."""
    tolerance, *further = tolerances

    def search(limit: int, *, smallest: bool = False) -> _Search:
        return _search(
            network,
            scaled,
            batch_size=batch_size,
            tolerance=tolerance,
            limit=limit,
            encrypted=encrypted,
            smallest=smallest,
        )

    for limit in query_limits:
        done = search(limit)
        if done.choice is not None:
            return done.choice
        if not done.larger or _hopeless(done, tolerance):
            break
    if further and done.nearest is not None and done.nearest[0] <= further[-1]:
        return _choose(
            network,
            bounds,
            scaled,
            batch_size=batch_size,
            tolerances=further,
            spread=spread,
            query_limits=query_limits,
            encrypted=encrypted,
        )
    if batch_size > LARGEST_SLOTS:
        raise CannotPlanError(
            f"the largest ring at 128-bit security (N={_RINGS[-1]}) has {LARGEST_SLOTS} slots for "
            f"{batch_size} images; split the batch"
        )
    if done.larger and not _hopeless(done, tolerance):
        enough = [
            message_bytes(found.choice.shape)
            for found in (search(sys.maxsize, smallest=True), search(sys.maxsize))
            if found.choice is not None
        ]
        for needed in sorted(enough):
            if search(needed).choice is not None:
                raise CannotPlanError(
                    f"a query takes {needed:,} bytes, max_query_bytes is {query_limits[-1]:,}; "
                    f"give max_query_bytes={needed}"
                )
        done = search(sys.maxsize)
    if done.nearest is None:
        raise CannotPlanError(
            f"{_levels(network)} levels with the precision that they need, and logits that can "
            f"reach 2^{logit_bits(bounds)} over input_range, do not fit the "
            f"{MAX_MODULUS_BITS[_RINGS[-1]]} bits of N={_RINGS[-1]} at 128-bit security; make the "
            "model shallower, or narrow input_range"
        )
    error, degree, needed = done.nearest
    beyond = needed if needed > query_limits[-1] else 0
    raise CannotPlanError(_imprecise(error, degree, tolerance, spread, bounds, beyond))


def _search(
    network: Network,
    scaled: Callable[[Shape], Choice | None],
    *,
    batch_size: int,
    tolerance: float,
    limit: int,
    encrypted: bool,
    smallest: bool,
) -> _Search:
    """Look through the rings, the smallest first; in each, quick or else small packings first."""
    nearest: tuple[float, int, int] | None = None
    vanishing: Choice | None = None
    larger = False
    for degree in _RINGS:
        if batch_size > degree // 2:
            continue
        packings = list(
            shapes(network, degree, encrypted=encrypted)
            if batch_size == 1
            else [batch_shape(network, degree)]
        )
        least = {shape: message_bytes(with_fewest_levels(shape)) for shape in packings}
        larger |= max(least.values(), default=0) > limit
        # Those that fit only with squares rescaled elsewhere are the second choice.
        fitting = [shape for shape in packings if message_bytes(shape) <= limit]
        squeezed = [s for s in packings if least[s] <= limit < message_bytes(s)]
        if smallest:
            fitting.sort(key=lambda shape: least[shape])
        else:
            fitting.sort(key=lambda shape: total_ms(shape.operations(), shape.degree))
        squeezed.sort(key=lambda shape: total_ms(shape.operations(), shape.degree))
        for shape in fitting[:_CANDIDATES] + squeezed[: _CANDIDATES // 2]:
            choice = scaled(shape)
            if choice is None:
                break
            if nearest is None or choice.error < nearest[0]:
                nearest = choice.error, degree, message_bytes(shape)
            if choice.error > tolerance:
                if choice.error > _HOPELESS * tolerance:
                    break  # another packing will not do either
                continue
            if _vanishes(choice, network):
                if vanishing is None and message_bytes(shape) <= limit:
                    vanishing = choice
                continue
            quick = _quicken(choice, network, scaled, tolerance, limit)
            if quick is not None:
                return _Search(quick, nearest, larger)
    # A model before training may have next to no weights.
    return _Search(vanishing, nearest, larger)


def _imprecise(
    error: float,
    degree: int,
    tolerance: float,
    spread: float,
    bounds: Ranges,
    needed_bytes: int = 0,
) -> str:
    """Why no plan reaches the tolerance, and what helps.

    ``needed_bytes`` are those of the query that errs least, where it is beyond the limit.
    """
    remedies = ["narrow input_range", "make the model shallower"]
    if float(bounds.logits.magnitude.max()) < 0.5:
        # An answer has no more bits for logits that stay below 1.
        remedies.append("scale the last layer up (a larger logit is as much more precise)")
    words = (
        f"the least predicted error of a logit is {error:.3g} (N={degree}), tolerance is "
        f"{tolerance:.3g}; {', '.join(remedies)}"
    )
    if 0 < spread < error:
        return (
            f"{words}. A larger tolerance gives wrong classes: the logits of typical inputs lie "
            f"{spread:.3g} apart"
        )
    bytes_too = f" and max_query_bytes={needed_bytes}" if needed_bytes else ""
    return f"{words}, or allow tolerance={_rounded_up(error)}{bytes_too}"


def _hopeless(done: _Search, tolerance: float) -> bool:
    return done.nearest is not None and done.nearest[0] > _HOPELESS * tolerance


def _levels(network: Network) -> int:
    return 1 + sum(DEPTH[activation.degree] for activation in network.activations)


def _rounded_up(error: float) -> float:
    """Two digits, not below."""
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    return float(f"{math.ceil(error * 1.001 / unit) * unit:.3g}")


def _quicken(
    choice: Choice,
    network: Network,
    scaled: Callable[[Shape], Choice | None],
    tolerance: float,
    limit: int,
) -> Choice | None:
    """The quickest way of rescaling the chosen packing that still reaches the tolerance."""

    def spent(shape: Shape) -> float:
        return total_ms(shape.operations(), shape.degree)

    fits = message_bytes(choice.shape) <= limit
    quicker = [
        shape
        for shape in rescaled(choice.shape)
        if message_bytes(shape) <= limit and (not fits or spent(shape) < spent(choice.shape))
    ]
    # With every further activation a look takes longer.
    looks = max(2, _RESCALINGS >> 2 * max(0, len(network.activations) - 3))
    for shape in sorted(quicker, key=spent)[:looks]:
        found = scaled(shape)
        if found is None or found.error > tolerance:
            continue
        if not _vanishes(found, network):
            return found
    return choice if fits else None


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
    taken = -1
    for spare in _SPARE_BITS:
        if spare <= taken:
            continue  # fewer bits of scale do not make the worst error smaller
        scales = _spend_bits(shape, network.activations, gains, logits + spare)
        if scales is None:
            return None
        layers = scales.walk(network.activations)
        typical = error(shape, scales, layers, gains.typical)
        worst = error(shape, scales, layers, gains.worst)
        if not worst < 2.0 ** (logits + _SPARE_BITS[-1]):
            return None
        taken = math.ceil(math.log2(worst)) - logits
        if 2.0**logits + 2.0 ** (logits + taken) <= 2.0 ** (logits + spare - _PRIME_SLACK):
            return Choice(shape, scales, typical, worst)
    return None


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

    def value(point: Point, bar: float = math.inf) -> float:
        missing = _missing_primes(point[: levels + 1], budget)
        possible = bar < _IMPOSSIBLE  # then what it lacks is of no interest, only whether
        if missing > 0 and possible:
            return _IMPOSSIBLE
        scales = _scales_at(point, shape, reserved)
        layers: list[LayerScales] = []
        try:
            for lacking in _missing_bits(scales, activations, layers):
                missing += lacking
                if missing > 0 and possible:
                    return _IMPOSSIBLE
            if missing > 0:
                return _IMPOSSIBLE * (1 + missing)
            return error(shape, scales, layers, gains.typical)
        except ArithmeticError:
            return math.inf  # scales beyond what doubles hold

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
    # Until none of them, one after the other, has led any further.
    untried = len(groups)
    for group in cycle(groups):
        trial = list(point)
        for index, step in group:
            trial[index] += step
        here = value(tuple(trial), best)
        untried -= 1
        if here < best * (1 - 1e-6):
            point, best, untried = tuple(trial), here, len(groups)
        if untried == 0:
            break
    return _scales_at(point, shape, reserved) if best < _IMPOSSIBLE else None


def _scales_at(point: Point, shape: Shape, reserved: int) -> Scales:
    # One bit of the last prime is for the sign.
    levels = shape.levels
    primes = tuple(int(bits) for bits in point[: levels + 1])
    answer = primes[0] - 1 - reserved
    return Scales(primes, int(point[levels + 1]), point[levels + 2 :], answer, shape.rescales)


def _missing_primes(primes: Sequence[float], budget: int) -> float:
    """By how many bits primes are too large or too small."""
    missing = max(0, sum(primes) - budget)
    beyond = [max(0, bits - _MAX_PRIME_BITS, _MIN_PRIME_BITS - bits) for bits in primes]
    return missing + sum(beyond)


def _missing_bits(
    scales: Scales, activations: Sequence[Activation], layers: list[LayerScales]
) -> Iterator[float]:
    """By how many bits scales are too small to hold a value, or too large for their modulus.

    Layer by layer, each of which is appended to ``layers``.
    """
    for layer in follow(scales, activations, [2.0**bits for bits in scales.primes]):
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


def _bits(scale: float) -> float:
    """Its logarithm; far out where it is none that doubles hold."""
    if 0 < scale < math.inf:
        return math.log2(scale)
    return -_BEYOND if scale == 0 else _BEYOND


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
    network: Network,
    bounds: Ranges,
    *,
    batch_size: int,
    tolerance: float,
    spread: float,
    encrypted: bool,
) -> ProductChoice:
    """The smallest ring for a model that is one affine map; ``spread`` as in :func:`choose`.

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
                best, scales, nearest = variance, (inputs, weights), degree
        predicted = SIGMAS * math.sqrt(best)
        if predicted <= tolerance:
            return ProductChoice(degree, primes, *scales, predicted, predicted)
    if not math.isfinite(best):
        raise CannotPlanError(
            f"{affine.outputs} outputs and batch_size {batch_size} do not fit 8192 coefficients; "
            "split the batch"
        )
    raise CannotPlanError(_imprecise(SIGMAS * math.sqrt(best), nearest, tolerance, spread, bounds))
