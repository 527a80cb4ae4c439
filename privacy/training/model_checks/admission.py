"""Whether a model and a loss are tried and found good, before anything is charged."""

from collections.abc import Sequence

import torch
from torch import nn

from privacy.training.errors import GradientError, UnsupportedModelError
from privacy.training.model_checks.buffers import Buffers
from privacy.training.model_checks.gradient_check import check_gradients
from privacy.training.model_checks.independence import check_example_independence
from privacy.training.model_checks.model_state import VALUES, made_up
from privacy.training.model_checks.program_identity import Remembered, program_of
from privacy.training.per_example.loss import ExampleLoss
from privacy.training.records import Kind, Records

# What another choice of values does not change.
_OF_THE_PROGRAM = (GradientError, UnsupportedModelError, MemoryError, torch.OutOfMemoryError)

_accepted = Remembered()


def admit(
    model: nn.Module, loss: ExampleLoss, records: Records, buffers: Buffers, *, noised: bool
) -> bool:
    """Try model and loss on records that are made up; whether there are records to train on.

    Of the data only shapes and precisions have a part, for the outcome is seen by others. Where
    records are of several kinds, one kind that model and loss take is enough: the others are
    malformed.

    Raises
    ------
    GradientError, TypeError, ValueError
        If gradients would be wrong, examples meet (where noise is to be added), or there is no
        kind of record that model and loss take.
    """
    first: Exception | None = None
    for kind in records.kinds():
        refusal = _tried(model, loss, kind, buffers, noised)
        if refusal is None:
            return True
        first = first or refusal
    if first is not None:
        raise first
    return False


def _tried(
    model: nn.Module, loss: ExampleLoss, kind: Kind, buffers: Buffers, noised: bool
) -> Exception | None:
    """Why model and loss cannot be run on such records, if so."""
    program = program_of(model, loss)
    known = None if program is None else (program, kind, noised)
    if known is not None and known in _accepted:
        return None
    failures = []
    for values in VALUES:
        try:
            batch = made_up(kind, values)
            check_gradients(model, loss, batch)
            if noised:
                check_example_independence(model, loss, batch)
        except _OF_THE_PROGRAM:
            buffers.restore()
            raise
        except Exception as error:
            buffers.restore()
            failures.append(error)
            continue
        refuse_changed(buffers.restore())
        if known is not None:
            _accepted.add(known)
        return None
    return _refusal(kind, failures)


def refuse_changed(buffers: Sequence[str]) -> None:
    """Refuse a model whose buffers changed."""
    if buffers:
        raise GradientError(
            f"buffer '{buffers[0]}' changed in training: what it holds of the records is neither "
            "clipped nor noised; make the layer keep no statistics"
        )


def _refusal(kind: Kind, failures: Sequence[Exception]) -> Exception:
    first = failures[0]
    shapes = ", ".join(f"{tuple(shape)} {dtype}" for shape, dtype, _ in kind)
    raised: type[Exception] = GradientError
    if isinstance(first, (TypeError, ValueError)):
        raised = TypeError if isinstance(first, TypeError) else ValueError
    refusal = raised(
        f"model or loss fails on a trial's records, which are made up in the data's shapes "
        f"(a record's inputs and target: {shapes}): {type(first).__name__}: {first}; give records "
        "of the shapes that the model takes, and a model with finite parameters and a loss that "
        "take standard normal numbers, those between 0 and 1, or small whole ones, indices and "
        "classes 0 and 1"
    )
    refusal.__cause__ = first
    return refusal
