"""Records on which the data set, the model or the loss fails add nothing."""

import logging
from collections.abc import Callable
from typing import Generic, TypeVar

import torch
from torch import Tensor

from privacy.training.errors import GradientError, UnsupportedModelError

_log = logging.getLogger(__name__)

Computed = TypeVar("Computed")

# No single record is to blame for these.
PROGRAM_ERRORS = (GradientError, UnsupportedModelError, MemoryError, torch.OutOfMemoryError)


class MalformedRecords(Generic[Computed]):
    """Computes a batch; where that fails, its halves, until only malformed records are left out.

    An error of one record (a label that is no class, a file that cannot be opened, another shape)
    would show whoever waits for the update, without any noise, that the record is there. So it adds
    zero, and one record more or less still moves the sum by at most the clipping norm.

    Parameters
    ----------
    gradients : callable
        Given rows, int64 (m,): their clipped sum, or what else is added of them, or raises.
    add : callable
        Given what ``gradients`` returned.
    every_error : bool
        Whether no error at all may end the training, as with noise: one record may cause even want
        of memory.
    """

    def __init__(
        self,
        gradients: Callable[[Tensor], Computed],
        add: Callable[[Computed], None],
        *,
        every_error: bool,
    ) -> None:
        self._gradients, self._add = gradients, add
        self._raised: tuple[type[Exception], ...] = () if every_error else PROGRAM_ERRORS
        self._batch_error: Exception | None = None
        self._left_out: dict[int, Exception] = {}
        self._worked = False

    def __call__(self, rows: Tensor) -> None:
        """Add these rows, but for the malformed."""
        try:
            gradients = self._gradients(rows)
        except self._raised:
            raise
        except Exception as error:
            if len(rows) == 1:
                self._left_out.setdefault(int(rows), error)
                return
            self._batch_error = error
        else:
            self._add(gradients)
            self._worked = True
            return
        for half in rows.split((len(rows) + 1) // 2):
            self(half)

    def raise_if_none_worked(self) -> None:
        """Raise the first record's error if every record so far failed."""
        if self._left_out and not self._worked:
            raise self._left_out[min(self._left_out)]

    def log(self) -> None:
        """Write the left-out records to the client's own log, for nobody else."""
        if self._left_out:
            rows = sorted(self._left_out)
            first = self._left_out[rows[0]]
            _log.error(
                "%d of the records add nothing: training on them fails (records %s%s): %s",
                len(rows),
                ", ".join(map(str, rows[:5])),
                ", ..." if len(rows) > 5 else "",
                f"{type(first).__name__}: {first}",
            )
        elif self._batch_error is not None:
            _log.warning(
                "Batches were worked on in parts, which is slow: model or loss failed on a whole "
                "one, and on none of its records alone: %s",
                self._batch_error,
            )
