"""Kernels: functions compiled by numba at their first call, without Python's lock."""

import hashlib
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core import event
from numba.extending import intrinsic as _intrinsic

_log = logging.getLogger(__name__)
_Function = TypeVar("_Function", bound=Callable[..., Any])

intrinsic = cast(Callable[[Callable[..., Any]], Any], _intrinsic)
"""numba's decorator for instructions of the compiler, with a type."""


def compiled(function: _Function, *, any_order: bool = False) -> _Function:
    """A kernel. What was compiled stays on disk, for the processes that come after.

    It lies beside the source, or in the user's cache folder where that cannot be written, and is
    compiled anew when any source of its folder, the processor or numba is another. With
    ``any_order`` the terms of its sums may be added in any order, in several sums, and fused with
    their products.
    """
    _announced_once()
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    if any_order:
        options["fastmath"] = {"reassoc", "contract"}
    try:
        kernel = numba.njit(cache=True, **options)(function)
        # numba itself looks at the kernel's own file only, and a kernel holds those that it calls.
        folder = Path(function.__code__.co_filename).parent
        kernel._cache._cache_file._source_stamp = _sources(folder)
    except (RuntimeError, AttributeError, TypeError):
        # RuntimeError where numba can write neither folder; the others in a numba of another make.
        _say_uncached()
        kernel = numba.njit(**options)(function)
    return cast(_Function, kernel)


@cache
def _sources(folder: Path) -> str:
    """The digest of every module that a kernel of the folder may come from."""
    digest = hashlib.sha256()
    for path in [*sorted(folder.glob("*.py")), Path(__file__)]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


@cache
def _say_uncached() -> None:
    _log.warning(
        "kernels are compiled for some ten seconds in every process: what was compiled cannot be "
        "kept. Name a folder that can be written in NUMBA_CACHE_DIR"
    )


class _Announcer(event.Listener):
    """Logs that kernels are compiled, at the first that is not on disk."""

    def __init__(self) -> None:
        self._announced = False

    def on_start(self, event: Any) -> None:
        function = event.data["dispatcher"].py_func
        if not self._announced and function.__module__.startswith("privacy."):
            self._announced = True
            _log.info("compiling kernels for some seconds, once for this machine")

    def on_end(self, event: Any) -> None:
        """Nothing to say: the kernel runs."""


@cache
def _announced_once() -> None:
    event.register("numba:compile", _Announcer())
