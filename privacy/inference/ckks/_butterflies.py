"""The steps of the number-theoretic transforms, on eight residues at a time (``_lanes``)."""

from typing import Any

from privacy.inference.ckks._lanes import (
    LANES,
    Body,
    Memory,
    Modulus,
    octets,
    spaced,
    step,
    transposed,
)
from privacy.kernels import intrinsic

# --- steps of the forward transform ---------------------------------------------------------


def _mix_quarters(reducing: bool) -> Body:
    def body(
        builder: Any, modulus: Modulus, memory: Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        outer, low, high = factors
        places = spaced(builder, place, quarter, 4)
        x = [memory.load(at) for at in places]
        if reducing:
            x[:2] = map(modulus.reduced, x[:2])
        x[0], x[2] = modulus.mix(x[0], x[2], outer)
        x[1], x[3] = modulus.mix(x[1], x[3], outer)
        x[0], x[1] = modulus.mix(x[0], x[1], low)
        x[2], x[3] = modulus.mix(x[2], x[3], high)
        for value, at in zip(x, places, strict=True):
            memory.store(value, at)

    return body


@intrinsic
def mix_quarters(
    context: Any, values: Any, place: Any, quarter: Any, a: Any, b: Any, c: Any, q: Any, i: Any
) -> Any:
    """Two stages on eight times four values that lie ``quarter`` apart."""
    return step(_mix_quarters(False), values, place, quarter, a, b, c, q, i)


@intrinsic
def mix_quarters_reducing(
    context: Any, values: Any, place: Any, quarter: Any, a: Any, b: Any, c: Any, q: Any, i: Any
) -> Any:
    """As :func:`mix_quarters`, with those values reduced that products do not reduce."""
    return step(_mix_quarters(True), values, place, quarter, a, b, c, q, i)


@intrinsic
def mix_halves(context: Any, values: Any, place: Any, factor: Any, q: Any, i: Any) -> Any:
    """One stage on sixteen values."""

    def body(builder: Any, modulus: Modulus, memory: Memory, place: Any, factor: Any) -> None:
        one, other = octets(builder, place, 2)
        x, y = modulus.mix(modulus.reduced(memory.load(one)), memory.load(other), factor)
        memory.store(x, one)
        memory.store(y, other)

    return step(body, values, place, factor, q, i)


@intrinsic
def mix_last(context: Any, values: Any, place: Any, table: Any, start: Any, q: Any, i: Any) -> Any:
    """The last three stages on 64 values, which become residues in [0, q).

    ``table`` holds seven vectors of factors from ``start`` on: of one, two and four butterflies in
    each block of eight values, the blocks side by side.
    """

    def body(
        builder: Any, modulus: Modulus, memory: Memory, place: Any, table: Memory, start: Any
    ) -> None:
        places = octets(builder, place, LANES)
        x = transposed(builder, [memory.load(at) for at in places])
        factors = [table.load(at) for at in octets(builder, start, LANES - 1)]
        x[:4] = map(modulus.reduced, x[:4])
        for distance in (4, 2, 1):
            for at in range(LANES):
                if not at & distance:
                    factor = factors[4 // distance - 1 + at // (2 * distance)]
                    x[at], x[at + distance] = modulus.mix(x[at], x[at + distance], factor)
        x = transposed(builder, [modulus.canonical(modulus.reduced(value)) for value in x])
        for value, at in zip(x, places, strict=True):
            memory.store(value, at)

    return step(body, values, place, table, start, q, i)


# --- steps of the inverse transform ---------------------------------------------------------


@intrinsic
def unmix_first(
    context: Any, values: Any, place: Any, table: Any, start: Any, q: Any, i: Any
) -> Any:
    """The first three stages of the inverse, on 64 residues; ``table`` as in :func:`mix_last`."""

    def body(
        builder: Any, modulus: Modulus, memory: Memory, place: Any, table: Memory, start: Any
    ) -> None:
        places = octets(builder, place, LANES)
        x = transposed(builder, [memory.load(at) for at in places])
        factors = [table.load(at) for at in octets(builder, start, LANES - 1)]
        for distance in (1, 2, 4):
            for at in range(LANES):
                if not at & distance:
                    factor = factors[4 // distance - 1 + at // (2 * distance)]
                    x[at], x[at + distance] = modulus.unmix(x[at], x[at + distance], factor)
        x[:4] = map(modulus.reduced, x[:4])
        for value, at in zip(transposed(builder, x), places, strict=True):
            memory.store(value, at)

    return step(body, values, place, table, start, q, i)


@intrinsic
def unmix_halves(context: Any, values: Any, place: Any, factor: Any, q: Any, i: Any) -> Any:
    """One stage of the inverse on sixteen values."""

    def body(builder: Any, modulus: Modulus, memory: Memory, place: Any, factor: Any) -> None:
        one, other = octets(builder, place, 2)
        x, y = modulus.unmix(memory.load(one), memory.load(other), factor)
        memory.store(modulus.reduced(x), one)
        memory.store(y, other)

    return step(body, values, place, factor, q, i)


@intrinsic
def unmix_quarters(
    context: Any, values: Any, place: Any, quarter: Any, a: Any, b: Any, c: Any, q: Any, i: Any
) -> Any:
    """Two stages of the inverse on eight times four values that lie ``quarter`` apart."""

    def body(
        builder: Any, modulus: Modulus, memory: Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        outer, low, high = factors
        places = spaced(builder, place, quarter, 4)
        x = [memory.load(at) for at in places]
        x[0], x[1] = modulus.unmix(x[0], x[1], low)
        x[2], x[3] = modulus.unmix(x[2], x[3], high)
        x[0], x[2] = modulus.unmix(x[0], x[2], outer)
        x[1], x[3] = modulus.unmix(x[1], x[3], outer)
        x[:2] = map(modulus.reduced, x[:2])
        for value, at in zip(x, places, strict=True):
            memory.store(value, at)

    return step(body, values, place, quarter, a, b, c, q, i)


@intrinsic
def unmix_last(
    context: Any,
    values: Any,
    place: Any,
    quarter: Any,
    low: Any,
    high: Any,
    share: Any,
    outer: Any,
    q: Any,
    i: Any,
) -> Any:
    """The last two stages of the inverse, and the division by N: residues in [0, q).

    ``share`` is 1/N and ``outer`` the last stage's factor, times 1/N.
    """

    def body(
        builder: Any, modulus: Modulus, memory: Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        low, high, share, outer = factors
        places = spaced(builder, place, quarter, 4)
        x = [memory.load(at) for at in places]
        x[0], x[1] = modulus.unmix(x[0], x[1], low)
        x[2], x[3] = modulus.unmix(x[2], x[3], high)
        for at, factor in enumerate((share, share, outer, outer)):
            first, second = x[at % 2], x[at % 2 + 2]
            total = builder.fadd(first, second) if at < 2 else builder.fsub(first, second)
            value = modulus.canonical(modulus.product(modulus.reduced(total), factor))
            memory.store(value, places[at])

    return step(body, values, place, quarter, low, high, share, outer, q, i)
