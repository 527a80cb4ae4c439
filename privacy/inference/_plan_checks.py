"""Checks of a plan, each field by itself and beside the others: a stranger may have written it."""

import math
import string
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from privacy.arguments import shown
from privacy.inference._blind_plan_checks import check_blind_layers
from privacy.inference.ckks import MAX_MODULUS_BITS, MAX_PRIME_BITS
from privacy.inference.input_range import input_range
from privacy.inference.rescaling import BOTH, NEVER

if TYPE_CHECKING:
    from privacy.inference.plan import Plan

_MAX_BITS = 1000
"""Of a scale or a bound: its power of two is a double."""
_MAX_ELEMENTS = 2**31 - 1
"""Of an input: a packing names its elements with 32 bits."""
_MAX_PLACES = 2**26
"""Of a packing: 256 MiB where it is unpacked, for packed zeros are a thousandth of that."""
_MIN_PRIME_BITS = 2
_VERSION_DIGITS = 32
_LONGEST_NAME, _LONGEST_FEATURE = 100, 300
"""Characters of the name of a class, and of a feature, which may be a column with its category."""
_DIMENSIONS = {"slots": 3, "coefficients": 2, "batch": 1}
"""Of a packing's shape, by its kind."""

_Check = Callable[[Any], bool]


def _whole(low: int, high: int = _MAX_ELEMENTS) -> _Check:
    """A Python integer, no truth value, from ``low`` to ``high``."""
    return lambda value: type(value) is int and low <= value <= high


def _real(low: float = -math.inf) -> _Check:
    """A finite number in double precision of at least ``low``."""
    return lambda value: isinstance(value, float) and math.isfinite(value) and value >= low


def _each(check: _Check, least: int = 0, most: float = math.inf) -> _Check:
    """A tuple of ``least`` to ``most`` values that pass a check."""
    return lambda value: (
        isinstance(value, tuple) and least <= len(value) <= most and all(map(check, value))
    )


def _bound(value: Any) -> bool:
    """A float, or floats in nested tuples."""
    return all(map(_bound, value)) if isinstance(value, tuple) and value else _real()(value)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _names(longest: int) -> _Check:
    """Different names, each printable and of at most so many characters."""
    return lambda value: (
        _each(lambda name: _text(name) and name.isprintable() and 0 < len(name) <= longest)(value)
        and len(set(value)) == len(value)
    )


def _counts(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and name.isprintable() and _whole(0)(count)
        for name, count in value.items()
    )


def _pair(value: Any) -> bool:
    return _each(_whole(1), 2, 2)(value)


def _map(value: Any) -> bool:
    if not (isinstance(value, tuple) and len(value) == 4):
        return False
    source, window, products, sums = value
    return (
        _whole(0)(source)
        and _whole(1)(window)
        and _each(_whole(0), 1)(products)
        and _each(_each(_whole(0), 1))(sums)
    )


def _layer(value: Any) -> bool:
    if not (isinstance(value, tuple) and len(value) == 3):
        return False
    level, rescale, maps = value
    return _whole(1)(level) and _whole(NEVER, BOTH)(rescale) and _each(_map)(maps)


_FIELDS: dict[str, tuple[_Check, str]] = {
    "input_shape": (_each(_whole(1), 1), "positive whole numbers"),
    "input_range": (
        _each(_bound, 2, 2),
        "finite low < high, both floats, or floats in nested tuples, one a feature",
    ),
    "logits": (_whole(1), "a positive whole number"),
    "degree": (_whole(1), "a ring degree"),
    "prime_bits": (
        _each(_whole(_MIN_PRIME_BITS, MAX_PRIME_BITS), 1),
        f"whole numbers from {_MIN_PRIME_BITS} to {MAX_PRIME_BITS}",
    ),
    **{
        name: (_whole(-_MAX_BITS, _MAX_BITS), f"a whole number from -{_MAX_BITS} to {_MAX_BITS}")
        for name in ("input_scale_bits", "answer_scale_bits", "error_bits", "worst_error_bits")
    },
    "answer_level": (_whole(1), "a level"),
    "logit_bits": (_whole(0, _MAX_BITS), f"a whole number from 0 to {_MAX_BITS}"),
    "headroom_bits": (_real(0.0), "a finite float, not negative: else an answer could overflow"),
    "batch_size": (_whole(1), "a positive whole number"),
    "packing_kind": (_text, "a text"),
    "packing": (_text, "a text"),
    "packing_shape": (_each(_whole(1), 1), "positive whole numbers"),
    "answers": (_each(_each(_whole(0), 1)), "the coefficients that each answer is read at"),
    "rotation_levels": (_each(_pair), "pairs of a Galois element and a level"),
    "relin_level": (_whole(0), "a level, or 0"),
    "operations": (_counts, "a whole number for each name"),
    "predicted_ms": (_real(0.0), "a finite float, not negative"),
    "model_version": (
        lambda value: (
            _text(value) and len(value) == _VERSION_DIGITS and set(value) <= set(string.hexdigits)
        ),
        f"{_VERSION_DIGITS} hexadecimal digits",
    ),
    "parties": (lambda value: _each(_text)(value) and len(value) in (0, 3), "none or three names"),
    "multi_label": (lambda value: isinstance(value, bool), "true or false"),
    "class_names": (
        _names(_LONGEST_NAME),
        f"different names, each printable and of at most {_LONGEST_NAME} characters",
    ),
    "feature_names": (
        _names(_LONGEST_FEATURE),
        f"different names, each printable and of at most {_LONGEST_FEATURE} characters",
    ),
    "blind_layers": (_each(_layer), "layers, each with its level, rescaling and maps"),
    "blind_sources": (_each(_whole(1)), "numbers of layers, from 1"),
}


def check_plan(plan: "Plan") -> None:
    """Refuse a plan that is not one, with the field's name, its value and what to give."""
    for field in fields(plan):
        _check_field(field.name, getattr(plan, field.name))
    if plan.degree not in MAX_MODULUS_BITS:
        raise ValueError(f"degree is {plan.degree}; choose one of {sorted(MAX_MODULUS_BITS)}")
    if sum(plan.prime_bits) > MAX_MODULUS_BITS[plan.degree]:
        raise ValueError(
            f"prime_bits sum to {sum(plan.prime_bits)}; degree {plan.degree} holds 128 bits of "
            f"security up to {MAX_MODULUS_BITS[plan.degree]}"
        )
    if input_range("input_range", plan.input_range, plan.input_shape) != plan.input_range:
        raise ValueError(
            "input_range is not written as short as it can be, or an end is no number of single "
            "precision, as in 0.2.0; compile the model again"
        )
    if plan.multi_label and plan.logits < 2:
        raise ValueError("multi_label is true for 1 logit, which decides between two classes")
    _check_packing(plan)
    _check_keys(plan)
    if len(plan.class_names) not in (0, plan.classes):
        raise ValueError(
            f"class_names has {len(plan.class_names)} names; the model has {plan.classes} classes"
        )
    size = math.prod(plan.input_shape)
    if len(plan.feature_names) not in (0, size):
        raise ValueError(
            f"feature_names has {len(plan.feature_names)} names; an input has {size} elements"
        )
    check_blind_layers(plan)


def _check_packing(plan: "Plan") -> None:
    """The packing holds the input, and the answers all logits."""
    kind, shape = plan.packing_kind, plan.packing_shape
    if _DIMENSIONS.get(kind) != len(shape):
        raise ValueError(
            f"packing_kind is {kind!r} with {len(shape)} sizes; give one of {_DIMENSIONS}"
        )
    batch = kind == "batch"
    # One image a slot, or a coefficient where nothing is multiplied with itself.
    room = plan.degree // 2 if plan.relin_level else plan.degree
    if batch != (plan.batch_size > 1) or plan.batch_size > room:
        raise ValueError(f"batch_size is {plan.batch_size} in a {kind} packing of {room}")
    fits = {
        "slots": shape[0] <= 2 and shape[-1] == plan.degree // 2,
        "coefficients": shape[-1] <= plan.degree,
        "batch": shape[0] == math.prod(plan.input_shape) and not plan.packing,
    }
    if not fits[kind]:
        raise ValueError(f"packing_shape is {shape} in a {kind} packing, which it does not fit")
    if not batch and math.prod(shape) > _MAX_PLACES:
        raise ValueError(f"packing_shape is {shape}; at most {_MAX_PLACES:,} places are unpacked")
    read = [position for answer in plan.answers for position in answer]
    expected = 0 if batch else plan.logits
    if len(read) != expected or any(position >= plan.degree for position in read):
        wanted = f"{plan.logits} classes" if plan.logits > 1 else "1 logit"
        raise ValueError(f"answers read {len(read)} coefficients for {wanted}")


def _check_keys(plan: "Plan") -> None:
    """The keys that an evaluation needs are keys of this ring."""
    elements = [element for element, _ in plan.rotation_levels]
    if plan.answer_level > plan.levels:
        raise ValueError(f"answer_level is {plan.answer_level}; give 1..{plan.levels}")
    if any(level > plan.levels for _, level in plan.rotation_levels):
        raise ValueError(f"rotation_levels must lie in 1..{plan.levels}")
    if elements != sorted(set(elements)) or any(
        element % 2 == 0 or element >= 2 * plan.degree for element in elements
    ):
        raise ValueError(
            f"rotation_levels name the elements {elements[:8]}; give odd ones below "
            f"{2 * plan.degree}, rising"
        )
    if plan.relin_level > plan.levels:
        raise ValueError(f"relin_level is {plan.relin_level}; give 0..{plan.levels}")
    if (elements or plan.relin_level) and len(plan.prime_bits) < 2:
        raise ValueError(
            f"prime_bits is {plan.prime_bits}; rotations and products need a special prime too"
        )


def _check_field(name: str, value: Any) -> None:
    check, wanted = _FIELDS[name]
    if not check(value):
        raise ValueError(f"{name} is {shown(value)}; give {wanted}")
