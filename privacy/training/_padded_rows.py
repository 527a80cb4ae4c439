"""Each row's gradient as one vector, the same to the last bit whatever rows are beside it.

One person's presence may move a sum by that person's vector and by nothing else. Kernels round
otherwise in batches of other sizes, so a block of rows always has one size: the rest of it is
filled with made-up records. That a row's bits do not depend on its place in the block is tried,
on made-up records; where they do, rows are computed one at a time. In which order a kernel adds
up depends on shapes, not on values.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.training.errors import GradientError
from privacy.training.model_checks.model_state import (
    Buffers,
    away_from_constants,
    evaluating,
    preserved_randomness,
)
from privacy.training.model_checks.program_identity import program_identity
from privacy.training.model_checks.trial_records import BATCH, DISTRIBUTIONS, trial_records
from privacy.training.per_example.capture import Capture
from privacy.training.per_example.gradients import full_precision_products
from privacy.training.per_example.loss import ExampleLoss
from privacy.training.records import RecordFormat, Records, format_of

Vectors = NDArray[np.float64]

_LARGEST_BLOCK = 1 << 23  # numbers in the gradients of a block: 64 MiB in double precision
_known: OrderedDict[Hashable, bool | None] = OrderedDict()  # the last programs' ``_place_matters``
_MOST_KNOWN = 64


class PaddedRows:
    """A context that computes gradients of rows in blocks of one size.

    Parameters
    ----------
    model, loss
        That ``admit`` accepted. The loss is called with one example at a time unless it is torch's.
    parameters : sequence of nn.Parameter
        Those that train, in the order of a gradient's numbers.
    records : Records
        On the model's device.
    size : int
        How many rows are computed at once, at most.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ExampleLoss,
        parameters: Sequence[nn.Parameter],
        records: Records,
        *,
        size: int,
    ) -> None:
        self._model, self._loss, self._capture = model, loss, Capture(model)
        self._program = program_identity(model, loss)
        self._parameters, self.records = parameters, records
        self._buffers = Buffers(model)
        self._padding: dict[RecordFormat, list[Tensor]] = {}
        self._tried: dict[RecordFormat, bool | None] = {}
        self.dimension = sum(parameter.numel() for parameter in parameters)
        self.changed: set[str] = set()
        """The buffers that a row changed, and that were put back."""
        self.size = max(1, min(size, _LARGEST_BLOCK // max(1, self.dimension)))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._capture)
            for record_format in self.records.formats():
                if self._place_matters(record_format) is not None:  # None: the model refuses it
                    break
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def __call__(self, rows: Tensor) -> Vectors:
        """The gradients of at most ``size`` rows, shape (m, d); raises what a row raises."""
        given = self.records.take(rows)
        if self._place_matters(format_of(given)):
            alone = [[each[row : row + 1] for each in given] for row in range(len(rows))]
            return np.concatenate([self._gradients(row) for row in alone])
        return self._padded(given)[: len(rows)]

    def _padded(self, given: Sequence[Tensor]) -> Vectors:
        missing = self.size - len(given[0])
        if not missing:
            return self._gradients(given)
        padding = self._padding_of(format_of(given))
        return self._gradients(
            [
                torch.cat([each, made_up.expand(missing, *made_up.shape[1:])])
                for each, made_up in zip(given, padding, strict=True)
            ]
        )

    def _padding_of(self, record_format: RecordFormat) -> list[Tensor]:
        """One made-up record of this format that the model and the loss accept."""
        if record_format not in self._padding:
            self._padding[record_format] = [each[:1] for each in self._trial(record_format)]
        return self._padding[record_format]

    def _trial(self, record_format: RecordFormat) -> list[Tensor]:
        first: Exception | None = None
        for distribution in DISTRIBUTIONS:
            batch = trial_records(record_format, distribution)
            try:
                self._gradients(batch)
            except Exception as error:
                first = first or error
            else:
                return batch
        raise first or AssertionError

    def _gradients(self, batch: Sequence[Tensor]) -> Vectors:
        self._capture.forget()  # a batch that failed
        try:
            *inputs, targets = batch
            losses = self._loss(self._model(*inputs), targets)
            layers = self._capture.gradients(losses)
            count = len(targets)
            vectors = np.zeros((count, self.dimension))
            with torch.no_grad(), full_precision_products(losses.device):
                for layer in layers.values():
                    for parameter, each in layer.of_each().items():
                        place = self._places()[parameter]
                        vectors[:, place] = each.reshape(count, -1).double().cpu().numpy()
        finally:
            self.changed.update(self._buffers.restore())
        return vectors

    def _places(self) -> dict[Tensor, slice]:
        places: dict[Tensor, slice] = {}
        begin = 0
        for parameter in self._parameters:
            places[parameter] = slice(begin, begin + parameter.numel())
            begin += parameter.numel()
        return places

    def _place_matters(self, record_format: RecordFormat) -> bool | None:
        """Whether a row's bits depend on its place in a block; None if no made-up row is accepted.

        Raises
        ------
        GradientError
            If they depend on nothing at all.
        """
        if record_format in self._tried:
            return self._tried[record_format]
        identity = None if self._program is None else (self._program, record_format, self.size)
        if identity in _known:
            tried: bool | None = _known[identity]
        else:
            with (
                preserved_randomness(self._model),
                away_from_constants(self._model),
                evaluating(self._model),
            ):
                tried = self._trial_of_places(record_format)
        if identity is not None:
            _known[identity] = tried
            while len(_known) > _MOST_KNOWN:
                _known.popitem(last=False)
        self._tried[record_format] = tried
        return tried

    def _trial_of_places(self, record_format: RecordFormat) -> bool | None:
        try:
            records = self._trial(record_format)
        except Exception:
            return None
        bits_of: dict[int, bytes] = {}
        for shift in range(2):  # every place then shares a record with every other, by way of some
            which = (torch.arange(self.size, device="cpu") + shift) % BATCH
            block = [each[which.to(each.device)] for each in records]
            vectors = self._gradients(block)
            if shift == 0 and self._gradients(block).tobytes() != vectors.tobytes():
                raise GradientError(
                    "the same records have other gradients the second time: a kernel adds up in "
                    "no fixed order, so that one person's influence cannot be bounded; call "
                    "torch.use_deterministic_algorithms(True), or train on the CPU"
                )
            for record, vector in zip(which.tolist(), vectors, strict=True):
                bits = vector.tobytes()
                if bits_of.setdefault(record, bits) != bits:
                    return True
        return False
