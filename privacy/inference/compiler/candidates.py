"""The packings that a network could have, and the operations of each."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise, product

from privacy.inference.arithmetic.network import Network
from privacy.inference.arithmetic.polynomials import DEPTH, PRODUCTS
from privacy.inference.arithmetic.program import Sums
from privacy.inference.arithmetic.scales import AFTER, FIRST, NEVER, SUMMED, depth
from privacy.inference.ckks import SEED_BYTES
from privacy.inference.compiler.operation_costs import (
    Operations,
    milliseconds,
    relinearisation_level,
)
from privacy.inference.compiler.packing import (
    block_sums,
    copy_sums,
    power_of_two,
    splits,
    steps_between,
)
from privacy.inference.plan import MESSAGE_OVERHEAD

_KEY_BYTES = 8_000_000
"""Of all keys, up to which they cost nothing."""
_MORE_KEYS = 1.1
"""By how much an answer must be quicker that takes more."""
_KEY_PRICE = 1e-6
"""Milliseconds of an answer for which a further byte of keys is taken."""


@dataclass(frozen=True)
class PackingCandidate:
    """The parts of a packing on which its error and its time depend.

    Attributes
    ----------
    degree, ciphertexts, answers : int
        The ring's degree; ciphertexts in a query; polynomials in an answer.
    terms : tuple of int
        Products in a sum, of each layer; in the last, one product of every slot by the mean.
    degrees, rescales : tuple of int
        Of each activation; the latter as in :class:`Scales`.
    diagonals, baby_steps, giant_steps : tuple of int
        Of each layer but the last: rotations of its input (the one by nothing included), and how
        they are split.
    sums : tuple of Sums
        Of each layer but the last, what follows its products.
    repeats : tuple of float
        Of each layer but the last: the share of slots after which its plaintexts repeat.
    blocks, paired, following :
        Of the first layer, as in :func:`gather`.
    copies : int
        Of each entry in the slots, at the last layer.
    relinearise_after_last_layer : bool
        Whether the last activation is relinearised after the last layer: quicker, and rougher.
    encrypted : bool
        Whether weights are ciphertexts, so that every sum of products is relinearised.
    batch : bool
        Whether a slot holds an image; then nothing is rotated and weights are integers.
    outputs, reads : tuple of int
        Of a batch: each layer's outputs; its inputs, once for all outputs that read the same.
    answer_level : int
        Primes of an answer.
    """

    degree: int
    ciphertexts: int
    terms: tuple[int, ...]
    answers: int
    degrees: tuple[int, ...]
    rescales: tuple[int, ...]
    diagonals: tuple[int, ...]
    baby_steps: tuple[int, ...]
    giant_steps: tuple[int, ...]
    sums: tuple[Sums, ...]
    repeats: tuple[float, ...]
    blocks: int = 1
    paired: bool = False
    following: int | None = None
    copies: int = 1
    relinearise_after_last_layer: bool = False
    encrypted: bool = False
    batch: bool = False
    outputs: tuple[int, ...] = ()
    reads: tuple[int, ...] = ()
    answer_level: int = 1

    @cached_property
    def levels(self) -> int:
        """Data primes that are needed: one for each rescaling in a row, and the answer's."""
        return self.answer_level + sum(map(depth, self.degrees, self.rescales))

    @property
    def query_bytes(self) -> int:
        """Bytes of the message with one query."""
        one = 8 * self.degree * self.levels + SEED_BYTES
        return MESSAGE_OVERHEAD + self.ciphertexts * one

    def leaves_large(self, index: int) -> bool:
        """Whether activation ``index`` leaves its result to be relinearised after the next layer.

        It is where that is cheaper: there are fewer to relinearise, or they are at a lower level.
        """
        if self.batch:
            return self.outputs[index + 1] < self.outputs[index]
        return self.relinearise_after_last_layer and index + 1 == len(self.degrees)

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
        levels = [self.levels]
        for power, rescale in zip(self.degrees, self.rescales, strict=True):
            levels.append(levels[-1] - depth(power, rescale))
        return tuple(levels)

    @cached_property
    def rotations(self) -> dict[int, int]:
        """The steps that values are rotated by, and the highest level that each is at."""
        highest: dict[int, int] = {}
        for index, level in enumerate(self.entry_levels[:-1]):
            for step, at in self.layer_rotations(index, level).items():
                highest[step] = max(at, highest.get(step, 0))
        return highest

    def doublings(self, index: int) -> int:
        """How often the sums of a layer double what is added up."""
        return sum(len(group).bit_length() for group in self.sums[index])

    def layer_rotations(self, index: int, level: int) -> dict[int, int]:
        """As :attr:`rotations`, of one layer that is entered at ``level``."""
        baby, giant = self.baby_steps[index], self.giant_steps[index]
        after = level - 1 if self.rescales[index] == FIRST else level
        steps = {step: after for group in self.sums[index] for step in group}
        return steps | dict.fromkeys(range(1, baby + 1 if giant > 1 else baby), level)

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
        for index, level in enumerate(self.entry_levels[:-1]):
            count += self.layer_operations(index, level)
            if self.rescales[index] >= 0:
                count["rescale", level] += 1
                level -= 1
            self._count_activation(count, index, level, 1)
        level = self.answer_level
        if self.encrypted:
            count["multiply", level] += self.answers
            _count_relinearisations(count, level, self.answers)
        else:
            count["multiply plain", level] += self.answers
        count["mask", level] += self.answers
        return count

    def layer_operations(self, index: int, level: int) -> Operations:
        """Products and rotations of one layer that is entered at ``level``.

        Rotations are taken before a division by the special prime, which one in a row needs: of
        both polynomials after the last, of the second one before each but the first.
        """
        count: Operations = Counter()
        baby, giant = self.baby_steps[index], self.giant_steps[index]
        products = baby * giant if index else self.ciphertexts
        extended = self.encrypted or baby * giant > 1
        if self.encrypted:
            if baby > 1:
                count["extend", level] += 1
                count["hoist", level] += 1
                count["hoisted rotation", level] += baby - 1
                count["divide", level] += baby - 1
            count["multiply", level] += products
            count["relinearise", level] += giant
        elif extended:
            count["extend", level] += 1
            if baby > 1:
                count["hoist", level] += 1
                count["hoisted rotation", level] += baby - 1
            count["hoisted product", level] += products
        else:
            count["multiply plain", level] += products
        self._count_rotations(count, level, giant - 1, 1)
        if self.rescales[index] == FIRST:
            count["divide", level] += 1 if extended else 0
            level, extended = level - 1, False
        if self.sums[index] and not extended:
            count["extend", level] += 1
            count["divide half", level] -= 1
            extended = True
        for group in self.sums[index]:
            self._count_rotations(count, level, 1, len(group))
        count["divide", level] += 1 if extended else 0
        return count

    @staticmethod
    def _count_rotations(count: Operations, level: int, times: int, steps: int) -> None:
        """Count rotations of what is not divided yet, by so many steps each time."""
        count["divide half", level] += times
        count["hoist", level] += times
        count["hoisted rotation", level] += times * steps

    def _count_activation(self, count: Operations, index: int, level: int, values: int) -> int:
        """Count one activation of so many values, from ``level`` on; the level after it."""
        power, after = self.degrees[index], self.rescales[index] == AFTER
        large = self.leaves_large(index)
        for step in range(PRODUCTS[power]):
            # Products of one depth happen at one level; the deepest ones are counted there.
            here = level - min(step, DEPTH[power] - 1)
            count["multiply", here] += values
            count["rescale", here] += values if after else 0
            if step + 1 < PRODUCTS[power] or not large:
                _count_relinearisations(count, here, values)
        level -= DEPTH[power] if after else 0
        if large:
            times = self.outputs[index + 1] if self.batch else self.answers
            _count_relinearisations(count, level, times)
        return level

    def _batch_operations(self) -> Operations:
        level = self.levels
        count: Operations = Counter({("expand", level): self.ciphertexts})
        for index, size in enumerate(self.outputs):
            count["split", level] += self.reads[index]
            count["scalar", level] += self.terms[index] * size
            count["reduce", level] += size
            count["load residues", level] += size
            if index == len(self.degrees):
                break
            if self.rescales[index] >= 0:
                count["rescale", level] += size
                level -= 1
            level = self._count_activation(count, index, level, size)
            count["unload", level] += size
        count["mask", level] += self.answers
        return count


def _count_relinearisations(count: Operations, level: int, times: int) -> None:
    count["relinearise", level] += times
    count["divide", level] += times


def slot_candidates(
    network: Network, degree: int, *, encrypted: bool
) -> Iterator[PackingCandidate]:
    """Every packing of a network with activations, for one image, that fits a ring degree.

    Each with the fewest keys, one rotation after the other.
    """
    slots = degree // 2
    sizes = [power_of_two(affine.outputs) for affine in network.affines]
    if max(sizes[:-1]) > slots:
        return
    width = max(1, network.affines[0].terms)
    following = sizes[1] if len(sizes) > 2 else None
    for log_blocks in range((slots // sizes[0]).bit_length()):
        for paired in (False, True):
            blocks = 1 << log_blocks
            diagonals, sums = [1], [block_sums(slots, blocks, paired=paired)]
            terms, repeats = [width], [1.0]
            here = sizes[0] if following is None else slots // blocks
            for before, after in pairwise(sizes[:-1]):
                steps = steps_between(before, after, here)
                diagonals.append(steps)
                sums.append(copy_sums(max(here, after), after))
                terms.append(steps * max(here, after) // after)
                repeats.append(max(here, after) / slots)
                here = after
            copies = slots // here
            babies, giants = zip(*(next(splits(count)) for count in diagonals), strict=True)
            candidate = PackingCandidate(
                degree=degree,
                ciphertexts=-(-width // (blocks * (2 if paired else 1))),
                terms=(*terms, 1),
                answers=-(-network.affines[-1].outputs // (2 * copies)),
                degrees=tuple(activation.degree for activation in network.activations),
                rescales=(AFTER,) * len(network.activations),
                diagonals=tuple(diagonals),
                baby_steps=babies,
                giant_steps=giants,
                sums=tuple(sums),
                repeats=tuple(repeats),
                blocks=blocks,
                paired=paired,
                following=following,
                copies=copies,
                encrypted=encrypted,
            )
            yield candidate
            if candidate.answers == 1 and not encrypted:
                yield replace(candidate, relinearise_after_last_layer=True)


def batch_candidate(network: Network, degree: int) -> PackingCandidate:
    """The packing of a batch."""
    layers = len(network.activations)
    return PackingCandidate(
        degree=degree,
        ciphertexts=network.affines[0].inputs,
        terms=tuple(affine.terms for affine in network.affines),
        answers=network.affines[-1].outputs,
        degrees=tuple(activation.degree for activation in network.activations),
        rescales=(AFTER,) * layers,
        diagonals=(1,) * layers,
        baby_steps=(1,) * layers,
        giant_steps=(1,) * layers,
        sums=((),) * layers,
        repeats=(1.0,) * layers,
        batch=True,
        outputs=tuple(affine.outputs for affine in network.affines),
        reads=tuple(sum(map(len, affine.supports())) for affine in network.affines),
    )


def with_fewest_levels(candidate: PackingCandidate) -> PackingCandidate:
    """The same packing with no square rescaled: the smallest query that it can have."""
    if candidate.encrypted:
        return candidate
    rescales = tuple(NEVER if power == 2 else AFTER for power in candidate.degrees)
    return replace(candidate, rescales=rescales, relinearise_after_last_layer=False)


def rescaling_variants(
    candidate: PackingCandidate, answer_levels: Sequence[int]
) -> Iterator[PackingCandidate]:
    """The same packing with one square rescaled elsewhere, or an answer of other length, or both.

    With encrypted weights squares have no choice.
    """
    changes = [candidate.rescales]
    for index, power in enumerate(candidate.degrees):
        if power == 2 and not candidate.encrypted:
            before, after = candidate.rescales[:index], candidate.rescales[index + 1 :]
            changes += [(*before, way, *after) for way in (AFTER, NEVER, FIRST, SUMMED)]
    for rescales, answer_level in product(dict.fromkeys(changes), answer_levels):
        late = candidate.relinearise_after_last_layer and rescales[-1] == AFTER
        variant = replace(
            candidate,
            rescales=rescales,
            answer_level=answer_level,
            relinearise_after_last_layer=late,
        )
        if variant != candidate:
            yield variant
