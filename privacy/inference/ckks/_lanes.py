"""Eight residues at a time: arithmetic modulo a prime, as instructions for the compiler.

A residue is a whole number in a double. A product modulo a prime q below 2^50 takes six operations
(van der Hoeven, Lecerf and Quintin 2016, "Modular SIMD arithmetic in Mathemagix", section 3)::

    h = x·w,  l = fma(x, w, -h),  b = rint(h/q),  c = fma(-b, q, h) + l

``h + l`` is the product exactly, ``b`` its quotient up to a unit or two, and ``c`` = x·w - b·q
exactly; how large x may be is argued in :mod:`privacy.inference.ckks.transforms`.

Steps are written in LLVM's intermediate code, through numba, so that nothing hangs on whether a
compiler sees by itself that a loop can be vectorised: eight doubles are one register with AVX-512,
two with AVX2. A processor without fused multiply-add calls the C library for it, slowly.
"""

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError

from privacy.kernels import intrinsic

LANES = 8

VECTOR = ir.VectorType(ir.DoubleType(), LANES)
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
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INDEX, 0))
    return _shuffled(builder, first, undefined, [0] * LANES)


def _shuffled(builder: Any, one: Any, other: Any, places: Sequence[int]) -> Any:
    kind = ir.VectorType(_INDEX, LANES)
    return builder.shuffle_vector(one, other, ir.Constant(kind, list(places)))


def transposed(builder: Any, rows: Sequence[Any]) -> list[Any]:
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


class Memory:
    """Vectors of an array of doubles."""

    def __init__(self, context: Any, builder: Any, kind: Any, array: Any) -> None:
        if kind.layout != "C":
            raise TypingError("a kernel reads arrays as they lie in memory: give contiguous ones")
        self._builder = builder
        self._data = context.make_array(kind)(context, builder, array).data

    def _at(self, place: Any) -> Any:
        pointer = self._builder.gep(self._data, [place])
        return self._builder.bitcast(pointer, VECTOR.as_pointer())

    def load(self, place: Any) -> Any:
        return self._builder.load(self._at(place), align=8)

    def store(self, value: Any, place: Any) -> None:
        self._builder.store(value, self._at(place), align=8)

    def entry(self, place: Any) -> Any:
        """One element, of whatever kind."""
        return self._builder.load(self._builder.gep(self._data, [place]))


class Modulus:
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
        zero = ir.Constant(VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered("<", x, zero), builder.fadd(x, self._prime), x)

    def mix(self, x: Any, y: Any, w: Any) -> tuple[Any, Any]:
        """Cooley and Tukey's butterfly: x + w·y and x - w·y."""
        product = self.product(y, w)
        return self._builder.fadd(x, product), self._builder.fsub(x, product)

    def unmix(self, x: Any, y: Any, w: Any) -> tuple[Any, Any]:
        """Gentleman and Sande's butterfly: x + y and w·(x - y)."""
        return self._builder.fadd(x, y), self.product(self._builder.fsub(x, y), w)


Body = Callable[..., None]


def step(body: Body, *kinds: Any) -> Any:
    """What an intrinsic returns: ``body`` with arrays as memory and doubles as vectors.

    The last two arguments are a prime and its inverse as a double.
    """

    def generate(context: Any, builder: Any, signature: Any, given: Sequence[Any]) -> Any:
        operands = []
        for kind, value in zip(signature.args, given, strict=True):
            if isinstance(kind, types.Array):
                operands.append(Memory(context, builder, kind, value))
            elif isinstance(kind, types.Float):
                operands.append(_spread(builder, value))
            else:
                operands.append(value)
        *operands, prime, inverse = operands
        body(builder, Modulus(builder, prime, inverse), *operands)
        return context.get_dummy_value()

    return types.void(*kinds), generate


def spaced(builder: Any, place: Any, step: Any, count: int) -> list[Any]:
    """``place``, ``place`` + ``step``, ..."""
    places = [place]
    while len(places) < count:
        places.append(builder.add(places[-1], step))
    return places


def octets(builder: Any, place: Any, count: int) -> list[Any]:
    return spaced(builder, place, ir.Constant(place.type, LANES), count)
