"""The identity of a model and a loss, so that a trial they passed need not be run every round.

They have one only if all that decides their numbers' paths is visible: a model of torch's own
modules without hooks, with its settings and its parameters' shapes, or of classes whose methods
read only their arguments, constants and torch; a loss of torch's, or a plain function that reads as
little. Others (a closure, a class that reads a global number or calls NumPy) may act otherwise the
next time, and are tried every time. Weights do not count, though a model may branch on them: a
trial looks for mistakes in a program, and what is private does not rest on how often it runs.
"""

import types
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from privacy.training.per_example.loss import ExampleLoss

_TRUSTED = ("torch.nn.modules.", "opacus.layers.", f"{__package__}.replacement_layers")
_MEMBERS = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name)
_GLOBAL_HOOKS = tuple(
    name for name in vars(_module) if name.startswith("_global_") and "hooks" in name
)
_SCALARS = (bool, int, float, str, torch.dtype, torch.device, torch.Size)
_UNREAD = frozenset(vars(type("_", (), {}))) | {
    *("__init__", "__qualname__", "__annotations__", "__annotate__", "__annotate_func__"),
    *("__static_attributes__", "__firstlineno__", "__parameters__", "__orig_bases__"),
}
"""Of a class: what a call reads nothing of; what ``__init__`` set is among the settings."""
_READ_ANYTHING = ("globals", "eval", "exec", "__import__", "open", "vars", "locals")


class _OpaqueError(Exception):
    """A part without an identity."""


def program_identity(model: nn.Module, loss: ExampleLoss) -> Hashable | None:
    """Equal for programs that do the same, whatever their parameters' values; None if unknown."""
    try:
        if any(getattr(_module, name) for name in _GLOBAL_HOOKS):
            return None
        autocast = [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ]
        if loss.is_torchs and not loss.is_examplewise:
            return None  # its weights may be those of places in the batch
        return _of_model(model), _value(loss.given, loss), tuple(autocast)
    except _OpaqueError:
        return None


def _of_model(model: nn.Module) -> Hashable:
    numbers: dict[nn.Module, int] = {}
    parts: list[Hashable] = []
    for name, module in model.named_modules(remove_duplicate=False):
        repeated = module in numbers
        parts.append((name, numbers.setdefault(module, len(numbers))))
        if not repeated:
            parts.append(_of_module(module))
    return tuple(parts)


def _of_module(module: nn.Module) -> Hashable:
    kind, attributes = type(module), vars(module)
    if "forward" in attributes or any(attributes[name] for name in _HOOKS):
        raise _OpaqueError
    settings = {n: each for n, each in attributes.items() if n not in _MEMBERS and n not in _HOOKS}
    tensors = (*module._parameters.items(), *module._buffers.items())
    shapes = tuple((name, _tensor(each)) for name, each in tensors)
    return _of_class(kind), _values(settings), shapes


def _of_class(kind: type) -> Hashable:
    """A class of torch's as it is; another one's methods and constants, and its bases."""
    if kind is object or kind.__module__.startswith(_TRUSTED):
        return kind
    if type(kind) is not type:
        raise _OpaqueError
    own = sorted(vars(kind).keys() - _UNREAD)
    methods = tuple((name, _of_member(vars(kind)[name])) for name in own)
    return kind.__qualname__, methods, tuple(_of_class(base) for base in kind.__bases__)


def _of_member(member: Any) -> Hashable:
    if isinstance(member, (staticmethod, classmethod)):
        return type(member), _of_member(member.__func__)
    if type(member) is property:
        return property, tuple(map(_of_member, (member.fget, member.fset, member.fdel)))
    return _function(member) if type(member) is types.FunctionType else _value(member)


def _tensor(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    if type(tensor) not in (nn.Parameter, Tensor) or tensor._backward_hooks:
        raise _OpaqueError
    if getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise _OpaqueError
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_leaf


def _values(named: dict[str, Any], loss: ExampleLoss | None = None) -> Hashable:
    return tuple((name, _value(each, loss)) for name, each in sorted(named.items()))


def _value(value: Any, loss: ExampleLoss | None = None) -> Hashable:
    """A setting's identity; the loss may have weights of classes."""
    kind = type(value)
    if value is None or kind in _SCALARS:
        return kind, value
    if kind in (tuple, list, set, frozenset):
        parts: Iterable[Any] = sorted(value) if kind in (set, frozenset) else value
        return kind, tuple(_value(each, loss) for each in parts)
    if kind is dict and all(type(name) is str for name in value):
        return kind, _values(value, loss)
    if loss is not None and isinstance(value, Tensor) and loss.is_examplewise:
        return _tensor(value)
    if loss is not None and isinstance(value, nn.Module) and loss.is_torchs:
        return _of_module(value)
    if kind.__module__ == "functools" and kind.__name__ == "partial":
        arguments = _value(value.args, loss), _values(value.keywords, loss)
        return kind, _value(value.func, loss), *arguments
    if _is_torchs(value):
        return kind, value
    if kind is types.FunctionType and loss is not None:
        return _function(value)
    raise _OpaqueError


def _is_torchs(value: Any) -> bool:
    """A function or class of torch's."""
    if isinstance(value, types.BuiltinFunctionType):
        home = value.__self__
        name = home.__name__ if isinstance(home, types.ModuleType) else type(home).__module__
        if isinstance(home, type):
            name = home.__module__
    elif isinstance(value, (types.FunctionType, type)):
        name = value.__module__
    else:
        return False
    return str(name).split(".")[0] in ("torch", "math")


def _function(function: types.FunctionType) -> Hashable:
    """A function's code, and the constants and modules that it reads."""
    if function.__closure__ or vars(function):
        raise _OpaqueError
    read: dict[str, Hashable] = {}
    for name in _names(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType):
                if value.__name__.split(".")[0] not in ("torch", "math"):
                    raise _OpaqueError
                read[name] = value.__name__
            else:
                read[name] = _value(value)
        elif name in _READ_ANYTHING:
            raise _OpaqueError
    defaults = _value(function.__defaults__), _value(function.__kwdefaults__)
    return function.__code__, tuple(sorted(read.items(), key=lambda item: item[0])), defaults


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
