"""Whether the processor at hand has what makes the kernels quick."""

import logging
import platform
from functools import cache

from llvmlite import binding

_log = logging.getLogger(__name__)
_X86 = {"x86_64", "amd64"}


@cache
def say_slow() -> None:
    """Log once that this processor lacks what makes the kernels quick, if it does."""
    if platform.machine().lower() in _X86 and not binding.get_host_cpu_features().get("fma"):
        _log.warning(
            "this processor has no fused multiply-add (AVX2 has): encrypted inference works, and "
            "takes some fifty times as long"
        )
