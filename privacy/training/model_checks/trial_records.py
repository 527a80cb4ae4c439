"""Records as data have them: padded, with values missing, all alike, images of bytes.

A model that fills in a column's mean, cuts texts at the batch's longest or scales images where one
has values above 1 treats numbers that are merely drawn as one that keeps its examples apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

Table = nn.Embedding | nn.EmbeddingBag
_Triple = tuple[int, int, int]

# Of (content of what is compared, padding, the others' content), in each line the first that the
# model takes. Every table has 0 and 1.
_IN_EVERY_TABLE: tuple[tuple[_Triple, ...], ...] = (((1, 0, 1),), ((0, 1, 0),))
# Not on a GPU, where an index beyond a table ends the process.
_IN_MANY_TABLES: tuple[tuple[_Triple, ...], ...] = (
    ((1, 0, 1),),
    ((2, 1, 2), (0, 1, 0)),
    ((1, -1, 1),),
    ((1, -100, 1),),
)
_BYTES: tuple[tuple[_Triple, ...], ...] = (((1, 0, 255),),)
_OTHERS = 3
# Every number is tried missing: alone in a record of its own, or with others that are as many apart
# as there are records. Of large models fewer, so that a trial takes less than twice its time.
_RECORDS, _FEWEST_RECORDS = 128, 5
_NUMBERS_TAKEN = 2**20


@dataclass(frozen=True)
class Beside:
    """A batch that is another in all records but some.

    Parameters
    ----------
    kept : list of int
        The rows that are the same.
    inputs : list of Tensor, shape (n, ...)
        The batch.
    """

    kept: list[int]
    inputs: list[Tensor]


@dataclass(frozen=True)
class Contrast:
    """The same records beside other ones, of which some come before and some after each.

    Parameters
    ----------
    inputs : list of Tensor, shape (n, ...)
        A batch.
    others : list of Beside
        What it is compared with.
    backward : bool
        Whether what comes back is compared too.
    """

    inputs: list[Tensor]
    others: list[Beside]
    backward: bool = True


def contrasts(
    inputs: Sequence[Tensor], *, taken: int, tables: Sequence[Table] = ()
) -> Iterator[list[Contrast]]:
    """Batches in which what is usual in data sets one record apart from the others.

    Of each list the first that the model takes is enough.

    Parameters
    ----------
    inputs : sequence of Tensor, shape (n, ...)
        Records that the model takes.
    taken : int
        How many numbers of a record all layers take.
    tables : sequence of nn.Embedding or nn.EmbeddingBag
        Those of the model, whose padding is tried too.
    """
    integers = [each for each in inputs if not is_number(each)]
    numbers = [each for each in inputs if is_number(each)]
    weights = [each.weight for each in tables]
    on_cpu = all(each.device.type == "cpu" for each in (*integers, *weights))
    for choices in _choices(integers, on_cpu=on_cpu):
        yield [_contrast([_padded(each, *triple) for each in inputs]) for triple in choices]
    yield from _padded_as_tables_say(inputs, tables, on_cpu=on_cpu)
    if numbers:
        yield [_contrast([_missing(each) for each in inputs])]
    sizes = [each[0].numel() if is_number(each) else 0 for each in inputs]
    if sum(sizes) > 1:
        affordable = max(_FEWEST_RECORDS, _NUMBERS_TAKEN // max(1, taken))
        records = min(sum(sizes), _RECORDS, affordable)
        yield [_each_missing(inputs, [sum(sizes[:at]) for at in range(len(sizes))], records)]


def _choices(integers: Sequence[Tensor], *, on_cpu: bool) -> tuple[tuple[_Triple, ...], ...]:
    if not integers:
        return _IN_EVERY_TABLE[:1]
    here = {each.dtype for each in integers} if on_cpu else set()
    bytes_too = _BYTES if torch.uint8 in here else ()
    return (_IN_MANY_TABLES if here - {torch.bool} else _IN_EVERY_TABLE) + bytes_too


def _padded_as_tables_say(
    inputs: Sequence[Tensor], tables: Sequence[Table], *, on_cpu: bool
) -> Iterator[list[Contrast]]:
    """One input at a time padded by what a table says that its padding is, or by its last index.

    On a GPU, where an index beyond a table ends the process, only by what is said, where all
    tables take it and one input alone can be meant.
    """
    texts = [
        at
        for at, each in enumerate(inputs)
        if not is_number(each) and each.dtype != torch.bool and each[0].numel() > 1
    ]
    said = {each.padding_idx for each in tables if each.padding_idx is not None}
    sizes = {each.num_embeddings for each in tables}
    if on_cpu:
        said |= {size - 1 for size in sizes}
    elif len(texts) > 1:
        return
    for padding in sorted(said - {0, 1}):
        if not on_cpu and padding >= min(sizes):
            continue
        for text in texts:
            yield [
                _contrast(
                    [
                        _padded(each, content, padding if at == text else 1 - content, content)
                        for at, each in enumerate(inputs)
                    ]
                )
                for content in (1, 0)
            ]


def _contrast(inputs: Sequence[tuple[Tensor, Tensor]]) -> Contrast:
    return Contrast([one for one, _ in inputs], [Beside([1, 2], [other for _, other in inputs])])


def unusual(one: Tensor, rows: Sequence[int], *, missing: bool) -> Tensor:
    """``one`` with an empty, a constant and a padded record in ``rows``, or with values missing."""
    changed = one.clone()
    empty, constant, padded = rows
    changed[empty] = nan if missing and is_number(one) else 0
    changed[constant] = 1
    outside = ~_box(one.shape[1:], narrow=False).to(one.device)
    changed[padded] = changed[padded].masked_fill(outside, 0)
    return changed


def is_number(one: Tensor) -> bool:
    """To compute with, and no index or class."""
    return one.is_floating_point() or one.is_complex()


def _padded(like: Tensor, content: int, padding: int, others: int) -> tuple[Tensor, Tensor]:
    """Records with padding at all ends, beside emptier and beside fuller ones."""
    if is_number(like):
        return _beside(like, _drawn(like, 2), empty=0.0)
    shape = like.shape[1:]
    content, padding, others = (_held(like.dtype, each) for each in (content, padding, others))
    full = torch.full(shape, content, dtype=like.dtype, device="cpu")
    fuller = torch.full((_OTHERS, *shape), others, dtype=like.dtype, device="cpu")
    return _placed(like, [full, full], full, fuller, padding)


def _held(dtype: torch.dtype, value: int) -> int:
    """``value``, or the other end of what ``dtype`` holds where it is beyond."""
    if dtype == torch.bool:
        return int(value == 1)
    kinds = torch.iinfo(dtype)
    return min(max(value, kinds.min), kinds.max)


def _missing(like: Tensor) -> tuple[Tensor, Tensor]:
    """Records with values missing at all ends."""
    if not is_number(like):
        return (_same(like, 2),) * 2
    return _beside(like, _drawn(like, 2), empty=nan)


def _each_missing(inputs: Sequence[Tensor], before: Sequence[int], records: int) -> Contrast:
    """Records that miss one number, or few; every second one is exchanged for one that misses none.

    ``before`` is how many numbers those of the record have before each input's. A record that
    misses none comes first and last, so that each has an exchanged one on both sides.
    """
    rows = torch.arange(records + 2, device="cpu")
    one: list[Tensor] = []
    changed: tuple[list[Tensor], list[Tensor]] = ([], [])
    for like, start in zip(inputs, before, strict=True):
        if not is_number(like):
            for batches in (one, *changed):
                batches.append(like[rows.to(like.device) % len(like)])
            continue
        drawn = _drawn(like, len(rows))
        which = 1 + (start + torch.arange(like[0].numel(), device="cpu")) % records
        missing = (rows[:, None] == which).view(drawn.shape)
        base, wild = torch.where(missing, nan, drawn), _wild(drawn)
        one.append(base.to(like))
        for exchanged, batches in enumerate(changed):
            others = (rows % 2 == exchanged).view(-1, *[1] * (drawn.dim() - 1))
            batches.append(torch.where(others, wild, base).to(like))
    kept = [[int(row) for row in rows if row % 2 != exchanged] for exchanged in (0, 1)]
    others_of = [Beside(*each) for each in zip(kept, changed, strict=True)]
    return Contrast(one, others_of, backward=False)


def _same(like: Tensor, kept: int) -> Tensor:
    rows = torch.arange(kept + _OTHERS, device=like.device) % len(like)
    return like[rows]


def _beside(like: Tensor, drawn: Tensor, *, empty: float) -> tuple[Tensor, Tensor]:
    first, second = drawn
    others = _drawn(like, _OTHERS)
    return _placed(like, [first, second], 0.5 * others[0], _wild(others), empty)


def _wild(drawn: Tensor) -> Tensor:
    """As large as the bytes of an image, and below zero."""
    factors = torch.tensor([255.0, -255.0, 1.0], device="cpu")
    factors = factors[torch.arange(len(drawn), device="cpu") % 3]
    return drawn * factors.view(-1, *[1] * (drawn.dim() - 1))


def _placed(
    like: Tensor, kept: Sequence[Tensor], small: Tensor, fuller: Tensor, empty: float
) -> tuple[Tensor, Tensor]:
    """``kept`` in two boxes of a padded record, beside one cell of ``small``, and ``fuller``."""
    shape = like.shape[1:]
    narrow, wide, cell = _box(shape, narrow=True), _box(shape, narrow=False), _cell(shape)
    if bool(narrow.all()):  # of one value: no end to pad
        narrow = wide = cell = ~narrow
    same = [
        torch.where(box, values, empty).to(like.dtype)
        for box, values in zip((narrow, wide), kept, strict=True)
    ]
    emptier = torch.where(cell, small, empty).to(like.dtype)
    nothing = torch.full_like(emptier, empty)
    return (
        _to(like, torch.stack(same), torch.stack([nothing, emptier, emptier])),
        _to(like, torch.stack(same), fuller),
    )


def _to(like: Tensor, kept: Tensor, others: Tensor) -> Tensor:
    """One of the others first: a record may be filled in from the one before it, or after it."""
    kept, others = kept.to(like), others.to(like)
    return torch.cat([others[:1], kept, others[1:]])


def _drawn(like: Tensor, records: int) -> Tensor:
    """Uniform in [0, 1): neither negative nor as large as a byte."""
    generator = torch.Generator("cpu").manual_seed(records)
    return torch.rand((records, *like.shape[1:]), generator=generator, device="cpu")


def _box(shape: Sequence[int], *, narrow: bool) -> Tensor:
    """True inside of a record, which its padding surrounds along every axis."""
    inside = torch.ones(tuple(shape), dtype=torch.bool, device="cpu")
    for axis, size in enumerate(shape):
        if size > 1:
            start = min(1, size - 2)
            length = max(1, (size - 2) * (1 if narrow else 2) // 3)
            along = torch.zeros(size, dtype=torch.bool, device="cpu")
            along[start : start + length] = True
            inside &= along.view(-1, *[1] * (len(shape) - axis - 1))
    return inside


def _cell(shape: Sequence[int]) -> Tensor:
    """True at the first place of the box."""
    inside = torch.zeros(tuple(shape), dtype=torch.bool, device="cpu")
    inside[tuple(min(1, max(size - 2, 0)) for size in shape)] = True
    return inside
