"""The packings that a network could have, and the operations each would take."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import numpy as np

from privacy.inference.arithmetic.polynomials import DEPTH, PRODUCTS
from privacy.inference.arithmetic.scales import AFTER, NEVER, depth
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES
from privacy.inference.compiler.costs import Operation
from privacy.inference.compiler.lowering import Affine, Network
from privacy.inference.compiler.packing import power_of_two, steps_between, steps_of
from privacy.inference.plan import MESSAGE_OVERHEAD

_MAX_WAYS = 4096


@dataclass(frozen=True)
class Shape:
    """What the error and the time depend on, of a packing.

    Attributes
    ----------
    degree : int
    blocks, paired, ciphertexts :
        Of the first layer.
    following : int or None
    doublings : tuple of int
        Tree rotations (and conjugation) of each layer but the last.
    babies, giants, terms : tuple of int
        Of each layer but the last: rotations; of each layer: products in a sum. Coefficients
        that are read count as one product of every slot, by the mean.
    copies : int
        Of each entry in the slots, at the last layer.
    answers : int
    degrees : tuple of int
        Of the activations.
    rescales : tuple of int
        Of each activation, as in :class:`Scales`.
    repeats : tuple of float
        The share of slots after which each layer's plaintexts repeat, of each layer but the last.
    late : bool
        Whether the last activation is relinearised after the last layer: quicker, and rougher.
    batch : bool
        Whether a slot holds an image; then nothing is rotated and weights are integers.
    sizes : tuple of int
        Of a batch: outputs of each layer.
    reads : tuple of int
        Of a batch: inputs of each layer, once for all outputs that read the same.
    encrypted : bool
        Whether weights are ciphertexts, so that every sum of products is relinearised.
    """

    degree: int
    blocks: int
    paired: bool
    ciphertexts: int
    following: int | None
    doublings: tuple[int, ...]
    babies: tuple[int, ...]
    giants: tuple[int, ...]
    terms: tuple[int, ...]
    copies: int
    answers: int
    degrees: tuple[int, ...]
    rescales: tuple[int, ...]
    repeats: tuple[float, ...] = ()
    late: bool = False
    batch: bool = False
    sizes: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    encrypted: bool = False

    @property
    def levels(self) -> int:
        """Data primes that are needed: one for each rescaling in a row, and one for the answer."""
        return 1 + sum(map(depth, self.degrees, self.rescales))

    def leaves_large(self, index: int) -> bool:
        """Whether activation ``index`` leaves its result to be relinearised after the next layer.

        It is where that is cheaper: there are fewer to relinearise, or they are at a lower level.
        """
        if self.batch:
            return self.sizes[index + 1] < self.sizes[index]
        return self.late and index + 1 == len(self.degrees)

    def operations(self) -> Counter[Operation]:
        """How often each operation is done, and at which level."""
        if self.batch:
            return _batch_operations(
                self.levels,
                self.ciphertexts,
                self.terms,
                self.sizes,
                self.reads,
                self.degrees,
                self.rescales,
            )
        count: Counter[Operation] = Counter()
        level = self.levels
        times = "multiply" if self.encrypted else "multiply plain"
        count["load", level] += self.ciphertexts
        for index, (doublings, power) in enumerate(zip(self.doublings, self.degrees, strict=True)):
            products = self.ciphertexts if index == 0 else self.babies[index] * self.giants[index]
            count[times, level] += products
            count["relinearise", level] += self.giants[index] if self.encrypted else 0
            rescale = self.rescales[index]
            early = rescale if rescale >= 0 else doublings
            count["rotate", level] += early + self.babies[index] + self.giants[index] - 2
            if rescale >= 0:
                count["rescale", level] += 1
                level -= 1
                count["rotate", level] += doublings - early
            for step in range(PRODUCTS[power]):
                # Products of one depth happen at one level; the deepest ones are counted there.
                here = level - min(step, DEPTH[power] - 1)
                count["multiply", here] += 1
                count["relinearise", here] += 1
                count["rescale", here] += rescale == AFTER
            if rescale == AFTER:
                level -= DEPTH[power]
        if self.late:
            # The last activation is relinearised after the last layer, where it is cheapest.
            count["relinearise", 2] -= 1
            count["relinearise", 1] += 1
        count[times, 1] += self.answers
        count["relinearise", 1] += self.answers if self.encrypted else 0
        count["mask", 1] += self.answers
        return +count

    @property
    def query_bytes(self) -> int:
        """Bytes of a query's residues and seeds."""
        return self.ciphertexts * (8 * self.degree * self.levels + QUERY_SEED_BYTES)


def shapes(network: Network, degree: int, *, encrypted: bool) -> Iterator[Shape]:
    """Every packing of a network with activations that fits a ring degree."""
    slots = degree // 2
    sizes = [power_of_two(affine.outputs) for affine in network.affines]
    if max(sizes[:-1]) > slots:
        return
    first = network.affines[0]
    width = max(1, int(max(first.structure.sum(axis=1))))
    for log_blocks in range((slots // sizes[0]).bit_length()):
        for paired in (False, True):
            blocks = 1 << log_blocks
            period = slots // blocks
            ciphertexts = -(-width // (blocks * (2 if paired else 1)))
            middle = network.affines[1:-1]
            following = sizes[1] if middle else None
            doublings, babies, giants = [log_blocks + paired], [1], [1]
            terms, repeats = [width], [1.0]
            here = sizes[0] if following is None else period
            for index in range(1, len(sizes) - 1):
                before, after = sizes[index - 1], sizes[index]
                steps = steps_between(before, after, here)
                baby, giant = steps_of(steps)
                babies.append(baby)
                giants.append(giant)
                doublings.append((max(here, after) // after).bit_length() - 1)
                terms.append(steps * max(here, after) // after)
                repeats.append(max(here, after) / slots)
                here = after
            terms.append(1)
            copies = slots // here
            answers = -(-network.affines[-1].outputs // (2 * copies))
            shape = Shape(
                degree,
                blocks,
                paired,
                ciphertexts,
                following,
                tuple(doublings),
                tuple(babies),
                tuple(giants),
                tuple(terms),
                copies,
                answers,
                tuple(activation.degree for activation in network.activations),
                (AFTER,) * len(network.activations),
                tuple(repeats),
                encrypted=encrypted,
            )
            yield shape
            if answers == 1 and not encrypted:
                yield replace(shape, late=True)


def message_bytes(shape: Shape) -> int:
    """Bytes of the message with one query."""
    return MESSAGE_OVERHEAD + shape.query_bytes


def with_fewest_levels(shape: Shape) -> Shape:
    """The same packing with no square rescaled: the smallest query that it can have."""
    if shape.encrypted:
        return shape
    rescales = tuple(NEVER if power == 2 else AFTER for power in shape.degrees)
    return replace(shape, rescales=rescales, late=False)


def rescaled(shape: Shape) -> Iterator[Shape]:
    """The same packing with squares rescaled elsewhere: mostly quicker, and rougher.

    With encrypted weights there is no choice. Of very many ways, those that differ in the last
    activations.
    """
    if shape.encrypted:
        return
    ways: list[tuple[int, ...]] = [
        (AFTER, NEVER, *sorted({0, doublings})) if power == 2 else (AFTER,)
        for power, doublings in zip(shape.degrees, shape.doublings, strict=True)
    ]
    for rescales in islice(product(*ways), _MAX_WAYS):
        if rescales != shape.rescales:
            late = shape.late and rescales[-1] == AFTER
            yield replace(shape, rescales=rescales, late=late)


def batch_shape(network: Network, degree: int) -> Shape:
    """The packing of a batch."""
    layers = len(network.activations)
    return Shape(
        degree,
        1,
        False,
        network.affines[0].inputs,
        None,
        (0,) * layers,
        (1,) * layers,
        (1,) * layers,
        tuple(int(max(affine.structure.sum(axis=1))) for affine in network.affines),
        1,
        network.affines[-1].outputs,
        tuple(activation.degree for activation in network.activations),
        (AFTER,) * layers,
        (1.0,) * layers,
        batch=True,
        sizes=tuple(affine.outputs for affine in network.affines),
        reads=tuple(sum(map(len, supports(affine))) for affine in network.affines),
    )


def supports(affine: Affine) -> dict[tuple[int, ...], list[int]]:
    """Outputs by the inputs that the architecture lets them read."""
    structure = affine.structure
    found: dict[tuple[int, ...], list[int]] = {}
    for row in range(affine.outputs):
        read = structure.indices[structure.indptr[row] : structure.indptr[row + 1]]
        found.setdefault(tuple(np.sort(read).tolist()), []).append(row)
    return found


def batch_operations(network: Network, level: int) -> Counter[Operation]:
    """Counts for a batch through a model that is one affine map."""
    affine = network.affines[0]
    terms = (int(max(affine.structure.sum(axis=1))),)
    reads = (sum(map(len, supports(affine))),)
    return _batch_operations(level, affine.inputs, terms, (affine.outputs,), reads, (), ())


def _batch_operations(
    level: int,
    inputs: int,
    terms: tuple[int, ...],
    sizes: tuple[int, ...],
    reads: tuple[int, ...],
    degrees: tuple[int, ...],
    rescales: tuple[int, ...],
) -> Counter[Operation]:
    count: Counter[Operation] = Counter({("expand", level): inputs})
    for index, (power, rescale) in enumerate(zip(degrees, rescales, strict=True)):
        count["split", level] += reads[index]
        count["scalar", level] += terms[index] * sizes[index]
        count["reduce", level] += sizes[index]
        narrows = sizes[index + 1] < sizes[index]
        count["load residues", level] += sizes[index]
        if rescale >= 0:
            count["rescale", level] += sizes[index]
            level -= 1
        for step in range(PRODUCTS[power]):
            here = level - min(step, DEPTH[power] - 1)
            count["multiply", here] += sizes[index]
            count["rescale", here] += sizes[index] if rescale == AFTER else 0
            if step + 1 < PRODUCTS[power] or not narrows:
                count["relinearise", here] += sizes[index]
        if rescale == AFTER:
            level -= DEPTH[power]
        count["unload", level] += sizes[index]
        if narrows:
            count["relinearise", level] += sizes[index + 1]
    count["split", level] += reads[-1]
    count["scalar", level] += terms[-1] * sizes[-1]
    count["reduce", level] += sizes[-1]
    count["load residues", level] += sizes[-1]
    count["mask", level] += sizes[-1]
    return +count
