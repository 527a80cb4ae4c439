"""Each row's gradient as one vector, the same to the last bit whatever rows are beside it.

One person's presence may move a sum by that person's vector and by nothing else. Kernels round
otherwise in batches of other sizes, so a block of rows always has one size: the rest of it is
filled with made-up records. Many kernels round otherwise at other places of a block. A trial on
made-up records finds that out; each row then has a place of its own, by a hash of its content, so
that no other row moves it. Where the trial finds that other rows' content changes a row's bits,
rows are computed one at a time. In which order a kernel adds up depends on shapes and places, not
on values.
"""

from collections import OrderedDict
from collections.abc import Collection, Hashable, Iterable, Sequence
from contextlib import ExitStack
from enum import Enum, auto
from hashlib import blake2b
from itertools import chain
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
_BLOCKS_AT_ONCE = 16  # among so many blocks' rows each place gets about as many
_MOST_KNOWN = 64
# Some kernels round otherwise in one number of thousands, so that a trial compares many.
_COMPARED_NUMBERS = 1 << 20
_COMPARED_ROWS = 256  # at most


class _Place(Enum):
    """On which of these a row's bits do not depend but on its own content."""

    ANY = auto()  # neither its place in a block nor the others' content
    OWN = auto()  # its place counts, the others' content does not
    ALONE = auto()  # both may count


_known: OrderedDict[Hashable, _Place] = OrderedDict()  # of the last programs


class PaddedRows:
    """A context that computes gradients of rows in blocks of one size.

    Parameters
    ----------
    model, loss
        That ``admitted`` accepted. The loss is called with one example at a time unless it is
        torch's.
    parameters : sequence of nn.Parameter
        Those that train, in the order of a gradient's numbers.
    records : Records
        On the model's device.
    formats : collection of RecordFormat
        Those of records that ``admitted`` accepted; rows of others raise.
    size : int
        How many rows are computed at once, at most.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: ExampleLoss,
        parameters: Sequence[nn.Parameter],
        records: Records,
        formats: Collection[RecordFormat],
        *,
        size: int,
    ) -> None:
        self._model, self._loss, self._capture = model, loss, Capture(model)
        self._program = program_identity(model, loss)
        self.records, self._formats = records, formats
        self._buffers = Buffers(model)
        self._padding: dict[RecordFormat, list[Tensor]] = {}
        self._tried: dict[RecordFormat, _Place | None] = {}
        self._places: dict[Tensor, slice] = {}
        self.dimension = 0
        for parameter in parameters:
            begin, self.dimension = self.dimension, self.dimension + parameter.numel()
            self._places[parameter] = slice(begin, self.dimension)
        self.changed: set[str] = set()
        """The buffers that a row changed, and that were put back."""
        most = max(1, _LARGEST_BLOCK // max(1, self.dimension))
        self.size = max(1, min(size, most))
        self.at_once = self.size
        """How many rows to give at once, best: depends on no value in a record."""
        self._many = max(1, min(self.size * _BLOCKS_AT_ONCE, most))

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._capture)
            for record_format in self._formats:
                place = self._place(record_format)
                if place is not None:  # None: the model refuses it
                    self.at_once = self._many if place is _Place.OWN else self.size
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
        """The gradients of at most ``at_once`` rows, shape (m, d); raises what a row raises."""
        given = self.records.take(rows)
        record_format = format_of(given)
        place = self._place(record_format) if record_format in self._formats else None
        if place is None:
            raise ValueError("model and loss take no record that is made up in this one's shapes")
        if place is _Place.OWN:
            return self._at_own_places(given)
        size = 1 if place is _Place.ALONE else self.size
        parts = [[each[k : k + size] for each in given] for k in range(0, len(rows), size)]
        if place is _Place.ALONE:
            return np.concatenate([self._gradients(_aligned(part)) for part in parts])
        computed = [self._padded(part)[: len(part[0])] for part in parts]
        return computed[0] if len(computed) == 1 else np.concatenate(computed)

    def _at_own_places(self, given: Sequence[Tensor]) -> Vectors:
        """Rows of one place are in blocks one after another; equal rows are computed once."""
        equal: dict[bytes, list[int]] = {}
        for row, digest in enumerate(_digests(given)):
            equal.setdefault(digest, []).append(row)
        at: list[list[list[int]]] = [[] for _ in range(self.size)]
        for digest, rows in equal.items():
            at[int.from_bytes(digest, "little") % self.size].append(rows)
        padding = self._padding_of(format_of(given))
        vectors = np.empty((len(given[0]), self.dimension))
        for turn in range(max(map(len, at))):
            places = [place for place, waiting in enumerate(at) if turn < len(waiting)]
            here = torch.tensor(places, device="cpu")
            first = torch.tensor([at[place][turn][0] for place in places], device="cpu")
            block = []
            for each, made_up in zip(given, padding, strict=True):
                filled = made_up.repeat(self.size, *[1] * (made_up.dim() - 1))
                filled[here.to(each.device)] = each[first.to(each.device)]
                block.append(filled)
            computed = self._gradients(block)
            for place in places:
                vectors[at[place][turn]] = computed[place]
        return vectors

    def _padded(self, given: Sequence[Tensor]) -> Vectors:
        missing = self.size - len(given[0])
        if not missing:
            return self._gradients(_aligned(given))
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
            batch = self._trial(record_format, BATCH)
            self._padding[record_format] = [each[:1] for each in batch]
        return self._padding[record_format]

    def _trial(self, record_format: RecordFormat, count: int) -> list[Tensor]:
        first: Exception | None = None
        for distribution in DISTRIBUTIONS:
            batch = trial_records(record_format, distribution, count)
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
            vectors = torch.zeros((count, self.dimension), dtype=torch.float64, device="cpu")
            out = {
                parameter: vectors[:, place].view(count, *parameter.shape)
                for parameter, place in self._places.items()
            }
            with torch.no_grad(), full_precision_products(losses.device):
                for layer in layers.values():
                    layer.of_each(out)
        finally:
            self.changed.update(self._buffers.restore())
        return vectors.numpy()

    def _place(self, record_format: RecordFormat) -> _Place | None:
        """What a row's bits depend on; None if no made-up row is accepted.

        Raises
        ------
        GradientError
            If they depend on nothing at all.
        """
        if record_format in self._tried:
            return self._tried[record_format]
        settings = record_format, self.size, torch.get_num_threads()
        identity = None if self._program is None else (self._program, *settings)
        tried = _known.get(identity)
        if tried is None:
            with (
                preserved_randomness(self._model),
                away_from_constants(self._model),
                evaluating(self._model),
            ):
                tried = self._trial_of_places(record_format)
        if identity is not None and tried is not None:
            _known[identity] = tried
            while len(_known) > _MOST_KNOWN:
                _known.popitem(last=False)
        self._tried[record_format] = tried
        return tried

    def _trial_of_places(self, record_format: RecordFormat) -> _Place | None:
        count = min(_COMPARED_ROWS, _COMPARED_NUMBERS // max(1, self.dimension))
        count = max(BATCH, self.size + 1, count)
        try:
            records = self._trial(record_format, count)
        except Exception:
            return None

        def computed(which: Tensor) -> Vectors:
            return self._gradients([each[which.to(each.device)] for each in records])

        places = torch.arange(self.size, device="cpu")
        # Every place shares a record with every other, by way of some.
        starts = range(0, count, self.size)
        blocks = [(start + shift + places) % count for start in starts for shift in (0, 1)]
        one, other = blocks[:2]
        of_one, of_other = computed(one), computed(other)
        if computed(one).tobytes() != of_one.tobytes():
            raise GradientError(
                "the same records have other gradients the second time: a kernel adds up in "
                "no fixed order, so that one person's influence cannot be bounded; call "
                "torch.use_deterministic_algorithms(True), or train on the CPU"
            )
        if _alike(blocks, chain((of_one, of_other), map(computed, blocks[2:]))):
            return _Place.ANY
        # Of any two places one keeps its record of the first block and the other does not.
        for bit in range((self.size - 1).bit_length()):
            turned = (places >> bit) % 2
            mixed = computed(torch.where(turned == 0, one, other))
            expected = np.where(turned.numpy()[:, None] == 0, of_one, of_other)
            if mixed.tobytes() != expected.tobytes():
                return _Place.ALONE
        return _Place.OWN


def _alike(assigned: Iterable[Tensor], computed: Iterable[Vectors]) -> bool:
    """Whether each record has one gradient at all its places, to the last bit."""
    bits_of: dict[int, bytes] = {}
    for which, vectors in zip(assigned, computed, strict=True):
        for record, vector in zip(which.tolist(), vectors, strict=True):
            bits = vector.tobytes()
            if bits_of.setdefault(record, bits) != bits:
                return False
    return True


def _aligned(rows: Sequence[Tensor]) -> list[Tensor]:
    """In memory of their own, as torch aligns it: kernels round otherwise at other addresses."""
    return [each.clone(memory_format=torch.contiguous_format) for each in rows]


def _digests(given: Sequence[Tensor]) -> list[bytes]:
    """A hash of each row's bytes."""
    count = len(given[0])
    tensors = [each.detach().cpu().reshape(count, each[0].numel()).contiguous() for each in given]
    rows = np.hstack([each.view(torch.uint8).numpy() for each in tensors])
    return [blake2b(row.tobytes(), digest_size=16).digest() for row in rows]
