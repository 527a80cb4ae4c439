"""Checks of arguments, where they are given: an error names the parameter, its value, the remedy.

A value of the wrong kind raises ``TypeError``, one out of range ``ValueError``. Both end with the
same remedy: ``give``, where it is passed, or the parameter's range.
"""

import difflib
import inspect
import math
import numbers
import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

if TYPE_CHECKING:
    from numpy.typing import NDArray

_P = ParamSpec("_P")
_T = TypeVar("_T")
_C = TypeVar("_C", bound=Callable[..., Any])

MOST_SECONDS = (2**31 - 1) // 1000
"""To wait for anything, 24 days: a socket's ``poll`` counts milliseconds in 31 bits, and cuts off
what is above them."""
_MOST_HOURS = 24 * 36_525


def refuse_old_names(old: Mapping[str, str]) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Have a function answer arguments of other names with how they are given now.

    A name in neither list is answered with the closest one of both, where one is close.

    Parameters
    ----------
    old : mapping of str to str
        What to give instead, by the name that is not taken.
    """

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        taken = [name for name in inspect.signature(function).parameters if name != "self"]

        @wraps(function)
        def checked(*args: _P.args, **given: _P.kwargs) -> _T:
            meant = {
                name: near[0]
                for name in given
                if name not in taken
                and (near := difflib.get_close_matches(name, [*old, *taken], n=1, cutoff=0.65))
            }
            if meant:
                instead = "; ".join(dict.fromkeys(old.get(name, name) for name in meant.values()))
                raise TypeError(f"{', '.join(meant)}: not an argument here; give {instead}")
            return function(*args, **given)

        return checked

    return decorate


def renamed(**new_names: str) -> Callable[[_C], _C]:
    """``refuse_old_names`` for a dataclass or function: an argument's new name, by its old one."""

    def decorate(target: _C) -> _C:
        if not isinstance(target, type):
            return cast("_C", refuse_old_names(new_names)(target))
        kind: Any = target
        kind.__init__ = refuse_old_names(new_names)(kind.__init__)
        return target

    return decorate


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    give: str = "",
) -> float:
    """A finite real number as a float; NumPy's and scalar arrays are taken, text and True are not.

    Parameters
    ----------
    name, value
        Of the argument.
    above, least, below, most : float, optional
        The range: without (``above``, ``below``) or with (``least``, ``most``) its end.
    give : str, optional
        The remedy; by default the range.
    """
    ends = {"above": above, "of at least": least, "below": below, "of at most": most}
    return float(_checked(name, value, numbers.Real, ends, give))


def maybe_infinite(name: str, value: Any, **limits: Any) -> float:
    """A number as by :func:`number`, or infinity."""
    end = unboxed(value)
    return math.inf if isinstance(end, float) and end == math.inf else number(name, value, **limits)


def whole(
    name: str, value: Any, *, least: int | None = None, most: int | None = None, give: str = ""
) -> int:
    """A whole number as an int, checked as by :func:`number`; 40.0 and True are none."""
    ends = {"of at least": least, "of at most": most}
    return operator.index(_checked(name, value, numbers.Integral, ends, give))


def seconds(name: str, value: Any, *, least: float | None = None) -> float:
    """Seconds to wait, above 0 or from ``least`` on, at most what every clock and socket takes."""
    first = "above 0" if least is None else f"of at least {least:g}"
    return number(
        name,
        value,
        above=0 if least is None else None,
        least=least,
        most=MOST_SECONDS,
        give=f"seconds {first}, at most {MOST_SECONDS:,} (24 days)",
    )


def lifetime_hours(name: str, value: Any) -> float:
    """Hours that something lasts, above 0, at most a century of them."""
    give = f"hours above 0, at most {_MOST_HOURS:,} (a century)"
    return number(name, value, above=0, most=_MOST_HOURS, give=give)


def delta(name: str, value: Any, *, units: str = "the population") -> float:
    """A δ that doubles can account: in (0, 1), and its inverse does not overflow.

    ``units`` names the number of protected units: δ of one over it protects none.
    """
    give = f"a number in [2.3e-308, 1), well below one over {units}"
    return number(name, value, least=sys.float_info.min, below=1, give=give)


def convert(record: object, name: str, check: Callable[..., Any], **limits: Any) -> None:
    """Make a dataclass's field the plain number that ``check`` returns of it, frozen or not.

    What a caller does later to the array that it gave does not change the record.
    """
    object.__setattr__(record, name, check(name, getattr(record, name), **limits))


def of_kind(name: str, value: Any, kind: type | tuple[type, ...], give: str) -> None:
    """Refuse a value that is not of a kind, or of one of several."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} is {shown(value)}; give {give}")


def has(name: str, value: Any, members: Iterable[str], give: str) -> None:
    """Refuse what lacks a protocol's members, and a class in place of its instance."""
    if isinstance(value, type) or not all(hasattr(value, member) for member in members):
        raise TypeError(f"{name} is {shown(value)}; give {give}")


def called_with(name: str, value: Any, arguments: int, give: str) -> None:
    """Refuse what cannot be called with so many positional arguments."""
    try:
        inspect.signature(value).bind(*range(arguments))
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {shown(value)}; give {give}") from None


def text(name: str, value: Any, give: str = "a name") -> str:
    """A text that is not empty."""
    of_kind(name, value, str, f"{give}, as text")
    if not value:
        raise ValueError(f"{name} is ''; give {give}")
    return str(value)


def exact_bytes(name: str, value: Any, size: int) -> bytes:
    """Bytes, ``size`` of them."""
    of_kind(name, value, bytes, f"{size} bytes")
    if len(value) != size:
        raise ValueError(f"{name} has {len(value)} bytes; it must have {size}")
    return bytes(value)


def lasting_file(name: str, value: Any) -> Path:
    """The absolute path of a file that the next process finds again; ``~`` is the user's home.

    A relative path is refused: it would be taken from where the process was started, under Flower
    by a SuperLink or a SuperNode, and so from another folder as often as not.
    """
    give = "the path of a file"
    if isinstance(value, bytes) or not isinstance(value, str | os.PathLike):
        raise TypeError(f"{name} is {shown(value)}; give {give}")
    given = os.fsdecode(value)
    if not given:
        raise ValueError(f"{name} is empty; give {give}")
    try:
        path = Path(given).expanduser()
    except RuntimeError as error:  # "~" and a name of nobody
        raise ValueError(f"{name} is {given!r}; give {give}: {error}") from error
    if not path.is_absolute():
        raise ValueError(
            f"{name} is {given!r}, a relative path; it would lie where the process was started, "
            "under Flower by its SuperLink or SuperNode, and may be another project's file, or a "
            f"new one the next time. Give an absolute path, as '~/{path}' or '{path.absolute()}'"
        )
    try:
        if b"\0" in os.fsencode(given):
            raise ValueError("it has a null byte")
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"{name} is {given!r:.80}; give {give}: {reason}") from error
    if is_folder:
        raise ValueError(f"{name} is {str(path)!r}, a folder; give {give}")
    return path


def sizes(name: str, value: Any, give: str) -> tuple[int, ...]:
    """Positive whole numbers; a number alone is that of one dimension."""
    given = value.tolist() if hasattr(value, "tolist") else value
    entries = (given,) if isinstance(given, numbers.Integral) else given
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise TypeError(f"{name} is {shown(value)}; give {give}")
    try:
        checked = tuple(whole(name, entry, least=1) for entry in entries)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is {shown(value)}; give {give}") from None
    if not checked:
        raise ValueError(f"{name} is {shown(value)}; give {give}")
    return checked


def interval(name: str, value: Any, give: str) -> tuple[float, float]:
    """Two finite numbers, the first below the second."""
    given = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{name} is {shown(value)}; give {give}")
    try:
        low, high = (number(name, end) for end in given)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name} is {shown(value)}; give {give}") from None
    if not low < high:
        raise ValueError(f"{name} is {shown(value)}; give {give}")
    return low, high


def double_array(name: str, values: Any, shape: str) -> "NDArray[Any]":
    """As :func:`real_array`, in double precision."""
    return real_array(name, values, shape).astype("float64", copy=False)


def real_array(name: str, values: Any, shape: str) -> "NDArray[Any]":
    """Real numbers of NumPy, torch or plain lists, in the precision that they have."""
    import numpy as np

    if _has_masked(values):
        raise TypeError(f"{name} has masked elements; give real numbers, {shape}")
    try:
        array = np.asarray(detached(values))
    except Exception as error:  # ragged lists, sparse tensors, tensors without values
        raise TypeError(f"{name} makes no array of numbers ({error}); give {shape}") from error
    if array.dtype.kind not in "biuf":
        kind = shown(values) if array.ndim == 0 else f"of {array.dtype}"
        raise TypeError(f"{name} is {kind}; give real numbers, {shape}")
    return array


def _has_masked(values: Any) -> bool:
    """Whether elements are masked, in lists too: as plain numbers they would be what lies below."""
    import numpy as np

    if isinstance(values, list | tuple):
        return any(map(_has_masked, values))
    return bool(np.ma.is_masked(values))


def detached(values: Any) -> Any:
    """Tensors as arrays, on whatever device and with whatever history, in lists too."""
    if isinstance(values, list | tuple):
        return [detached(value) for value in values]
    if not hasattr(values, "detach"):
        return values
    plain = values.detach().resolve_conj().resolve_neg().cpu()
    if plain.is_floating_point() and plain.element_size() not in (4, 8):
        plain = plain.float()  # NumPy knows no bfloat16
    return plain.numpy()


def shown(value: Any) -> str:
    """A value as an error shows it: itself if it is short and no secret, else its kind."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, bytes):  # it may be a secret
        return f"{len(value)} bytes"
    if isinstance(value, int) and abs(value) >= 10**30:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, tuple | list) and len(value) == 2:
        return f"({', '.join(map(shown, value))})"
    full = repr(value)
    return full if len(full) <= 60 and "\n" not in full else f"of type {type(value).__qualname__}"


def unboxed(value: Any) -> Any:
    """The number in an array or tensor without dimensions, such as ``x.max()``; else the value."""
    if getattr(value, "shape", None) != () or getattr(value, "mask", False):
        return value
    try:
        return value.item()
    except (AttributeError, RuntimeError):  # a tensor without values
        return value


_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "above": operator.gt,
    "of at least": operator.ge,
    "below": operator.lt,
    "of at most": operator.le,
}


def _checked(name: str, value: Any, kind: Any, ends: Mapping[str, float | None], give: str) -> Any:
    limits = {word: end for word, end in ends.items() if end is not None}
    remedy = f"give {give}" if give else f"it must be a {_range(kind, limits)}"
    number: Any = unboxed(value)
    if isinstance(number, bool) or not isinstance(number, kind):
        raise TypeError(f"{name} is {shown(value)}; {remedy}")
    try:
        double = float(number)
    except OverflowError:  # an integer beyond all doubles
        number = double = math.inf
    number = double if kind is numbers.Real else number
    finite = abs(number) < math.inf  # NaN is not
    if not (finite and all(_COMPARED[word](number, end) for word, end in limits.items())):
        raise ValueError(f"{name} is {shown(value)}; {remedy}")
    return number


def _range(kind: type, limits: Mapping[str, float]) -> str:
    """A range in words: ``number in [0, 1)``, ``whole number of at least 1``."""
    whole = "whole " if kind is numbers.Integral else ""
    if len(limits) == 2:
        (left, low), (right, high) = limits.items()
        opens, closes = "(["[left == "of at least"], ")]"[right == "of at most"]
        return f"{whole}number in {opens}{_end(low)}, {_end(high)}{closes}"
    words = "".join(f" {word} {_end(end)}" for word, end in limits.items())
    return f"{whole or 'finite '}number{words}"


def _end(value: float) -> str:
    return str(value) if isinstance(value, int) and value < 10**15 else f"{value:g}"
