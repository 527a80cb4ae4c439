"""Kernels: functions compiled by numba at their first call, without Python's lock."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., Any])


def compiled(function: _Function) -> _Function:
    """A kernel. What was compiled stays on disk, for the processes that come after."""
    return cast(_Function, numba.njit(nogil=True, cache=True, error_model="numpy")(function))
