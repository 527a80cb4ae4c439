"""Choosing the ring, the primes, the scales and the packing.

Two things are known before a key is made. *Overflow*: every step of the evaluation is exact
arithmetic modulo the primes that are left, and rescaling keeps it so; a value that wraps around
in the middle of the evaluation is therefore harmless, and the one condition is that the answer
itself, |logit|·2^scale and its noise, is below half of its modulus: of one prime, or of the
product of several where logits can be large. *Error*: it comes from the rounding of encoded
weights, from fresh encryptions, from key switching and from rescaling. The planner spends the
bits of a ring degree on primes and scales so that the predicted error is least, and takes the
smallest ring that reaches the tolerance.
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from privacy.inference.arithmetic.network import Network
from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.ckks import MAX_MODULUS_BITS, MAX_PRIME_BITS
from privacy.inference.compiler.candidates import (
    PackingCandidate,
    SlotPackings,
    batch_candidate,
    rescaling_variants,
    with_fewest_levels,
)
from privacy.inference.compiler.error_model import (
    FRESH_NOISE,
    ROUNDING,
    SIGMAS,
    public_noise,
    rescale_noise,
    switch_noise,
)
from privacy.inference.compiler.hoisting import hoisted
from privacy.inference.compiler.ranges import Ranges
from privacy.inference.compiler.scale_search import (
    MAX_WEIGHT_BITS,
    MIN_PRIME_BITS,
    Choice,
    choose_scales,
    exact_bits,
    logit_bits,
    vanishing_bits,
)
from privacy.inference.compiler.sensitivity import Sensitivity
from privacy.inference.errors import CannotPlanError
from privacy.inference.rescaling import BOTH, NEVER, SUMMED, rescaled_after

_RINGS = (4096, 8192, 16384, 32768)
"""Ring degrees that are looked at for a network with activations."""
LARGEST_SLOTS = _RINGS[-1] // 2
"""Values that one ciphertext holds at most."""
_ANSWER_LEVELS = 8
"""Primes of an answer, at most."""
_PRODUCT_RINGS = (
    *product((2048, 4096, 8192), (1, 2)),
    *product(_RINGS[1:], range(1, _ANSWER_LEVELS + 1)),
)
"""Rings and primes of an answer that are looked at for an affine map, the usual ones first."""
_LEAST_ANSWER_BITS = 4
"""Of an answer's modulus, beside the size of a logit."""
_HOPELESS = 2.0**12
"""Of so many tolerances a predicted error is not mended by another packing."""
_HOPELESS_IF_DEEP = 2.0**3
"""The same for many activations, whose scales take long to choose."""
_DEEP = 6
"""Activations, from which on they are many."""
_WIDE_LOGITS = 20
"""Bits beyond which much of a plan goes to logits that hardly any input has."""
_CANDIDATES = 6
"""Packings that are looked at in one ring."""
_LOOKS = 48
"""Changes of a choice that are looked at, with up to three activations."""


def check_depth(network: Network) -> None:
    """Refuse a network that takes more levels than any ring has."""
    levels = _levels(network)
    fit = (MAX_MODULUS_BITS[_RINGS[-1]] - 1) // MIN_PRIME_BITS - 1
    if levels > fit:
        raise CannotPlanError(
            f"the model needs {levels} levels, {fit} fit at 128 bits (N={_RINGS[-1]}): make it "
            "shallower, with fewer activations or ones of a lower degree (deeper ones need "
            "bootstrapping, which there is none of here)"
        )


def check_size(network: Network, bounds: Ranges) -> None:
    """Refuse a network whose logits no answer can hold."""
    remedy = (
        "narrow input_range, make the model shallower, or train with privacy.inference."
        "logit_bound in the loss"
    )
    for layer, stage in zip(network.layers, bounds.before, strict=True):
        if not bool(np.isfinite(stage.magnitude).all()):
            raise CannotPlanError(
                f"over input_range the values after layer {layer.name} can be larger than any "
                f"number of double precision; {remedy}"
            )
    bits = logit_bits(bounds)
    if _least_answer_level(bits) > _ANSWER_LEVELS:
        raise CannotPlanError(
            f"over input_range a logit can reach 2^{bits}, and an answer holds less than "
            f"2^{_ANSWER_LEVELS * MAX_PRIME_BITS} with all its precision; {remedy}"
        )


@dataclass(frozen=True)
class _Nearest:
    """The least error among the choices looked at."""

    error: float
    degree: int
    query_bytes: int

    def hopeless(self, tolerance: float) -> bool:
        """Whether no other packing will do."""
        return self.error > _HOPELESS * tolerance


@dataclass(frozen=True)
class _Search:
    """The result of a search under one limit; ``larger`` if the limit left candidates out."""

    choice: Choice | None
    nearest: _Nearest | None
    larger: bool


class Planner:
    """The quickest parameters for a network with activations.

    ``encrypted`` weights are ciphertexts. ``spread``, how far the logits of typical inputs lie
    apart, is for the words of a refusal.
    """

    def __init__(
        self,
        network: Network,
        bounds: Ranges,
        gains: Sensitivity,
        *,
        batch_size: int,
        encrypted: bool,
        spread: float,
    ) -> None:
        self._network = network
        self._bounds = bounds
        self._gains = gains
        self._batch_size = batch_size
        self._encrypted = encrypted
        self._spread = spread
        least = _least_answer_level(logit_bits(bounds))
        self._answer_levels = (least, least + 1)
        """With one prime more an answer is more precise, and twice as long."""
        self._scaled: dict[PackingCandidate, Choice | None] = {}
        self._slots = SlotPackings(network, encrypted=encrypted)
        self._deep = len(network.activations) >= _DEEP

    def choose(self, tolerances: Sequence[float], query_limits: Sequence[int]) -> Choice:
        """The choice under the first limit and tolerance that allow one.

        ``tolerances`` rise: a further one counts where no plan reaches those before it. So do
        ``query_limits``, in bytes of a query.

        Raises
        ------
        CannotPlanError
            If no parameters at 128-bit security reach the tolerance.
        """
        for tolerance in tolerances:
            for limit in query_limits:
                search = self._search(tolerance, limit)
                if search.choice is not None:
                    return search.choice
                nearest = search.nearest
                if not search.larger or (nearest and nearest.hopeless(tolerance)):
                    break
            if search.nearest is None or search.nearest.error > tolerances[-1]:
                break
        raise CannotPlanError(self._refusal(search, tolerance, query_limits[-1]))

    def _scales(self, candidate: PackingCandidate) -> Choice | None:
        # The best scales of a packing depend on no tolerance and on no limit.
        if candidate not in self._scaled:
            self._scaled[candidate] = choose_scales(
                candidate, self._network, self._bounds, self._gains
            )
        return self._scaled[candidate]

    def _packings(self, degree: int) -> Iterable[PackingCandidate]:
        if self._batch_size == 1:
            return self._slots.candidates(degree)
        return [batch_candidate(self._network, degree)]

    def _starts(self) -> Iterator[list[PackingCandidate]]:
        """Packings by ring, as they are first looked at; then ways that spend bits otherwise.

        Either all squares are rescaled once, or the first is not, which saves a level for an answer
        with a prime more; or all are rescaled before they are squared, or before and after. The
        latter have more bits for each of many activations, and come first, or last, where those
        are many, or few.
        """
        rings = [degree for degree in _RINGS if self._batch_size <= degree // 2]
        packings = {degree: list(self._packings(degree)) for degree in rings}
        degrees = [activation.degree for activation in self._network.activations]
        before = tuple(SUMMED if power == 2 else BOTH for power in degrees)
        both = (BOTH,) * len(before)
        if self._deep:
            yield from self._alike(packings, before)
        for degree in rings:
            for answer_level in self._answer_levels:
                yield [hoisted(replace(p, answer_level=answer_level)) for p in packings[degree]]
            saving = [
                replace(packing, rescales=(NEVER, *packing.rescales[1:]), answer_level=answer_level)
                for packing in packings[degree]
                if packing.degrees[0] == 2
                and not (packing.relinearise_after_last_layer and len(packing.degrees) == 1)
            ]
            yield [hoisted(packing) for packing in saving]
        if not self._deep:
            yield from self._alike(packings, before)
        if both != before:
            yield from self._alike(packings, both)

    def _alike(
        self, packings: Mapping[int, list[PackingCandidate]], rescales: tuple[int, ...]
    ) -> Iterator[list[PackingCandidate]]:
        """Packings with these rescalings, by ring and length of the answer."""
        for degree, answer_level in product(packings, self._answer_levels):
            yield [
                hoisted(replace(packing, rescales=rescales, answer_level=answer_level))
                for packing in packings[degree]
                if not packing.relinearise_after_last_layer
            ]

    def _search(self, tolerance: float, limit: int, *, smallest: bool = False) -> _Search:
        """Look through the rings, the smallest first; in each, quick or small packings first."""
        nearest: _Nearest | None = None
        vanishing: Choice | None = None
        larger = False
        hopeless = _HOPELESS_IF_DEEP if self._deep else _HOPELESS
        for packings in self._starts():
            least = {packing: with_fewest_levels(packing).query_bytes for packing in packings}
            larger |= max(least.values(), default=0) > limit
            packings.sort(key=lambda packing: packing.cost)
            # Those that fit only with squares rescaled elsewhere are the second choice.
            fitting = [packing for packing in packings if packing.query_bytes <= limit]
            squeezed = [p for p in packings if least[p] <= limit < p.query_bytes]
            if smallest:
                fitting.sort(key=least.__getitem__)
            for packing in fitting[:_CANDIDATES] + squeezed[: _CANDIDATES // 2]:
                choice = self._scales(packing)
                if choice is None:
                    break
                if nearest is None or choice.error < nearest.error:
                    nearest = _Nearest(choice.error, packing.degree, packing.query_bytes)
                if choice.error > tolerance:
                    if choice.error > hopeless * tolerance:
                        break  # another packing will not do either
                    continue
                if self._vanishes(choice):
                    if vanishing is None and packing.query_bytes <= limit:
                        vanishing = choice
                    continue
                quick = self._quickened(choice, tolerance, limit)
                if quick is not None:
                    return _Search(quick, nearest, larger)
        # A model before training may have next to no weights.
        return _Search(vanishing, nearest, larger)

    def _quickened(self, choice: Choice, tolerance: float, limit: int) -> Choice | None:
        """The quickest of the choices that single changes lead to within the tolerance."""
        # With every further activation a look takes longer.
        looks = max(4, _LOOKS >> 2 * max(0, len(self._network.activations) - 3))
        while True:
            here = choice.candidate
            fits = here.query_bytes <= limit
            quicker = [
                variant
                for variant in map(hoisted, self._variants(here))
                if variant.query_bytes <= limit and (not fits or variant.cost < here.cost)
            ]
            better = None
            for variant in sorted(quicker, key=lambda variant: variant.cost):
                if variant not in self._scaled:
                    looks -= 1
                if looks < 0:
                    break
                scaled = self._scales(variant)
                if scaled and scaled.error <= tolerance and not self._vanishes(scaled):
                    better = scaled
                    break
            if better is None:
                return choice if fits else None
            choice = better

    def _variants(self, here: PackingCandidate) -> Iterator[PackingCandidate]:
        """With a square rescaled elsewhere, an answer of other length, or another packing."""
        yield from rescaling_variants(here, self._answer_levels)
        for packing in self._packings(here.degree):
            if not packing.relinearise_after_last_layer or rescaled_after(here.rescales[-1]):
                yield replace(packing, rescales=here.rescales, answer_level=here.answer_level)

    def _vanishes(self, choice: Choice) -> bool:
        """Whether a layer's weights may round to nothing: biases alone can be within tolerance."""
        layers = choice.scales.follow(self._network.layers)
        least = vanishing_bits(choice.candidate, self._network)
        return any(
            math.log2(weights) < bits
            for packed, layer, here in zip(choice.candidate.layers, layers, least, strict=True)
            if packed.degree or packed is choice.candidate.layers[-1]
            for weights, bits in zip(layer.weights, here, strict=True)
        )

    def _refusal(self, search: _Search, tolerance: float, limit: int) -> str:
        """The reason why no plan reaches the tolerance under the largest limit, and a remedy."""
        if self._batch_size > LARGEST_SLOTS:
            return (
                f"the largest ring at 128-bit security (N={_RINGS[-1]}) has {LARGEST_SLOTS} slots "
                f"for {self._batch_size} images; split the batch"
            )
        if search.larger and not (search.nearest and search.nearest.hopeless(tolerance)):
            unlimited = self._search(tolerance, sys.maxsize)
            enough = [self._search(tolerance, sys.maxsize, smallest=True).choice, unlimited.choice]
            for needed in sorted(choice.candidate.query_bytes for choice in enough if choice):
                if self._search(tolerance, needed).choice is not None:
                    return too_many_bytes(needed, limit)
            search = unlimited
        nearest = search.nearest
        if nearest is None:
            return (
                f"{_levels(self._network)} levels with the precision that they need, and logits "
                f"that can reach 2^{logit_bits(self._bounds)} over input_range, do not fit the "
                f"{MAX_MODULUS_BITS[_RINGS[-1]]} bits of N={_RINGS[-1]} at 128-bit security; "
                f"{', '.join(_remedies(self._bounds))}"
            )
        words = _imprecise(nearest.error, nearest.degree, tolerance, self._spread, self._bounds)
        if nearest.query_bytes > limit and "allow tolerance=" in words:
            words += f" and max_query_bytes={nearest.query_bytes}"
        return words


def too_many_bytes(needed: int, limit: int) -> str:
    """The refusal of a plan whose queries are larger than allowed."""
    return (
        f"a query takes {needed:,} bytes, max_query_bytes is {limit:,}; give "
        f"max_query_bytes={needed}"
    )


def _remedies(bounds: Ranges) -> list[str]:
    """What to change in a model that has no plan."""
    remedies = ["narrow input_range", "make the model shallower"]
    if (bits := logit_bits(bounds)) > _WIDE_LOGITS:
        remedies.append(
            f"train the bound of the logits, 2^{bits}, down (privacy.inference.logit_bound in the "
            "loss, or replace_activations(..., input_range=..., logit_bits=20))"
        )
    return remedies


def _imprecise(error: float, degree: int, tolerance: float, spread: float, bounds: Ranges) -> str:
    """The refusal of a model whose least predicted error is above the tolerance."""
    remedies = _remedies(bounds)
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
    unit = 10.0 ** (math.floor(math.log10(error)) - 1)
    enough = float(f"{math.ceil(error * 1.001 / unit) * unit:.3g}")  # two digits, not below
    return f"{words}, or allow tolerance={enough}"


def _least_answer_level(logits: int) -> int:
    """Primes of an answer whose logits are below 2^``logits``."""
    return -(-(logits + _LEAST_ANSWER_BITS) // MAX_PRIME_BITS)


def _levels(network: Network) -> int:
    """One of the answer, and what activations take along the longest way."""
    taken = [0]
    for layer in network.layers:
        own = 0 if layer.activation is None else DEPTH[layer.activation.degree]
        taken.append(own + max(taken[source] for source in layer.sources))
    return 1 + taken[-1]


@dataclass(frozen=True)
class ProductChoice:
    """The parameters of a model that is one affine map.

    One or two primes for the answer, or more where logits are large. Nothing switches keys but the
    relinearisation of encrypted weights: a special prime is there for that, and is as short as can
    be where the ring wants one beside two others.
    """

    degree: int
    primes: tuple[int, ...]
    answer_level: int
    encrypted: bool
    input_bits: int
    weight_bits: int
    error: float

    @property
    def worst_error(self) -> float:
        """The same: the error of an affine map does not depend on the input."""
        return self.error


def choose_products(
    network: Network,
    bounds: Ranges,
    *,
    batch_size: int,
    tolerance: float,
    spread: float,
    encrypted: bool,
) -> ProductChoice:
    """The smallest ring for a model that is one affine map; ``spread`` as in :class:`Planner`."""
    affine = network.layers[0].affines[0]
    rows = affine.matrix.multiply(affine.matrix).sum(axis=1)
    # For one image noise fills every coefficient, so that a logit meets all rows of the weights.
    weight = float(rows.sum() if batch_size == 1 else rows.max())
    square = float((bounds.inputs.magnitude**2).sum())
    most = MAX_WEIGHT_BITS
    if batch_size > 1:
        most = math.floor(min(most, exact_bits(affine)))
    best = math.inf
    for degree, level in _PRODUCT_RINGS:
        primes = _product_primes(degree, level, encrypted=encrypted)
        if min(primes) < MIN_PRIME_BITS or max(affine.outputs, batch_size) > degree:
            continue
        sealed = rescale_noise(degree) if encrypted else 0.0
        closing = sealed + switch_noise(primes, degree, level) if encrypted else 0.0
        room = sum(primes[:level]) - 2 - logit_bits(bounds)
        for inputs in range(2, min(MAX_WEIGHT_BITS, room - 2) + 1):
            weights = min(most, room - inputs)
            answer = inputs + weights
            variance = weight * (FRESH_NOISE**2 + ROUNDING) / 4.0**inputs
            variance += square * (ROUNDING + sealed) / 4.0**weights
            variance += (public_noise(degree) + closing) / 4.0**answer
            if variance < best:
                best, scales, nearest = variance, (inputs, weights), degree
        predicted = SIGMAS * math.sqrt(best)
        if predicted <= tolerance:
            return ProductChoice(degree, primes, level, encrypted, *scales, predicted)
    if not math.isfinite(best):
        raise CannotPlanError(_unfit(affine.outputs, batch_size, bounds))
    raise CannotPlanError(_imprecise(SIGMAS * math.sqrt(best), nearest, tolerance, spread, bounds))


def _unfit(outputs: int, batch_size: int, bounds: Ranges) -> str:
    """The reason why no ring holds an affine map."""
    coefficients = _RINGS[-1]
    if batch_size > coefficients:
        return f"batch_size is {batch_size}, a ring has {coefficients} places; split the batch"
    if outputs > coefficients:
        return (
            f"the model has {outputs:,} outputs, and the answer has places for {coefficients:,}; "
            "compile two models, each with a part of the last layer's rows"
        )
    return (
        f"over input_range a logit can reach 2^{logit_bits(bounds)}, which leaves an answer no "
        "bits of precision; narrow input_range, or scale the last layer down"
    )


def _product_primes(degree: int, level: int, *, encrypted: bool) -> tuple[int, ...]:
    """Bits of the primes of an affine map's answer, and of the special one."""
    budget = MAX_MODULUS_BITS[degree]
    if not encrypted and level == 1:
        return (min(MAX_PRIME_BITS, budget),)
    special = min(MAX_PRIME_BITS, budget // (level + 1)) if encrypted else MIN_PRIME_BITS
    rest = budget - special
    return (*(min(MAX_PRIME_BITS, (rest + i) // level) for i in range(level)), special)
