"""The packings that a network could have, and the operations of each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from scipy import sparse

from privacy.inference.arithmetic.network import Layer, Network
from privacy.inference.arithmetic.polynomials import DEPTH, PRODUCTS
from privacy.inference.arithmetic.program import Sums
from privacy.inference.arithmetic.scales import depth
from privacy.inference.ckks import SEED_BYTES
from privacy.inference.compiler.operation_costs import (
    Operations,
    milliseconds,
    relinearisation_level,
)
from privacy.inference.compiler.packing import (
    ALONE,
    Steps,
    block_sums,
    copy_sums,
    periodic_layout,
    power_of_two,
    steps_of,
)
from privacy.inference.plan import MESSAGE_OVERHEAD, Indices
from privacy.inference.rescaling import (
    AFTER,
    BOTH,
    FIRST,
    NEVER,
    SUMMED,
    rescaled_after,
    rescaled_before,
)

_KEY_BYTES = 8_000_000
"""Of all keys, up to which they cost nothing."""
_MORE_KEYS = 1.1
"""By how much an answer must be quicker that takes more."""
_KEY_PRICE = 1e-6
"""Milliseconds of an answer for which a further byte of keys is taken."""
_DENSE = 0.9
"""Share of the weights that a layer has, from which on its input is laid out for it."""


@dataclass(frozen=True)
class PackedMap:
    """How one source of a layer is multiplied.

    Attributes
    ----------
    source : int
        As in :class:`Layer`.
    terms : int
        Products in a sum; in the last layer, one product of every slot by the mean.
    steps : Steps
        Rotations of the source.
    window : int
        What giant steps are multiples of.
    sums : Sums
        What follows the products.
    repeats : float
        The share of slots after which plaintexts repeat.
    reads : int
        Of a batch: its inputs, once for all outputs that read the same.
    """

    source: int
    terms: int
    steps: Steps = ALONE
    window: int = 1
    sums: Sums = ()
    repeats: float = 1.0
    reads: int = 0

    @property
    def turned(self) -> bool:
        """Whether products are of rotations of the source, if only of one."""
        return self.steps.babies(self.window) != (0,)

    @property
    def giants(self) -> int:
        """Giant steps, the one by nothing included."""
        return self.steps.giants(self.window)

    @property
    def giants_with_products(self) -> int:
        """Giant steps that have baby steps."""
        return len({number // self.window for number in self.steps.numbers})

    @property
    def products(self) -> int:
        """Plaintexts."""
        return len(self.steps.numbers)

    @property
    def doublings(self) -> int:
        """How often its sums double what is added up."""
        return sum(len(group).bit_length() for group in self.sums)


@dataclass(frozen=True)
class PackedLayerCandidate:
    """How one layer is packed.

    Attributes
    ----------
    maps : tuple of PackedMap
    ciphertexts : int
        Of the query, if it reads the input; else 0.
    degree : int
        Of its activation; 0 without one.
    outputs : int
    blocks, paired, following :
        If it reads the input, as in :func:`gather`.
    """

    maps: tuple[PackedMap, ...]
    ciphertexts: int
    degree: int
    outputs: int
    blocks: int = 1
    paired: bool = False
    following: int | None = None


@dataclass(frozen=True)
class PackingCandidate:
    """The parts of a packing on which its error and its time depend.

    Attributes
    ----------
    degree, answers : int
        The ring's degree; polynomials in an answer.
    layers : tuple of PackedLayerCandidate
    rescales : tuple of int
        Of each activation, as in :class:`Scales`.
    copies : int
        Of each entry in the slots, at the last layer.
    relinearise_after_last_layer : bool
        Whether the last activation is relinearised after the last layer: quicker, and rougher.
    encrypted : bool
        Whether weights are ciphertexts, so that every sum of products is relinearised.
    batch : bool
        Whether a slot holds an image; then nothing is rotated and weights are integers.
    narrowing : frozenset of int
        Of a batch: layers that one layer alone reads, with fewer outputs.
    answer_level : int
        Primes of an answer.
    """

    degree: int
    layers: tuple[PackedLayerCandidate, ...]
    answers: int
    rescales: tuple[int, ...]
    copies: int = 1
    relinearise_after_last_layer: bool = False
    encrypted: bool = False
    batch: bool = False
    narrowing: frozenset[int] = frozenset()
    answer_level: int = 1

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts in a query."""
        return sum(layer.ciphertexts for layer in self.layers)

    @cached_property
    def degrees(self) -> tuple[int, ...]:
        """Of the activations."""
        return tuple(layer.degree for layer in self.layers if layer.degree)

    @cached_property
    def layer_rescales(self) -> tuple[int, ...]:
        """Of each layer, that of its activation, and :data:`NEVER` without one."""
        rescales = iter(self.rescales)
        return tuple(next(rescales) if layer.degree else NEVER for layer in self.layers)

    @cached_property
    def _taken(self) -> tuple[tuple[int, ...], int]:
        """Levels taken when each layer is entered, and in all."""
        taken, before = [0], []
        for layer, rescale in zip(self.layers, self.layer_rescales, strict=True):
            before.append(max(taken[part.source] for part in layer.maps))
            taken.append(before[-1] + (depth(layer.degree, rescale) if layer.degree else 0))
        return tuple(before), taken[-1]

    @cached_property
    def levels(self) -> int:
        """Data primes that are needed: one for each rescaling in a row, and the answer's."""
        return self.answer_level + self._taken[1]

    @property
    def query_bytes(self) -> int:
        """Bytes of the message with one query."""
        one = 8 * self.degree * self.levels + SEED_BYTES
        return MESSAGE_OVERHEAD + self.ciphertexts * one

    @cached_property
    def large(self) -> frozenset[int]:
        """Layers whose result is left to be relinearised after the one layer that reads it.

        They are where that is cheaper: there are fewer to relinearise, or they are at a lower
        level.
        """
        if self.batch:
            return self.narrowing
        last = self.layers[-1].maps[0].source - 1
        return frozenset({last} if self.relinearise_after_last_layer else ())

    @cached_property
    def users(self) -> tuple[tuple[int, ...], ...]:
        """By source, the layers that read it."""
        return tuple(
            tuple(
                index
                for index, layer in enumerate(self.layers)
                if any(part.source == source for part in layer.maps)
            )
            for source in range(len(self.layers))
        )

    @cached_property
    def milliseconds(self) -> float:
        """Time of an evaluation on the reference machine."""
        return milliseconds(self.operations, self.degree)

    @cached_property
    def operations(self) -> Operations:
        """How often each operation is done, and at which level."""
        return +(self._batch_operations() if self.batch else self._slot_operations())

    @cached_property
    def entry_levels(self) -> tuple[int, ...]:
        """The level at which each layer is entered."""
        return tuple(self.levels - taken for taken in self._taken[0])

    @cached_property
    def rotations(self) -> dict[int, int]:
        """The steps that values are rotated by, and the highest level that each is at."""
        highest: dict[int, int] = {}
        for index, layer in enumerate(self.layers[:-1]):
            for part in layer.maps:
                for step, at in self.map_rotations(part, index).items():
                    highest[step] = max(at, highest.get(step, 0))
        return highest

    def map_rotations(self, part: PackedMap, index: int) -> dict[int, int]:
        """As :attr:`rotations`, of one map of layer ``index``."""
        level = self.entry_levels[index]
        after = level - 1 if self.layer_rescales[index] == FIRST else level
        steps = {step: after for group in part.sums for step in group}
        babies = [step for step in part.steps.babies(part.window) if step]
        if part.giants > 1:
            babies.append(part.window)
        return steps | dict.fromkeys(babies, level)

    @cached_property
    def cost(self) -> float:
        """Milliseconds, and what keys beyond a number of bytes are worth."""
        more = self.key_bytes - _KEY_BYTES
        return (
            self.milliseconds if more <= 0 else _MORE_KEYS * self.milliseconds + _KEY_PRICE * more
        )

    @cached_property
    def key_bytes(self) -> int:
        """Bytes of the public and evaluation keys, but for seeds."""
        levels = [*self.rotations.values(), relinearisation_level(self.operations)]
        polynomials = self.levels + 1 + sum(level * (level + 1) for level in levels)
        return 8 * self.degree * polynomials

    def _slot_operations(self) -> Operations:
        count: Operations = Counter()
        count["load", self.levels] += self.ciphertexts
        for index, layer in enumerate(self.layers[:-1]):
            if not layer.degree:
                continue
            level = self.entry_levels[index]
            extended = []
            for part in layer.maps:
                operations, undivided = self.map_operations(part, index)
                count += operations
                extended.append(undivided)
            if self.layer_rescales[index] == FIRST:
                count["rescale", level] += len(layer.maps)
                self._count_sum(count, extended, level - 1)
                level -= 1
            else:
                self._count_sum(count, extended, level)
                if rescaled_before(self.layer_rescales[index]):
                    count["rescale", level] += 1
                    level -= 1
            self._count_activation(count, index, level, 1)
        level, sources = self.answer_level, len(self.layers[-1].maps)
        if self.encrypted:
            count["multiply", level] += self.answers * sources
            _count_relinearisations(count, level, self.answers)
        else:
            count["multiply plain", level] += self.answers * sources
        count["mask", level] += self.answers
        return count

    @staticmethod
    def _count_sum(count: Operations, extended: Sequence[bool], level: int) -> None:
        """Count the sum of a layer's maps, and the division that it needs."""
        if len(extended) > 1:
            count["extend", level] += extended.count(False)
        count["divide", level] += len(extended) > 1 or extended[0]

    def map_operations(self, part: PackedMap, index: int) -> tuple[Operations, bool]:
        """Products and rotations of one map of layer ``index``, and whether a division is left.

        Rotations are taken before a division by the special prime, which one in a row needs: of
        both polynomials after the last, of the second one before each but the first.
        """
        count: Operations = Counter()
        level, giants = self.entry_levels[index], part.giants
        steps = part.steps.babies(part.window)
        turned = len(steps) - (0 in steps)
        products = part.products if part.source else self.layers[index].ciphertexts
        extended = self.encrypted or turned > 0 or giants > 1
        if self.encrypted:
            if part.source and part.turned:
                count["extend", level] += 1
                count["hoist", level] += 1
                count["hoisted rotation", level] += turned
                count["divide", level] += turned
            count["multiply", level] += products
            count["relinearise", level] += part.giants_with_products
        elif extended:
            count["extend", level] += 1
            if turned:
                count["hoist", level] += 1
                count["hoisted rotation", level] += turned
            count["hoisted product", level] += products
        else:
            count["multiply plain", level] += products
        self._count_rotations(count, level, giants - 1, 1)
        if self.layer_rescales[index] == FIRST:
            count["divide", level] += 1 if extended else 0
            level, extended = level - 1, False
        if part.sums and not extended:
            count["extend", level] += 1
            count["divide half", level] -= 1
            extended = True
        for group in part.sums:
            self._count_rotations(count, level, 1, len(group))
        return count, extended

    @staticmethod
    def _count_rotations(count: Operations, level: int, times: int, steps: int) -> None:
        """Count rotations of what is not divided yet, by so many steps each time."""
        count["divide half", level] += times
        count["hoist", level] += times
        count["hoisted rotation", level] += times * steps

    def _count_activation(self, count: Operations, index: int, level: int, values: int) -> None:
        """Count one activation of so many values, from ``level`` on."""
        power, after = self.layers[index].degree, rescaled_after(self.layer_rescales[index])
        large = index in self.large
        for step in range(PRODUCTS[power]):
            # Products of one depth happen at one level; the deepest ones are counted there.
            here = level - min(step, DEPTH[power] - 1)
            count["multiply", here] += values
            count["rescale", here] += values if after else 0
            if step + 1 < PRODUCTS[power] or not large:
                _count_relinearisations(count, here, values)
        if large:
            (user,) = self.users[index + 1]
            wanted = self.layers[user].outputs if self.batch else self.answers
            _count_relinearisations(count, self.entry_levels[user], wanted)

    def _batch_operations(self) -> Operations:
        count: Operations = Counter({("expand", self.levels): self.ciphertexts})
        for index, layer in enumerate(self.layers):
            size, level, last = layer.outputs, self.entry_levels[index], layer is self.layers[-1]
            if not layer.degree and not last:
                continue
            for part in layer.maps:
                count["split", level] += part.reads
                count["scalar", level] += part.terms * size
                count["reduce", level] += size
            count["load residues", level] += size
            if last:
                count["mask", level] += self.answers
                break
            if rescaled_before(self.layer_rescales[index]):
                count["rescale", level] += size
                level -= 1
            self._count_activation(count, index, level, size)
            count["unload", level] += size
        return count


def _count_relinearisations(count: Operations, level: int, times: int) -> None:
    count["relinearise", level] += times
    count["divide", level] += times


class SlotPackings:
    """The packings of a network with activations, for one image; rotations are looked up once."""

    def __init__(self, network: Network, *, encrypted: bool) -> None:
        self._network = network
        self._encrypted = encrypted
        self._steps: dict[tuple[int, int, int, int | None], Steps] = {}

    def candidates(self, degree: int) -> Iterator[PackingCandidate]:
        """Every packing that fits a ring degree; how rotations are shared is not decided yet."""
        slots = degree // 2
        sizes = [power_of_two(layer.outputs) for layer in self._network.layers[:-1]]
        if max(sizes) > slots:
            return
        smallest = min(
            (
                size
                for size, layer in zip(sizes, self._network.layers, strict=False)
                if layer.reads_input and layer.activation is not None
            ),
            default=slots,
        )
        for log_blocks in range((slots // smallest).bit_length()):
            for paired, arranged in product((False, True), self._arrangements):
                yield from self._packed(degree, 1 << log_blocks, paired=paired, arranged=arranged)

    @cached_property
    def _arrangements(self) -> tuple[bool, ...]:
        """Whether outputs of layers that read the input are laid out for the layer that reads them.

        Not of one with few of the weights that it could have: it would need more rotations.
        """
        shares = [
            structure.nnz / (structure.shape[0] * structure.shape[1])
            for index, layer in enumerate(self._network.layers[:-1])
            if layer.reads_input and (structure := self._read_by(index)) is not None
        ]
        if not shares or min(shares) >= _DENSE:
            return (True,)
        return (True, False)

    def _packed(
        self, degree: int, blocks: int, *, paired: bool, arranged: bool
    ) -> Iterator[PackingCandidate]:
        network, slots = self._network, degree // 2
        layers: list[PackedLayerCandidate] = []
        laid: list[tuple[int, int | None]] = [(0, None)]  # period and following, by source
        for index, layer in enumerate(network.layers[:-1]):
            size = power_of_two(layer.outputs)
            following = None
            period = size
            if layer.reads_input and layer.activation is not None:
                # Narrow layers take more blocks than wide ones have room for.
                own = min(blocks, slots // size)
                if arranged and self._read_by(index) is not None:
                    (user,) = network.users[index + 1]
                    following = power_of_two(network.layers[user].outputs)
                    period = slots // own
                layers.append(self._gathered(layer, slots, own, paired, following))
            elif layer.activation is None:
                layers.append(PackedLayerCandidate((PackedMap(0, 1),), 1, 0, layer.outputs))
            else:
                layers.append(self._rotated(index, slots, laid))
            laid.append((period, following))
        last = network.layers[-1]
        widest = max(laid[source][0] for source in last.sources)
        copies = slots // widest
        layers.append(
            PackedLayerCandidate(
                tuple(PackedMap(source, 1) for source in last.sources), 0, 0, last.outputs
            )
        )
        candidate = PackingCandidate(
            degree=degree,
            layers=tuple(layers),
            answers=-(-last.outputs // (2 * copies)),
            rescales=(AFTER,) * len(network.activations),
            copies=copies,
            encrypted=self._encrypted,
        )
        yield candidate
        (first, *others) = last.sources
        alone = not others and network.layers[first - 1].activation is not None
        alone = alone and len(network.users[first]) == 1
        if candidate.answers == 1 and alone and not self._encrypted:
            yield replace(candidate, relinearise_after_last_layer=True)

    def _read_by(self, index: int) -> sparse.csr_array | None:
        """How the one layer that reads a layer reads it; None if that is the last, or several."""
        users = self._network.users[index + 1]
        if len(users) != 1 or users[0] == len(self._network.layers) - 1:
            return None
        user = self._network.layers[users[0]]
        return user.affines[user.sources.index(index + 1)].structure

    def _gathered(
        self, layer: Layer, slots: int, blocks: int, paired: bool, following: int | None
    ) -> PackedLayerCandidate:
        width = max(1, layer.affines[0].terms)
        degree = 0 if layer.activation is None else layer.activation.degree
        return PackedLayerCandidate(
            (PackedMap(0, width, sums=block_sums(slots, blocks, paired=paired)),),
            -(-width // (blocks * (2 if paired else 1))),
            degree,
            layer.outputs,
            blocks,
            paired,
            following,
        )

    def _rotated(
        self, index: int, slots: int, laid: list[tuple[int, int | None]]
    ) -> PackedLayerCandidate:
        layer = self._network.layers[index]
        size, maps = power_of_two(layer.outputs), []
        for number, source in enumerate(layer.sources):
            period, following = laid[source]
            steps = self._steps_of(index, number, period, following)
            width = max(period, size)
            maps.append(
                PackedMap(
                    source,
                    len(steps.numbers) * width // size,
                    steps,
                    sums=copy_sums(width, size),
                    repeats=width / slots,
                )
            )
        degree = 0 if layer.activation is None else layer.activation.degree
        return PackedLayerCandidate(tuple(maps), 0, degree, layer.outputs)

    def _steps_of(self, index: int, number: int, period: int, following: int | None) -> Steps:
        key = index, number, period, following
        if key not in self._steps:
            layer = self._network.layers[index]
            before = self._network.layers[layer.sources[number] - 1]
            layout: Indices = periodic_layout(before.outputs, period, following)
            self._steps[key] = steps_of(layer.affines[number].structure, layout)
        return self._steps[key]


def batch_candidate(network: Network, degree: int) -> PackingCandidate:
    """The packing of a batch."""
    layers = [
        PackedLayerCandidate(
            tuple(
                PackedMap(source, affine.terms, reads=sum(map(len, affine.supports())))
                for source, affine in zip(layer.sources, layer.affines, strict=True)
            ),
            network.inputs if index == 0 else 0,
            0 if layer.activation is None else layer.activation.degree,
            layer.outputs,
        )
        for index, layer in enumerate(network.layers)
    ]
    return PackingCandidate(
        degree=degree,
        layers=tuple(layers),
        answers=network.outputs,
        rescales=(AFTER,) * len(network.activations),
        batch=True,
        narrowing=frozenset(
            index
            for index, layer in enumerate(network.layers[:-1])
            if layer.activation is not None and network.narrows(index)
        ),
    )


def with_fewest_levels(candidate: PackingCandidate) -> PackingCandidate:
    """The same packing with no square rescaled: the smallest query that it can have."""
    rescales = tuple(NEVER if power == 2 else AFTER for power in candidate.degrees)
    return replace(candidate, rescales=rescales, relinearise_after_last_layer=False)


def rescaling_variants(
    candidate: PackingCandidate, answer_levels: Sequence[int]
) -> Iterator[PackingCandidate]:
    """The same packing, with one activation rescaled otherwise, another answer level, or both."""
    changes = [candidate.rescales]
    for index, power in enumerate(candidate.degrees):
        ways = (AFTER, NEVER, FIRST, SUMMED, BOTH) if power == 2 else (AFTER, BOTH)
        before, after = candidate.rescales[:index], candidate.rescales[index + 1 :]
        changes += [(*before, way, *after) for way in ways]
    for rescales, answer_level in product(dict.fromkeys(changes), answer_levels):
        late = candidate.relinearise_after_last_layer and rescaled_after(rescales[-1])
        variant = replace(
            candidate,
            rescales=rescales,
            answer_level=answer_level,
            relinearise_after_last_layer=late,
        )
        if variant != candidate:
            yield variant
