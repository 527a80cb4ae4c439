"""Sums of products, on a few times eight residues (``_lanes``)."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from privacy.inference.ckks._lanes import LANES, VECTOR, Memory, Modulus, octets, spaced, step
from privacy.kernels import intrinsic

_ABREAST = 4
SUMMED = _ABREAST * LANES
"""Values that :func:`sum_products` adds up at once: several sums hide each other's latency."""
_PAIRS = 2
PAIRS_SUMMED = _PAIRS * LANES
"""Values that :func:`sum_pairs` adds up at once."""


@intrinsic
def sum_products(
    context: Any,
    total: Any,
    at: Any,
    values: Any,
    value: Any,
    value_step: Any,
    places: Any,
    weights: Any,
    weight: Any,
    weight_step: Any,
    first: Any,
    count: Any,
    adding: Any,
    q: Any,
    i: Any,
) -> Any:
    """32 values of Σ_t values[places[t]]·weights[t] for ``count`` terms from ``first`` on.

    They are stored at ``at`` of ``total``, as residues in [0, q); what is there is added if
    ``adding`` is 1. Values and weights begin at ``value`` and ``weight``, and one lies ``..._step``
    after the other. Four terms at most: ``_elementwise`` says why.
    """

    def body(
        builder: Any,
        modulus: Modulus,
        total: Memory,
        at: Any,
        values: Memory,
        value: Any,
        value_step: Any,
        places: Memory,
        weights: Memory,
        weight: Any,
        weight_step: Any,
        first: Any,
        count: Any,
        adding: Any,
    ) -> None:
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in range(_ABREAST)]
        targets = octets(builder, at, _ABREAST)
        with builder.if_then(builder.icmp_signed("!=", adding, adding.type(0))):
            for sum_, target in zip(sums, targets, strict=True):
                builder.store(total.load(target), sum_)
        with cgutils.for_range(builder, count) as loop:
            term = builder.add(first, loop.index)
            one = builder.add(value, builder.mul(places.entry(term), value_step))
            other = builder.add(weight, builder.mul(term, weight_step))
            for sum_, x, w in zip(
                sums, octets(builder, one, _ABREAST), octets(builder, other, _ABREAST), strict=True
            ):
                product = modulus.product(values.load(x), weights.load(w))
                builder.store(builder.fadd(builder.load(sum_), product), sum_)
        for sum_, target in zip(sums, targets, strict=True):
            total.store(modulus.canonical(modulus.reduced(builder.load(sum_))), target)

    operands = (total, at, values, value, value_step, places, weights, weight, weight_step)
    return step(body, *operands, first, count, adding, q, i)


@intrinsic
def sum_pairs(
    context: Any,
    total: Any,
    at: Any,
    at_step: Any,
    ones: Any,
    one: Any,
    one_step: Any,
    places: Any,
    others: Any,
    other: Any,
    other_step: Any,
    first: Any,
    count: Any,
    adding: Any,
    q: Any,
    i: Any,
) -> Any:
    """16 values of Σ_t of products of pairs: (a₀b₀, a₀b₁ + a₁b₀, a₁b₁), as :func:`sum_products`.

    The three sums lie ``at_step`` apart, and the two parts of a pair ``one_step`` and
    ``other_step``, of which the pairs take two each. Three terms at most.
    """

    def body(
        builder: Any,
        modulus: Modulus,
        total: Memory,
        at: Any,
        at_step: Any,
        ones: Memory,
        one: Any,
        one_step: Any,
        places: Memory,
        others: Memory,
        other: Any,
        other_step: Any,
        first: Any,
        count: Any,
        adding: Any,
    ) -> None:
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        targets = [octets(builder, each, _PAIRS) for each in spaced(builder, at, at_step, 3)]
        sums = [[cgutils.alloca_once_value(builder, zero) for _ in row] for row in targets]
        with builder.if_then(builder.icmp_signed("!=", adding, adding.type(0))):
            for row, places_of_row in zip(sums, targets, strict=True):
                for sum_, target in zip(row, places_of_row, strict=True):
                    builder.store(total.load(target), sum_)
        with cgutils.for_range(builder, count) as loop:
            term = builder.add(first, loop.index)
            two = term.type(2)
            place = builder.mul(builder.mul(places.entry(term), two), one_step)
            a = spaced(builder, builder.add(one, place), one_step, 2)
            place = builder.mul(builder.mul(term, two), other_step)
            b = spaced(builder, builder.add(other, place), other_step, 2)
            for lane in range(_PAIRS):
                x = [ones.load(octets(builder, each, _PAIRS)[lane]) for each in a]
                w = [others.load(octets(builder, each, _PAIRS)[lane]) for each in b]
                for left in range(2):
                    for right in range(2):
                        sum_ = sums[left + right][lane]
                        product = modulus.product(x[left], w[right])
                        builder.store(builder.fadd(builder.load(sum_), product), sum_)
        for row, places_of_row in zip(sums, targets, strict=True):
            for sum_, target in zip(row, places_of_row, strict=True):
                total.store(modulus.canonical(modulus.reduced(builder.load(sum_))), target)

    operands = (total, at, at_step, ones, one, one_step, places, others, other, other_step)
    return step(body, *operands, first, count, adding, q, i)
