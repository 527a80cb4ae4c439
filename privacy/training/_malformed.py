"""Records that the model, the loss or the data set itself cannot cope with add nothing."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from ._capture import GradientError
from ._trial import BATCH
from .check import UnsupportedModelError

log = logging.getLogger(__name__)

# What no single record is to blame for.
_OF_THE_PROGRAM = (GradientError, UnsupportedModelError, MemoryError, torch.OutOfMemoryError)
_TRIED = 32


class MalformedRecords:
    """Works on a batch; where that fails, on its halves, until only malformed records are left out.

    A record that raises (a label that is no class, a file that cannot be opened, another shape)
    would otherwise end the training: that it is there would be told to whoever waits for the
    update, without any noise. It adds zero, as one does whose gradient is not finite, so that one
    record more or less still moves the sum by at most the clipping norm.

    Parameters
    ----------
    work : callable
        Given rows, int64 (m,): adds what they give, or raises and adds nothing.
    """

    def __init__(self, work: Callable[[Tensor], None]) -> None:
        self._work = work
        self._of_a_batch: Exception | None = None
        self._left_out: dict[int, Exception] = {}

    def __call__(self, rows: Tensor) -> None:
        """Work on these rows, but for the malformed."""
        try:
            self._work(rows)
        except _OF_THE_PROGRAM:
            raise
        except Exception as error:
            if len(rows) == 1:
                self._left_out.setdefault(int(rows), error)
                return
            self._of_a_batch = error
            for half in rows.split((len(rows) + 1) // 2):
                self(half)

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


def usable_rows(records: int, work: Callable[[Tensor], None]) -> Tensor:
    """``BATCH`` rows for a trial, from all over the data, that ``work`` does not fail on.

    Where it fails on those, the rows are of the first 32 records. Rows repeat where there are too
    few, or where usable records do not go together in one batch.

    Raises
    ------
    Exception
        What ``work`` raised, if it fails on all of these: the program is wrong then, not a record.
    """
    rows = torch.arange(BATCH) % records
    if records > BATCH:
        rows = torch.linspace(0, records - 1, BATCH, dtype=torch.float64).round().long()
    first = _failure(work, rows)
    if first is None:
        return rows
    tried = torch.arange(min(records, _TRIED)).split(1)
    usable = [row for row in tried if _failure(work, row) is None][:BATCH]
    if not usable:
        raise first
    rows = torch.cat([usable[place % len(usable)] for place in range(BATCH)])
    return rows if _failure(work, rows) is None else usable[0].repeat(BATCH)


def _failure(work: Callable[[Tensor], None], rows: Tensor) -> Exception | None:
    try:
        work(rows)
    except _OF_THE_PROGRAM:
        raise
    except Exception as error:
        return error
    return None
