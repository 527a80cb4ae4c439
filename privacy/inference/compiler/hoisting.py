"""Which rotations share their decomposition, weighed against the keys that they take.

A rotation decomposes a polynomial into digits and multiplies them with a key; after that comes a
division by the special prime. Rotations of one ciphertext share the first, and a sum of them the
last (Halevi and Shoup 2018, section 4.2; Bossuat et al. 2021, section 4.3), of which a rotation in
the midst of a sum needs half, for its digits: a tree of rotations that doubles what is
added up takes as many keys as it has steps, and one sum of all takes a key for each addend.
"""

from collections.abc import Iterator
from dataclasses import replace

from privacy.inference.arithmetic.program import Sums
from privacy.inference.ckks import CONJUGATE
from privacy.inference.compiler.candidates import PackedMap, PackingCandidate
from privacy.inference.compiler.operation_costs import milliseconds

_PRICES = (0.0, 1e-8, 3e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5)
"""Milliseconds that a byte of keys is worth: one price leads to one choice in every layer."""
_MOST_DOUBLINGS = 3
"""In one sum; of more, two sums are quicker."""


def hoisted(candidate: PackingCandidate) -> PackingCandidate:
    """The same packing with rotations shared at the least cost."""
    if candidate.batch:
        return candidate
    options = [
        [list(_options(candidate, part, index)) for part in layer.maps]
        for index, layer in enumerate(candidate.layers[:-1])
    ]
    ways = dict.fromkeys(_chosen(candidate, options, price) for price in _PRICES)
    return min(ways, key=lambda way: way.cost)


_Option = tuple[PackedMap, float, int]
"""Of a map: its window and sums, milliseconds, and bytes of keys."""


def _options(candidate: PackingCandidate, part: PackedMap, index: int) -> Iterator[_Option]:
    degree = candidate.degree
    for window in part.steps.windows:
        for sums in groupings(part.sums):
            trial = replace(part, window=window, sums=sums)
            operations, undivided = candidate.map_operations(trial, index)
            operations["divide", candidate.entry_levels[index]] += undivided
            spent = milliseconds(operations, degree)
            levels = candidate.map_rotations(trial, index).values()
            yield trial, spent, 8 * degree * sum(at * (at + 1) for at in levels)


def groupings(sums: Sums) -> Iterator[Sums]:
    """The doublings of a tree, one by one or several together, as evenly as can be."""
    tree = [min(group) for group in sums if CONJUGATE not in group]
    rest = tuple(group for group in sums if CONJUGATE in group)
    doublings = sum(len(group).bit_length() for group in sums if CONJUGATE not in group)
    seen: set[tuple[int, ...]] = set()
    for most in range(1, _MOST_DOUBLINGS + 1):
        count = -(-doublings // most)
        sizes = tuple((doublings + i) // count for i in range(count))
        if sizes in seen:
            continue
        seen.add(sizes)
        step = min(tree, default=0)
        groups: list[tuple[int, ...]] = []
        for size in sizes:
            groups.append(tuple(step * k for k in range(1, 1 << size)))
            step <<= size
        yield (*groups, *rest)


def _chosen(
    candidate: PackingCandidate, options: list[list[list[_Option]]], price: float
) -> PackingCandidate:
    layers = [
        replace(
            layer,
            maps=tuple(
                min(choices, key=lambda option: option[1] + price * option[2])[0]
                for choices in parts
            ),
        )
        for layer, parts in zip(candidate.layers, options, strict=False)
    ]
    return replace(candidate, layers=(*layers, candidate.layers[-1]))
