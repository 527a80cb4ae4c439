"""Private inference with one argument for its kind: CKKS, or secret shares.

What is compiled is that of :mod:`privacy.inference` or of :mod:`privacy.shared_inference`, whose
other names are the same where the roles are: a plan, a data owner, logits. PyTorch and either of
the two are loaded by the call.
"""

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, overload

from numpy.typing import ArrayLike

from privacy.arguments import shown

if TYPE_CHECKING:
    from torch import nn

    from privacy.inference import CompiledModel
    from privacy.shared_inference import SharedModel

BACKENDS = {"ckks": "privacy.inference", "shared": "privacy.shared_inference"}


@overload
def compile_model(
    model: "nn.Module",
    *,
    backend: Literal["ckks"],
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
    sample: ArrayLike | None = None,
    batch_size: int = 1,
    tolerance: float | None = None,
    **options: Any,
) -> "CompiledModel": ...


@overload
def compile_model(
    model: "nn.Module",
    *,
    backend: Literal["shared"],
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
    sample: ArrayLike | None = None,
    batch_size: int = 1,
    tolerance: float | None = None,
    **options: Any,
) -> "SharedModel": ...


def compile_model(model: "nn.Module", *, backend: str, **arguments: Any) -> Any:
    """Compile a trained model for private inference.

    Parameters
    ----------
    model : nn.Module
    backend : str
        ``"ckks"``: one server, which computes blind (:func:`privacy.inference.compile_model`).
        ``"shared"``: two workers that do not collude
        (:func:`privacy.shared_inference.compile_model`).
    **arguments
        ``input_shape``, ``input_range``, ``sample``, ``batch_size`` and ``tolerance``, which both
        take, and options that one of them has.

    Returns
    -------
    CompiledModel or SharedModel

    Raises
    ------
    ValueError
        If there is no such backend; and as the backend's own.
    TypeError
        If the backend has no such argument.
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend is {shown(backend)}; give 'ckks' or 'shared'")
    compiler = import_module(BACKENDS[backend]).compile_model
    known = [name for name in inspect.signature(compiler).parameters if name != "model"]
    strange = [name for name in arguments if name not in known]
    if strange:
        raise TypeError(
            f"{strange[0]} is no argument for backend={backend!r}; that takes {', '.join(known)}"
        )
    return compiler(model, **arguments)
