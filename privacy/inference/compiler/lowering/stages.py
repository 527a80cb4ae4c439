"""Which activations are evaluated together, and which values are carried past them.

The activations of a model are a graph. Each gets a stage, after those that it depends on. Values
that stages after it still need are carried past a stage; the fewest elements from which all of them
follow by affine maps are a minimum vertex cut between the values before the stage and their uses
after it (Menger's theorem; found as a maximum flow).
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.sparse.csgraph import maximum_flow

from privacy.inference.compiler.lowering.values import Activated, Value, in_order


@dataclass(frozen=True)
class StagePlan:
    """Activations that are evaluated together, and the values carried past them."""

    activations: tuple[Activated, ...]
    carried: tuple[Value, ...]

    @property
    def degree(self) -> int:
        """The highest of its activations."""
        return max(value.activation.degree for value in self.activations)

    @property
    def cost(self) -> int:
        """Elements that carrying takes at most."""
        return self.degree * sum(value.size for value in self.carried)


def stages(output: Value) -> tuple[StagePlan, ...]:
    """The stages of a model: each activation as early or all as late as possible, by the cost."""
    order = in_order(output)
    early = _earliest(order)
    last = max(early.values(), default=0)
    plans = [_planned(order, output, places, last) for places in (early, _latest(order, last))]
    return min(plans, key=lambda plan: sum(stage.cost for stage in plan))


def _earliest(order: list[Value]) -> dict[int, int]:
    """Stage by value: that of the last activation which it depends on."""
    places: dict[int, int] = {}
    for value in order:
        before = max((places[id(parent)] for parent in value.parents), default=0)
        places[id(value)] = before + isinstance(value, Activated)
    return places


def _latest(order: list[Value], last: int) -> dict[int, int]:
    """The same, with every activation as late as its uses allow."""
    places: dict[int, int] = {}
    for value in reversed(order):
        here = places.setdefault(id(value), last)
        for parent in value.parents:
            before = here - isinstance(value, Activated)
            places[id(parent)] = min(places.get(id(parent), last), before)
    return places


def _planned(
    order: list[Value], output: Value, places: dict[int, int], last: int
) -> tuple[StagePlan, ...]:
    made: list[StagePlan] = []
    basis = [value for value in order if not value.parents and not value.is_map]
    for stage in range(1, last + 1):
        here = [v for v in order if isinstance(v, Activated) and places[id(v)] == stage]
        available = _available(order, basis)
        uses: dict[int, Value] = {}
        if id(output) in available:
            uses[id(output)] = output
        for value in order:
            if id(value) in available or value in here:
                continue
            for parent in value.parents:
                if id(parent) in available:
                    uses[id(parent)] = parent
        region = [value for value in order if id(value) in available]
        carried = _smallest_cut(region, basis, list(uses.values()))
        made.append(StagePlan(tuple(here), tuple(carried)))
        basis = [*here, *carried]
    return tuple(made)


def _available(order: list[Value], basis: list[Value]) -> set[int]:
    """What follows from some values by affine maps alone."""
    there = {id(value) for value in basis}
    for value in order:
        if value.is_map and all(id(parent) in there for parent in value.parents):
            there.add(id(value))
    return there


def _smallest_cut(region: list[Value], basis: list[Value], uses: list[Value]) -> list[Value]:
    """The fewest elements of values in a region that stand on every way from basis to uses."""
    if not uses:
        return []
    numbers = {id(value): index for index, value in enumerate(region)}
    count, unlimited = len(region), np.iinfo(np.int32).max // 4
    source, sink = 2 * count, 2 * count + 1

    def entering(value: Value) -> int:
        return 2 * numbers[id(value)]

    edges = {(2 * n, 2 * n + 1): region[n].size for n in range(count)}
    for value in region:
        if value in basis:
            edges[source, entering(value)] = unlimited
            continue
        for parent in value.parents:
            edges[entering(parent) + 1, entering(value)] = unlimited
    for value in uses:
        edges[entering(value) + 1, sink] = unlimited
    tails, heads = zip(*edges, strict=True)
    capacities = np.fromiter(edges.values(), dtype=np.int32)
    graph = sparse.csr_array(
        sparse.coo_array((capacities, (tails, heads)), shape=(sink + 1, sink + 1))
    )
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)
    rest = graph - maximum_flow(graph, source, sink).flow
    reached = _reached(sparse.csr_array(rest), source)
    return [
        value
        for value in region
        if entering(value) in reached and entering(value) + 1 not in reached
    ]


def _reached(rest: sparse.csr_array, start: int) -> set[int]:
    """The nodes that a flow could still reach."""
    reached, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        part = slice(rest.indptr[node], rest.indptr[node + 1])
        for head, room in zip(rest.indices[part], rest.data[part], strict=True):
            if room > 0 and int(head) not in reached:
                reached.add(int(head))
                waiting.append(int(head))
    return reached
