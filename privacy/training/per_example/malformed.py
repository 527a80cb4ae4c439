"""Records that the model, the loss or the data set itself cannot cope with add nothing."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from privacy.training.errors import GradientError, UnsupportedModelError
from privacy.training.per_example.gradients import Gradients

log = logging.getLogger(__name__)

# What no single record is to blame for.
_OF_THE_PROGRAM = (GradientError, UnsupportedModelError, MemoryError, torch.OutOfMemoryError)


class MalformedRecords:
    """Works on a batch; where that fails, on its halves, until only malformed records are left out.

    A record that raises (a label that is no class, a file that cannot be opened, another shape)
    would otherwise end the training: that it is there would be told to whoever waits for the
    update, without any noise. It adds zero, as one does whose gradient is not finite, so that one
    record more or less still moves the sum by at most the clipping norm.

    Parameters
    ----------
    work : callable
        Given rows, int64 (m,): what they give, or raises.
    add : callable
        Takes what ``work`` gave.
    every_error : bool
        Whether no error at all may end the training, as with noise: even want of memory or a
        model that goes another way may be one record's doing.
    """

    def __init__(
        self,
        work: Callable[[Tensor], Gradients],
        add: Callable[[Gradients], None],
        *,
        every_error: bool,
    ) -> None:
        self._work, self._add = work, add
        self._raised: tuple[type[Exception], ...] = () if every_error else _OF_THE_PROGRAM
        self._of_a_batch: Exception | None = None
        self._left_out: dict[int, Exception] = {}
        self._worked = False

    def __call__(self, rows: Tensor) -> None:
        """Work on these rows, but for the malformed."""
        try:
            found = self._work(rows)
        except self._raised:
            raise
        except Exception as error:
            if len(rows) == 1:
                self._left_out.setdefault(int(rows), error)
                return
            self._of_a_batch = error
        else:
            self._add(found)
            self._worked = True
            return
        for half in rows.split((len(rows) + 1) // 2):
            self(half)

    def raise_if_none_worked(self) -> None:
        """Raise what the first record raised, if so far there was no other.

        Nothing of a training would show that no record took part in it.
        """
        if self._left_out and not self._worked:
            raise self._left_out[min(self._left_out)]

    def tell(self) -> None:
        """Say in the client's own log what was left out; nobody else may know."""
        if self._left_out:
            some = sorted(self._left_out)[:5]
            first = self._left_out[some[0]]
            log.error(
                "%d of the records add nothing: training on them fails (records %s%s): %s",
                len(self._left_out),
                ", ".join(map(str, some)),
                ", ..." if len(self._left_out) > len(some) else "",
                f"{type(first).__name__}: {first}",
            )
        elif self._of_a_batch is not None:
            log.warning(
                "Batches were worked on in parts, which is slow: model or loss failed on a whole "
                "one, and on none of its records alone: %s",
                self._of_a_batch,
            )
