"""Which programs passed their trial, so that the same one need not be tried every round.

A program is remembered only where all that makes it the same can be seen: a model of torch's own
modules without hooks, with its settings and its parameters' shapes; a loss of torch's, or a plain
function that reads nothing but its arguments, constants, and torch. A class or a closure of the
user's may do another thing the next time, and is tried every time.
"""

import types
from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from privacy.training.model_checks.replacement_layers import AppendedVector, SeparateAttention
from privacy.training.per_example.loss import ExampleLoss

_MOST = 64
_OWN = (AppendedVector, SeparateAttention)
_HOMES = ("torch.nn.modules.", "opacus.layers.", f"{__package__}.recurrent")
_PARTS = ("_parameters", "_buffers", "_modules")
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks") or "_hooks_" in name)
_GLOBAL_HOOKS = tuple(
    name for name in vars(_module) if name.startswith("_global_") and "hooks" in name
)


class _UnseenError(Exception):
    """Something has a part whose sameness cannot be seen."""


class Remembered:
    """The last programs that passed."""

    def __init__(self) -> None:
        self._held: OrderedDict[Hashable, None] = OrderedDict()

    def __contains__(self, program: Hashable) -> bool:
        return program in self._held

    def add(self, program: Hashable) -> None:
        """Remember one more."""
        self._held[program] = None
        while len(self._held) > _MOST:
            self._held.popitem(last=False)


def program_of(model: nn.Module, loss: ExampleLoss) -> Hashable | None:
    """What is equal for programs that do the same, whatever their parameters' values; or None."""
    try:
        if any(getattr(_module, name) for name in _GLOBAL_HOOKS):
            return None
        autocast = [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ]
        if loss.is_torchs and not loss.is_known_apart:
            return None  # its weights may be those of places in the batch
        return _of_model(model), _value(loss.given, loss), tuple(autocast)
    except _UnseenError:
        return None


def _of_model(model: nn.Module) -> Hashable:
    places: dict[nn.Module, int] = {}
    found: list[Hashable] = []
    for name, module in model.named_modules(remove_duplicate=False):
        again = module in places
        found.append((name, places.setdefault(module, len(places))))
        if not again:
            found.append(_of_module(module))
    return tuple(found)


def _of_module(module: nn.Module) -> Hashable:
    kind, held = type(module), vars(module)
    if kind not in _OWN and not kind.__module__.startswith(_HOMES):
        raise _UnseenError
    if "forward" in held or any(held[name] for name in _HOOKS):
        raise _UnseenError
    settings = {
        name: value for name, value in held.items() if name not in _PARTS and name not in _HOOKS
    }
    tensors = (*module._parameters.items(), *module._buffers.items())
    return kind, _values(settings), tuple((name, _tensor(each)) for name, each in tensors)


def _tensor(tensor: Tensor | None) -> Hashable:
    if tensor is None:
        return None
    if type(tensor) not in (nn.Parameter, Tensor) or tensor._backward_hooks:
        raise _UnseenError
    if getattr(tensor, "_post_accumulate_grad_hooks", None):
        raise _UnseenError
    return tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad, tensor.is_leaf


def _values(named: dict[str, Any], loss: ExampleLoss | None = None) -> Hashable:
    return tuple((name, _value(each, loss)) for name, each in sorted(named.items()))


def _value(value: Any, loss: ExampleLoss | None = None) -> Hashable:
    """A setting, where it says everything about itself; the loss may have weights of classes."""
    kind = type(value)
    if value is None or kind in (bool, int, float, str, torch.dtype, torch.device, torch.Size):
        return kind, value
    if kind in (tuple, list, set, frozenset):
        parts: Iterable[Any] = sorted(value) if kind in (set, frozenset) else value
        return kind, tuple(_value(each, loss) for each in parts)
    if kind is dict and all(type(name) is str for name in value):
        return kind, _values(value, loss)
    if loss is not None and isinstance(value, Tensor) and loss.is_known_apart:
        return _tensor(value)
    if loss is not None and isinstance(value, nn.Module) and loss.is_torchs:
        return _of_module(value)
    if kind.__module__ == "functools" and kind.__name__ == "partial":
        return (
            kind,
            _value(value.func, loss),
            _value(value.args, loss),
            _values(value.keywords, loss),
        )
    if _is_torchs(value):
        return kind, value
    if kind is types.FunctionType and loss is not None:
        return _function(value)
    raise _UnseenError


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
        raise _UnseenError
    read: dict[str, Hashable] = {}
    for name in _names(function.__code__):
        if name in function.__globals__:
            value = function.__globals__[name]
            if isinstance(value, types.ModuleType):
                if value.__name__.split(".")[0] not in ("torch", "math"):
                    raise _UnseenError
                read[name] = value.__name__
            else:
                read[name] = _value(value)
        elif name in ("globals", "eval", "exec", "__import__", "open", "vars", "locals"):
            raise _UnseenError
    defaults = _value(function.__defaults__), _value(function.__kwdefaults__)
    return function.__code__, tuple(sorted(read.items(), key=lambda item: item[0])), defaults


def _names(code: types.CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= _names(constant)
    return names
