"""Made-up records for trials, from the data's shapes and precisions alone.

Whoever waits for the update sees whether a trial succeeds, so no private record may decide it.
Beside drawn numbers there are records as data sets have them: padded, with values missing, all
alike, images of bytes. On drawn numbers alone a model that fills in a column's mean, cuts texts at
the batch's longest or scales images where one has values above 1 would pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch import Tensor, nn

from privacy.training.records import RecordFormat

BATCH = 5  # records of a trial

Table = nn.Embedding | nn.EmbeddingBag
_Triple = tuple[int, int, int]

# (Content of the compared records, padding, the others' content): in each line the first that the
# model accepts is tried. Every table has 0 and 1.
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
# Each number is missing in one record: alone, or with those that stand a multiple of the number of
# records from it. Large models get fewer records, so that a trial takes less than twice its time.
_RECORDS, _FEWEST_RECORDS = 128, 5
_LAYER_NUMBERS = 2**20


@dataclass(frozen=True)
class Distribution:
    """How trial records are drawn."""

    numbers: str  # "normal", "uniform" in [0, 1), "binary" for 0 and 1, "counts" from 1 to 4
    integers: int | None  # of all; None draws 0 and 1, which every table and two classes have


# Tried in this order: a model may take no negative numbers, a loss one class or whole numbers only.
DISTRIBUTIONS = (
    Distribution("normal", None),
    Distribution("uniform", None),
    Distribution("uniform", 1),
    Distribution("uniform", 0),
    Distribution("binary", None),
    Distribution("counts", None),
)


def trial_records(
    record_format: RecordFormat, distribution: Distribution, count: int = BATCH
) -> list[Tensor]:
    """Records of this format, always the same: each tensor of shape (count, ...)."""
    generator = torch.Generator("cpu").manual_seed(0)
    records = []
    for shape, dtype, device in record_format:
        size = (count, *shape)
        if dtype.is_floating_point or dtype.is_complex:
            drawn = _numbers(distribution.numbers, size, generator)
        elif dtype == torch.bool or distribution.integers is None:
            drawn = torch.randint(0, 2, size, generator=generator, device="cpu")
        else:
            drawn = torch.full(size, distribution.integers, device="cpu")
        records.append(drawn.to(device=device, dtype=dtype))
    return records


def _numbers(distribution: str, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if distribution == "normal":
        return torch.randn(size, generator=generator, device="cpu")
    if distribution == "uniform":
        return torch.rand(size, generator=generator, device="cpu")
    low, high = (0, 2) if distribution == "binary" else (1, 5)
    return torch.randint(low, high, size, generator=generator, device="cpu")


@dataclass(frozen=True)
class OtherBatch:
    """A batch in which all records but the rows ``unchanged`` are exchanged."""

    unchanged: list[int]
    inputs: list[Tensor]


@dataclass(frozen=True)
class Comparison:
    """The same records beside others, some before and some after each."""

    inputs: list[Tensor]
    others: list[OtherBatch]
    backward: bool = True  # whether backward passes are compared too


def comparisons(
    inputs: Sequence[Tensor], *, layer_numbers: int, tables: Sequence[Table] = ()
) -> Iterator[list[Comparison]]:
    """Batches in which a value usual in data sets sets one record apart from the others.

    Of each list the first that the model accepts is enough. ``inputs`` are records that the model
    accepts; ``layer_numbers`` counts the inputs of all layers for one record.
    """
    integers = [each for each in inputs if not is_number(each)]
    numbers = [each for each in inputs if is_number(each)]
    weights = [each.weight for each in tables]
    on_cpu = all(each.device.type == "cpu" for each in (*integers, *weights))
    for triples in _triples(integers, on_cpu=on_cpu):
        yield [_comparison([_padded(each, *triple) for each in inputs]) for triple in triples]
    yield from _padded_by_tables(inputs, tables, on_cpu=on_cpu)
    if numbers:
        yield [_comparison([_missing(each) for each in inputs])]
    sizes = [each[0].numel() if is_number(each) else 0 for each in inputs]
    if sum(sizes) > 1:
        affordable = max(_FEWEST_RECORDS, _LAYER_NUMBERS // max(1, layer_numbers))
        records = min(sum(sizes), _RECORDS, affordable)
        yield [_each_missing(inputs, [sum(sizes[:at]) for at in range(len(sizes))], records)]


def _triples(integers: Sequence[Tensor], *, on_cpu: bool) -> tuple[tuple[_Triple, ...], ...]:
    if not integers:
        return _IN_EVERY_TABLE[:1]
    dtypes = {each.dtype for each in integers} if on_cpu else set()
    bytes_too = _BYTES if torch.uint8 in dtypes else ()
    return (_IN_MANY_TABLES if dtypes - {torch.bool} else _IN_EVERY_TABLE) + bytes_too


def _padded_by_tables(
    inputs: Sequence[Tensor], tables: Sequence[Table], *, on_cpu: bool
) -> Iterator[list[Comparison]]:
    """One input at a time padded by a table's ``padding_idx``, or by its last index.

    On a GPU, where an index beyond a table ends the process, only by a ``padding_idx`` that all
    tables have, and where one input alone can be meant.
    """
    texts = [
        at
        for at, each in enumerate(inputs)
        if not is_number(each) and each.dtype != torch.bool and each[0].numel() > 1
    ]
    indices = {each.padding_idx for each in tables if each.padding_idx is not None}
    sizes = {each.num_embeddings for each in tables}
    if on_cpu:
        indices |= {size - 1 for size in sizes}
    elif len(texts) > 1:
        return
    for padding in sorted(indices - {0, 1}):
        if not on_cpu and padding >= min(sizes):
            continue
        for text in texts:
            yield [
                _comparison(
                    [
                        _padded(each, content, padding if at == text else 1 - content, content)
                        for at, each in enumerate(inputs)
                    ]
                )
                for content in (1, 0)
            ]


def _comparison(inputs: Sequence[tuple[Tensor, Tensor]]) -> Comparison:
    return Comparison(
        [one for one, _ in inputs], [OtherBatch([1, 2], [other for _, other in inputs])]
    )


def unusual(values: Tensor, rows: Sequence[int], *, missing: bool) -> Tensor:
    """``values`` with an empty (or missing), a constant and a padded record in ``rows``."""
    changed = values.clone()
    empty, constant, padded = rows
    changed[empty] = nan if missing and is_number(values) else 0
    changed[constant] = 1
    outside = ~_box(values.shape[1:], narrow=False).to(values.device)
    changed[padded] = changed[padded].masked_fill(outside, 0)
    return changed


def is_number(values: Tensor) -> bool:
    """Whether they are numbers to compute with, not indices or classes."""
    return values.is_floating_point() or values.is_complex()


def _padded(like: Tensor, content: int, padding: int, others: int) -> tuple[Tensor, Tensor]:
    """Records with padding at all ends, beside emptier and beside fuller ones."""
    if is_number(like):
        return _beside(like, _drawn(like, 2), empty=0.0)
    shape = like.shape[1:]
    content, padding, others = (_in_range(like.dtype, each) for each in (content, padding, others))
    full = torch.full(shape, content, dtype=like.dtype, device="cpu")
    fuller = torch.full((_OTHERS, *shape), others, dtype=like.dtype, device="cpu")
    return _placed(like, [full, full], full, fuller, padding)


def _in_range(dtype: torch.dtype, value: int) -> int:
    """``value``, or the nearest that ``dtype`` holds."""
    if dtype == torch.bool:
        return int(value == 1)
    ends = torch.iinfo(dtype)
    return min(max(value, ends.min), ends.max)


def _missing(like: Tensor) -> tuple[Tensor, Tensor]:
    """Records with values missing at all ends."""
    if not is_number(like):
        return (_repeated(like),) * 2
    return _beside(like, _drawn(like, 2), empty=nan)


def _each_missing(inputs: Sequence[Tensor], before: Sequence[int], records: int) -> Comparison:
    """Records that miss one number, or few; every second one is exchanged for one that misses none.

    ``before`` counts a record's numbers before each input. A record that misses none comes first
    and last, so that each has an exchanged one on both sides.
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
    unchanged = [[int(row) for row in rows if row % 2 != exchanged] for exchanged in (0, 1)]
    others_of = [OtherBatch(*each) for each in zip(unchanged, changed, strict=True)]
    return Comparison(one, others_of, backward=False)


def _repeated(like: Tensor) -> Tensor:
    return like[torch.arange(2 + _OTHERS, device=like.device) % len(like)]


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
    like: Tensor, compared: Sequence[Tensor], small: Tensor, fuller: Tensor, empty: float
) -> tuple[Tensor, Tensor]:
    """``compared`` in boxes of padded records, beside a cell of ``small`` and beside ``fuller``."""
    shape = like.shape[1:]
    narrow, wide, cell = _box(shape, narrow=True), _box(shape, narrow=False), _cell(shape)
    if bool(narrow.all()):  # of one value: no end to pad
        narrow = wide = cell = ~narrow
    boxed = [
        torch.where(box, values, empty).to(like.dtype)
        for box, values in zip((narrow, wide), compared, strict=True)
    ]
    emptier = torch.where(cell, small, empty).to(like.dtype)
    nothing = torch.full_like(emptier, empty)
    return (
        _to(like, torch.stack(boxed), torch.stack([nothing, emptier, emptier])),
        _to(like, torch.stack(boxed), fuller),
    )


def _to(like: Tensor, compared: Tensor, others: Tensor) -> Tensor:
    """One of the others first: a record may be filled in from the one before it, or after it."""
    compared, others = compared.to(like), others.to(like)
    return torch.cat([others[:1], compared, others[1:]])


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
