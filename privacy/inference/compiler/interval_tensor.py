"""Bounds in a tensor's place: a model's own forward computes with intervals.

PyTorch hands its functions to an argument with ``__torch_function__``, so that a forward runs as it
is written, and gradients reach its weights. A polynomial of a value, the same for every element,
stays one until something else needs it: written out, an activation is bounded as a layer is.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from privacy.inference.compiler.lowering import arithmetic, weights
from privacy.inference.compiler.lowering.operations import ARITHMETIC, FUNCTIONS

_Number = float | Tensor
_ASKED = ("shape", "ndim", "dtype", "device", "size", "dim", "numel", "is_floating_point")
"""What a forward may ask of a value, and decide by."""
_REVERSED = {"radd": "add", "iadd": "add", "isub": "sub", "rmul": "mul", "imul": "mul"}
_REVERSED |= {"itruediv": "truediv", "idiv": "div"}


class IntervalTensor:
    """Stands for all tensors whose elements lie within ``radius`` of ``centre``.

    Parameters
    ----------
    centre, radius : Tensor
        Of one shape, the batch first.
    coefficients : sequence of float or Tensor
        The value is this polynomial of each element, lowest power first; by default itself.
    """

    def __init__(
        self, centre: Tensor, radius: Tensor, coefficients: Sequence[_Number] = (0.0, 1.0)
    ) -> None:
        self.base, self.coefficients = (centre, radius), tuple(coefficients)

    @cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Centre and radius of the value itself."""
        return _through(self.coefficients, *self.base)

    def polynomial(self, coefficients: Sequence[_Number]) -> "IntervalTensor":
        """Another polynomial of each element of the same value."""
        centre, radius = self.base
        return IntervalTensor(centre, radius, coefficients)

    def __getattr__(self, name: str) -> Any:
        if name in _ASKED:
            return getattr(self.base[0], name)
        if name in ("T", "mT"):
            return _affine(lambda x: getattr(x, name), (self,), {})
        if not callable(getattr(Tensor, name, None)):
            raise AttributeError(name)
        return lambda *args, **kwargs: _run(name, getattr(Tensor, name), (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls, function: Any, _: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _run(function.__name__.strip("_"), function, args, kwargs or {})

    def __add__(self, other: Any) -> "IntervalTensor":
        return _total(self, other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> "IntervalTensor":
        return _total(self, other, -1.0)

    def __rsub__(self, other: Any) -> "IntervalTensor":
        return _total(_product(self, -1.0), other, 1.0)

    def __mul__(self, other: Any) -> "IntervalTensor":
        return _product(self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> "IntervalTensor":
        return _product(self, 1 / other)

    def __neg__(self) -> "IntervalTensor":
        return _product(self, -1.0)

    def __pow__(self, exponent: Any) -> "IntervalTensor":
        return _power(self, exponent)

    def __matmul__(self, other: Any) -> Any:
        return _run("matmul", torch.matmul, (self, other), {})

    def __getitem__(self, where: Any) -> Any:
        return _affine(lambda x: x[where], (self,), {})

    def __len__(self) -> int:
        return len(self.base[0])

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


class NoIntervalError(Exception):
    """An operation that has no interval arithmetic, by its name."""


def _run(name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
    """A function of PyTorch's, some of whose arguments are intervals."""
    name = _REVERSED.get(name, name)
    if name in ARITHMETIC:
        return _ELEMENTWISE[ARITHMETIC[name]](*args, **kwargs)
    if name in ("full_like", "ones_like", "zeros_like"):
        fill = {"ones_like": 1.0, "zeros_like": 0.0}.get(name, (*args, kwargs.get("fill_value"))[1])
        return args[0].polynomial((fill,))
    lowering = FUNCTIONS.get(name)
    if lowering is None or kwargs.get("mode") == "bicubic" or name == "getattr":
        raise NoIntervalError(name)
    if lowering is weights.dropped:
        return args[0]
    if lowering is weights.normalised and (kwargs.get("training") or args[5:6] == (True,)):
        raise NoIntervalError(f"{name} in training mode")
    return _affine(function, args, kwargs)


def _affine(function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """An affine function whose weights are tensors, or of which all are positive.

    The centre goes through it, and the radius through it with every weight's size.
    """
    centre = function(*_mapped(args, _centre), **_mapped(kwargs, _centre))
    radius = function(*_mapped(args, _radius), **_mapped(kwargs, _radius))
    nothing = function(*_mapped(args, _nothing), **_mapped(kwargs, _nothing))
    if isinstance(centre, Tensor):
        return IntervalTensor(centre, radius - nothing)
    parts = zip(centre, radius, nothing, strict=True)
    return tuple(IntervalTensor(middle, reach - least) for middle, reach, least in parts)


def _mapped(argument: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(argument, tuple | list):
        return type(argument)(_mapped(each, change) for each in argument)
    if isinstance(argument, Mapping):
        return {name: _mapped(each, change) for name, each in argument.items()}
    return change(argument)


def _centre(argument: Any) -> Any:
    return argument.ends[0] if isinstance(argument, IntervalTensor) else argument


def _radius(argument: Any) -> Any:
    if isinstance(argument, Tensor) and argument.is_floating_point():
        return argument.abs()
    return argument.ends[1] if isinstance(argument, IntervalTensor) else argument


def _nothing(argument: Any) -> Any:
    if isinstance(argument, IntervalTensor):
        return torch.zeros_like(argument.ends[1])
    return _radius(argument)


def _is_number(value: Any) -> bool:
    return not isinstance(value, IntervalTensor | Tensor) or (
        isinstance(value, Tensor) and value.numel() == 1
    )


def _total(one: Any, other: Any, weight: float) -> IntervalTensor:
    """The first plus ``weight`` times the other."""
    if not isinstance(one, IntervalTensor):
        return _total(_product(other, weight), one, 1.0)
    if _is_number(other):
        first, *others = one.coefficients
        return one.polynomial((first + weight * _scalar(other), *others))
    if isinstance(other, Tensor):
        centre, radius = one.ends
        return IntervalTensor(centre + weight * other, radius + torch.zeros_like(other))
    if one.base[0] is other.base[0]:
        longest = max(len(one.coefficients), len(other.coefficients))
        pairs = (
            _coefficient(one, power) + weight * _coefficient(other, power)
            for power in range(longest)
        )
        return one.polynomial(tuple(pairs))
    (centre, radius), (centre_2, radius_2) = one.ends, other.ends
    return IntervalTensor(centre + weight * centre_2, radius + abs(weight) * radius_2)


def _product(one: Any, other: Any) -> IntervalTensor:
    """Element by element."""
    if not isinstance(one, IntervalTensor):
        return _product(other, one)
    if _is_number(other):
        factor = _scalar(other)
        return one.polynomial(tuple(factor * each for each in one.coefficients))
    centre, radius = one.ends
    if isinstance(other, Tensor):
        return IntervalTensor(centre * other, radius * other.abs())
    if one.base[0] is other.base[0]:
        terms: list[_Number] = [0.0] * (len(one.coefficients) + len(other.coefficients) - 1)
        for power, first in enumerate(one.coefficients):
            for power_2, second in enumerate(other.coefficients):
                terms[power + power_2] = terms[power + power_2] + first * second
        return one.polynomial(terms)
    # As it is evaluated: two squares, of factors that are brought to one size.
    centre_2, radius_2 = other.ends
    sizes = [float((c.abs() + r).detach().max()) for c, r in (one.ends, other.ends)]
    ratio = math.sqrt(sizes[1] / sizes[0]) if min(sizes) > 0 and math.isfinite(max(sizes)) else 1.0
    reach = ratio * radius + radius_2 / ratio
    quarter = (0.0, 0.0, 0.25)
    plus = _through(quarter, ratio * centre + centre_2 / ratio, reach)
    minus = _through(quarter, ratio * centre - centre_2 / ratio, reach)
    return IntervalTensor(plus[0] - minus[0], plus[1] + minus[1])


def _power(one: Any, exponent: Any) -> IntervalTensor:
    if not isinstance(one, IntervalTensor) or exponent not in range(1, 8):
        raise NoIntervalError("pow with an exponent that is no whole number from 1 to 7")
    made = one
    for _ in range(int(exponent) - 1):
        made = _product(made, one)
    return made


def _scalar(value: Any) -> _Number:
    return value.reshape(()) if isinstance(value, Tensor) else float(value)


def _coefficient(value: IntervalTensor, power: int) -> _Number:
    return value.coefficients[power] if power < len(value.coefficients) else 0.0


def _through(
    coefficients: Sequence[_Number], centre: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """A polynomial's Taylor series around the centre, every term of it at its largest."""
    if coefficients == (0.0, 1.0):
        return centre, radius
    middle, reach = torch.zeros_like(centre), torch.zeros_like(centre)
    for order in range(len(coefficients)):
        terms = (
            math.comb(power, order) * coefficients[power] * centre ** (power - order)
            for power in range(order, len(coefficients))
        )
        term = sum(terms, start=torch.zeros_like(centre)) * radius**order
        if order == 0:
            middle = middle + term
        elif order % 2:
            reach = reach + term.abs()
        else:  # an even power is not below zero
            middle, reach = middle + term / 2, reach + term.abs() / 2
    return middle, reach


_ELEMENTWISE: dict[Callable[..., Any], Callable[..., IntervalTensor]] = {
    arithmetic.added: lambda input, other, alpha=1.0: _total(input, other, alpha),
    arithmetic.subtracted: lambda input, other, alpha=1.0: _total(input, other, -alpha),
    arithmetic.subtracted_from: lambda input, other, alpha=1.0: _total(other, input, -alpha),
    arithmetic.times: _product,
    arithmetic.divided: lambda input, other: _product(input, 1 / other),
    arithmetic.negated: lambda input: _product(input, -1.0),
    arithmetic.squared: lambda input: _product(input, input),
    arithmetic.powered: _power,
}
