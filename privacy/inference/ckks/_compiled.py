"""Kernels: functions compiled by numba at their first call, without Python's lock."""

import logging
import platform
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_X86 = {"x86_64", "amd64"}


def compiled(function: _Function) -> _Function:
    """A kernel. What was compiled stays on disk, for the processes that come after.

    It lies beside the source, or in the user's cache folder where that cannot be written, and is
    compiled anew when the source or the processor is another.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # numba's, where it can write neither
        _say_uncached()
        kernel = numba.njit(**options)(function)
    return cast(_Function, kernel)


@cache
def _say_uncached() -> None:
    _log.warning(
        "encrypted inference compiles for some ten seconds in every process: neither its own "
        "folder nor the user's cache folder can be written. Name one that can in NUMBA_CACHE_DIR"
    )


@cache
def say_slow() -> None:
    """Log once that this processor lacks what makes the kernels quick, if it does."""
    if platform.machine().lower() in _X86 and not binding.get_host_cpu_features().get("fma"):
        _log.warning(
            "this processor has no fused multiply-add (AVX2 has): encrypted inference works, and "
            "takes some fifty times as long"
        )
