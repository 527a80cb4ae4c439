"""Kernels: functions compiled by numba at their first call, without Python's lock."""

import hashlib
import logging
import platform
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from llvmlite import binding

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])
_X86 = {"x86_64", "amd64"}


def compiled(function: _Function) -> _Function:
    """A kernel. What was compiled stays on disk, for the processes that come after.

    It lies beside the source, or in the user's cache folder where that cannot be written, and is
    compiled anew when any source of this folder, the processor or numba is another.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        kernel = numba.njit(cache=True, **options)(function)
        # numba itself looks at the kernel's own file only, and a kernel holds those that it calls.
        kernel._cache._cache_file._source_stamp = _sources()
    except (RuntimeError, AttributeError, TypeError):
        # RuntimeError where numba can write neither folder; the others in a numba of another make.
        _say_uncached()
        kernel = numba.njit(**options)(function)
    return cast(_Function, kernel)


@cache
def _sources() -> str:
    """The digest of every module that a kernel may come from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _say_uncached() -> None:
    _log.warning(
        "encrypted inference compiles for some ten seconds in every process: what it compiled "
        "cannot be kept. Name a folder that can be written in NUMBA_CACHE_DIR"
    )


@cache
def say_slow() -> None:
    """Log once that this processor lacks what makes the kernels quick, if it does."""
    if platform.machine().lower() in _X86 and not binding.get_host_cpu_features().get("fma"):
        _log.warning(
            "this processor has no fused multiply-add (AVX2 has): encrypted inference works, and "
            "takes some fifty times as long"
        )
