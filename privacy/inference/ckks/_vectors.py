"""Eight residues at a time: the steps of the transforms, as instructions for the compiler.

A residue is a whole number in a double. A product modulo a prime q below 2^50 takes six operations
(van der Hoeven, Lecerf and Quintin 2016, "Modular SIMD arithmetic in Mathemagix", section 3)::

    h = x·w,  l = fma(x, w, -h),  b = rint(h/q),  c = fma(-b, q, h) + l

``h + l`` is the product exactly, ``b`` its quotient up to a unit or two, and ``c`` = x·w - b·q
exactly; how large x may be is argued in :mod:`privacy.inference.ckks.transforms`.

The steps are written in LLVM's intermediate code, through numba, so that nothing hangs on whether a
compiler sees by itself that a loop can be vectorised: eight doubles are one register with AVX-512,
two with AVX2. A processor without fused multiply-add calls the C library for it, slowly.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from privacy.kernels import intrinsic

LANES = 8

_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_INDEX = ir.IntType(32)


def _call(builder: Any, name: str, *operands: Any) -> Any:
    """One of LLVM's own functions, on vectors or on doubles."""
    kind = operands[0].type
    suffix = f"v{LANES}f64" if isinstance(kind, ir.VectorType) else "f64"
    signature = ir.FunctionType(kind, [kind] * len(operands))
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.{name}.{suffix}")
    return builder.call(function, operands)


@intrinsic
def fma(context: Any, one: Any, other: Any, addend: Any) -> Any:
    """``one``·``other`` + ``addend``, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
        return _call(builder, "fma", *given)

    return types.float64(types.float64, types.float64, types.float64), generate


@intrinsic
def rint(context: Any, value: Any) -> Any:
    """The nearest whole number."""

    def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
        return _call(builder, "rint", *given)

    return types.float64(types.float64), generate


def _spread(builder: Any, scalar: Any) -> Any:
    """Eight copies of a double."""
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INDEX, 0))
    return _shuffled(builder, first, undefined, [0] * LANES)


def _shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    kind = ir.VectorType(_INDEX, LANES)
    return builder.shuffle_vector(one, other, ir.Constant(kind, list(places)))


def _transposed(builder: Any, rows: Sequence[Any]) -> list[Any]:
    """Eight vectors, as an 8 x 8 matrix, transposed: three rounds of exchanges."""
    rows = list(rows)
    for width in (1, 2, 4):
        first = [c if not c & width else LANES + c - width for c in range(LANES)]
        second = [c + width if not c & width else LANES + c for c in range(LANES)]
        for i in range(LANES):
            if not i & width:
                one, other = rows[i], rows[i + width]
                rows[i] = _shuffled(builder, one, other, first)
                rows[i + width] = _shuffled(builder, one, other, second)
    return rows


class _Memory:
    """Vectors of an array of doubles."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        self._builder = builder
        self._data = context.make_array(kind)(context, builder, array).data

    def _at(self, place: Any) -> Any:
        pointer = self._builder.gep(self._data, [place])
        return self._builder.bitcast(pointer, _VECTOR.as_pointer())

    def load(self, place: Any) -> Any:
        return self._builder.load(self._at(place), align=8)

    def store(self, value: Any, place: Any) -> None:
        self._builder.store(value, self._at(place), align=8)


class _Modulus:
    """Arithmetic modulo a prime."""

    def __init__(self, builder: Any, prime: Any, inverse: Any) -> None:
        self._builder = builder
        self._prime, self._inverse = prime, inverse

    def reduced(self, x: Any) -> Any:
        """``x`` - rint(x/q)·q, of at most q/2 and a little."""
        builder = self._builder
        quotient = _call(builder, "rint", builder.fmul(x, self._inverse))
        return _call(builder, "fma", builder.fneg(quotient), self._prime, x)

    def product(self, x: Any, w: Any) -> Any:
        """``x``·``w`` - b·q."""
        builder = self._builder
        high = builder.fmul(x, w)
        low = _call(builder, "fma", x, w, builder.fneg(high))
        quotient = _call(builder, "rint", builder.fmul(high, self._inverse))
        rest = _call(builder, "fma", builder.fneg(quotient), self._prime, high)
        return builder.fadd(rest, low)

    def canonical(self, x: Any) -> Any:
        """A residue between -q and q, brought to [0, q)."""
        builder = self._builder
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", x, zero), builder.fadd(x, self._prime), x)

    def mix(self, x: Any, y: Any, w: Any) -> tuple[Any, Any]:
        """Cooley and Tukey's butterfly: x + w·y and x - w·y."""
        product = self.product(y, w)
        return self._builder.fadd(x, product), self._builder.fsub(x, product)

    def unmix(self, x: Any, y: Any, w: Any) -> tuple[Any, Any]:
        """Gentleman and Sande's butterfly: x + y and w·(x - y)."""
        return self._builder.fadd(x, y), self.product(self._builder.fsub(x, y), w)


_Body = Callable[..., None]


def _step(body: _Body, *kinds: Any) -> Any:
    """What an intrinsic returns: ``body`` with arrays as memory and doubles as vectors.

    The last two arguments are a prime and its inverse as a double.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
        operands = []
        for kind, value in zip(signature.args, given, strict=True):
            if isinstance(kind, types.Array):
                operands.append(_Memory(context, builder, kind, value))
            elif isinstance(kind, types.Float):
                operands.append(_spread(builder, value))
            else:
                operands.append(value)
        *operands, prime, inverse = operands
        body(builder, _Modulus(builder, prime, inverse), *operands)
        return context.get_dummy_value()

    return types.void(*kinds), generate


def _spaced(builder: Any, place: Any, step: Any, count: int) -> list[Any]:
    """``place``, ``place`` + ``step``, ..."""
    places = [place]
    while len(places) < count:
        places.append(builder.add(places[-1], step))
    return places


def _octets(builder: Any, place: Any, count: int) -> list[Any]:
    return _spaced(builder, place, ir.Constant(place.type, LANES), count)


# --- steps of the forward transform ---------------------------------------------------------


def _mix_quarters(reducing: bool) -> _Body:
    def body(
        builder: Any, modulus: _Modulus, memory: _Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        outer, low, high = factors
        places = _spaced(builder, place, quarter, 4)
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
    return _step(_mix_quarters(False), values, place, quarter, a, b, c, q, i)


@intrinsic
def mix_quarters_reducing(
    context: Any, values: Any, place: Any, quarter: Any, a: Any, b: Any, c: Any, q: Any, i: Any
) -> Any:
    """As :func:`mix_quarters`, with those values reduced that products do not reduce."""
    return _step(_mix_quarters(True), values, place, quarter, a, b, c, q, i)


@intrinsic
def mix_halves(context: Any, values: Any, place: Any, factor: Any, q: Any, i: Any) -> Any:
    """One stage on sixteen values."""

    def body(builder: Any, modulus: _Modulus, memory: _Memory, place: Any, factor: Any) -> None:
        one, other = _octets(builder, place, 2)
        x, y = modulus.mix(modulus.reduced(memory.load(one)), memory.load(other), factor)
        memory.store(x, one)
        memory.store(y, other)

    return _step(body, values, place, factor, q, i)


@intrinsic
def mix_last(context: Any, values: Any, place: Any, table: Any, start: Any, q: Any, i: Any) -> Any:
    """The last three stages on 64 values, which become residues in [0, q).

    ``table`` holds seven vectors of factors from ``start`` on: of one, two and four butterflies in
    each block of eight values, the blocks side by side.
    """

    def body(
        builder: Any, modulus: _Modulus, memory: _Memory, place: Any, table: _Memory, start: Any
    ) -> None:
        places = _octets(builder, place, LANES)
        x = _transposed(builder, [memory.load(at) for at in places])
        factors = [table.load(at) for at in _octets(builder, start, LANES - 1)]
        x[:4] = map(modulus.reduced, x[:4])
        for distance in (4, 2, 1):
            for at in range(LANES):
                if not at & distance:
                    factor = factors[4 // distance - 1 + at // (2 * distance)]
                    x[at], x[at + distance] = modulus.mix(x[at], x[at + distance], factor)
        x = _transposed(builder, [modulus.canonical(modulus.reduced(value)) for value in x])
        for value, at in zip(x, places, strict=True):
            memory.store(value, at)

    return _step(body, values, place, table, start, q, i)


# --- steps of the inverse transform ---------------------------------------------------------


@intrinsic
def unmix_first(
    context: Any, values: Any, place: Any, table: Any, start: Any, q: Any, i: Any
) -> Any:
    """The first three stages of the inverse, on 64 residues; ``table`` as in :func:`mix_last`."""

    def body(
        builder: Any, modulus: _Modulus, memory: _Memory, place: Any, table: _Memory, start: Any
    ) -> None:
        places = _octets(builder, place, LANES)
        x = _transposed(builder, [memory.load(at) for at in places])
        factors = [table.load(at) for at in _octets(builder, start, LANES - 1)]
        for distance in (1, 2, 4):
            for at in range(LANES):
                if not at & distance:
                    factor = factors[4 // distance - 1 + at // (2 * distance)]
                    x[at], x[at + distance] = modulus.unmix(x[at], x[at + distance], factor)
        x[:4] = map(modulus.reduced, x[:4])
        for value, at in zip(_transposed(builder, x), places, strict=True):
            memory.store(value, at)

    return _step(body, values, place, table, start, q, i)


@intrinsic
def unmix_halves(context: Any, values: Any, place: Any, factor: Any, q: Any, i: Any) -> Any:
    """One stage of the inverse on sixteen values."""

    def body(builder: Any, modulus: _Modulus, memory: _Memory, place: Any, factor: Any) -> None:
        one, other = _octets(builder, place, 2)
        x, y = modulus.unmix(memory.load(one), memory.load(other), factor)
        memory.store(modulus.reduced(x), one)
        memory.store(y, other)

    return _step(body, values, place, factor, q, i)


@intrinsic
def unmix_quarters(
    context: Any, values: Any, place: Any, quarter: Any, a: Any, b: Any, c: Any, q: Any, i: Any
) -> Any:
    """Two stages of the inverse on eight times four values that lie ``quarter`` apart."""

    def body(
        builder: Any, modulus: _Modulus, memory: _Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        outer, low, high = factors
        places = _spaced(builder, place, quarter, 4)
        x = [memory.load(at) for at in places]
        x[0], x[1] = modulus.unmix(x[0], x[1], low)
        x[2], x[3] = modulus.unmix(x[2], x[3], high)
        x[0], x[2] = modulus.unmix(x[0], x[2], outer)
        x[1], x[3] = modulus.unmix(x[1], x[3], outer)
        x[:2] = map(modulus.reduced, x[:2])
        for value, at in zip(x, places, strict=True):
            memory.store(value, at)

    return _step(body, values, place, quarter, a, b, c, q, i)


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
        builder: Any, modulus: _Modulus, memory: _Memory, place: Any, quarter: Any, *factors: Any
    ) -> None:
        low, high, share, outer = factors
        places = _spaced(builder, place, quarter, 4)
        x = [memory.load(at) for at in places]
        x[0], x[1] = modulus.unmix(x[0], x[1], low)
        x[2], x[3] = modulus.unmix(x[2], x[3], high)
        for at, factor in enumerate((share, share, outer, outer)):
            first, second = x[at % 2], x[at % 2 + 2]
            total = builder.fadd(first, second) if at < 2 else builder.fsub(first, second)
            value = modulus.canonical(modulus.product(modulus.reduced(total), factor))
            memory.store(value, places[at])

    return _step(body, values, place, quarter, low, high, share, outer, q, i)


# --- products and their sums ----------------------------------------------------------------


@intrinsic
def key_products(
    context: Any,
    total: Any,
    first: Any,
    second: Any,
    digits: Any,
    digit: Any,
    digit_step: Any,
    key: Any,
    part: Any,
    part_step: Any,
    component_step: Any,
    count: Any,
    adding: Any,
    q: Any,
    i: Any,
) -> Any:
    """Eight values of both components of a key's product with ``count`` digits, at most four.

    They are stored at ``first`` and ``second`` of ``total``, as residues in [0, q); what is there
    is added if ``adding`` is 1. Digits lie ``digit_step`` apart, the parts of the key
    ``part_step``, and the two components of a part ``component_step``.
    """

    def body(
        builder: Any,
        modulus: _Modulus,
        total: _Memory,
        first: Any,
        second: Any,
        digits: _Memory,
        digit: Any,
        digit_step: Any,
        key: _Memory,
        part: Any,
        part_step: Any,
        component_step: Any,
        count: Any,
        adding: Any,
    ) -> None:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        places = (first, second)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in places]
        with builder.if_then(builder.icmp_signed("!=", adding, adding.type(0))):
            for sum_, place in zip(sums, places, strict=True):
                builder.store(total.load(place), sum_)
        with cgutils.for_range(builder, count) as loop:
            value = digits.load(builder.add(digit, builder.mul(loop.index, digit_step)))
            at = builder.add(part, builder.mul(loop.index, part_step))
            for sum_, offset in zip(sums, (at, builder.add(at, component_step)), strict=True):
                product = modulus.product(value, key.load(offset))
                builder.store(builder.fadd(builder.load(sum_), product), sum_)
        for sum_, place in zip(sums, places, strict=True):
            value = modulus.canonical(modulus.reduced(builder.load(sum_)))
            total.store(value, place)

    operands = (total, first, second, digits, digit, digit_step, key, part, part_step)
    return _step(body, *operands, component_step, count, adding, q, i)
