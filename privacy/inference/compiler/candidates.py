"""The packings that a network could have, the operations of each, and their cost."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise, product

from privacy.inference.arithmetic.network import Network
from privacy.inference.arithmetic.polynomials import DEPTH, PRODUCTS
from privacy.inference.arithmetic.scales import AFTER, NEVER, depth
from privacy.inference.ckks import SEED_BYTES
from privacy.inference.compiler.packing import power_of_two, steps_between, steps_of
from privacy.inference.plan import MESSAGE_OVERHEAD

Operations = Counter[tuple[str, int]]
"""Counts by name and level (data primes left)."""
_MAX_WAYS = 4096
_FULL_RING = 8192


def milliseconds(operations: Operations, degree: int) -> float:
    """Time of operations on the reference machine (2.5 GHz Xeon, one thread, SEAL 4.3).

    Fitted to medians at N = 8192 with one to five data primes; other degrees scale with N·log N.
    A load is expanding a seed and making the ciphertext, a mask re-randomising and reading out an
    answer.
    """
    scale = degree * degree.bit_length() / (_FULL_RING * _FULL_RING.bit_length())
    total = 0.0
    for (name, level), count in operations.items():
        switch = 0.11 * level**2 + 0.36 * level + 0.19
        total += (
            count
            * {
                "load": 0.1 + 0.15 * level,
                "expand": 0.05 + 0.06 * level,
                "rotate": switch,
                "relinearise": switch,
                "multiply plain": 0.06 * level,
                "multiply": 0.081 * level,
                "rescale": 0.29 * level,
                "mask": 3.5 * level,
                "load residues": 0.03 + 0.02 * level,
                "unload": 0.1 + 0.27 * level,
                "split": 0.08 * level,
                "scalar": 0.0008 * level,
                "reduce": 0.4 * level,
            }[name]
        )
    return scale * total


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
    doublings, baby_steps, giant_steps : tuple of int
        Of each layer but the last: tree rotations (with conjugation), and those of diagonals.
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
    doublings: tuple[int, ...]
    baby_steps: tuple[int, ...]
    giant_steps: tuple[int, ...]
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

    def _slot_operations(self) -> Operations:
        count: Operations = Counter()
        level = self.levels
        times = "multiply" if self.encrypted else "multiply plain"
        count["load", level] += self.ciphertexts
        for index, doublings in enumerate(self.doublings):
            baby, giant = self.baby_steps[index], self.giant_steps[index]
            count[times, level] += baby * giant if index else self.ciphertexts
            count["relinearise", level] += giant if self.encrypted else 0
            rescale = self.rescales[index]
            early = rescale if rescale >= 0 else doublings
            count["rotate", level] += early + baby + giant - 2
            if rescale >= 0:
                count["rescale", level] += 1
                level -= 1
                count["rotate", level] += doublings - early
            level = self._count_activation(count, index, level, 1)
        count[times, level] += self.answers
        count["relinearise", level] += self.answers if self.encrypted else 0
        count["mask", level] += self.answers
        return count

    def _count_activation(self, count: Operations, index: int, level: int, values: int) -> int:
        """Count one activation of so many values; the level after it."""
        power, after = self.degrees[index], self.rescales[index] == AFTER
        large = self.leaves_large(index)
        for step in range(PRODUCTS[power]):
            # Products of one depth happen at one level; the deepest ones are counted there.
            here = level - min(step, DEPTH[power] - 1)
            count["multiply", here] += values
            count["rescale", here] += values if after else 0
            if step + 1 < PRODUCTS[power] or not large:
                count["relinearise", here] += values
        level -= DEPTH[power] if after else 0
        if large:
            count["relinearise", level] += self.outputs[index + 1] if self.batch else self.answers
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


def slot_candidates(
    network: Network, degree: int, *, encrypted: bool
) -> Iterator[PackingCandidate]:
    """Every packing of a network with activations, for one image, that fits a ring degree."""
    slots = degree // 2
    sizes = [power_of_two(affine.outputs) for affine in network.affines]
    if max(sizes[:-1]) > slots:
        return
    width = max(1, network.affines[0].terms)
    following = sizes[1] if len(sizes) > 2 else None
    for log_blocks in range((slots // sizes[0]).bit_length()):
        for paired in (False, True):
            blocks = 1 << log_blocks
            doublings, babies, giants = [log_blocks + paired], [1], [1]
            terms, repeats = [width], [1.0]
            here = sizes[0] if following is None else slots // blocks
            for before, after in pairwise(sizes[:-1]):
                steps = steps_between(before, after, here)
                baby, giant = steps_of(steps)
                babies.append(baby)
                giants.append(giant)
                doublings.append((max(here, after) // after).bit_length() - 1)
                terms.append(steps * max(here, after) // after)
                repeats.append(max(here, after) / slots)
                here = after
            copies = slots // here
            candidate = PackingCandidate(
                degree=degree,
                ciphertexts=-(-width // (blocks * (2 if paired else 1))),
                terms=(*terms, 1),
                answers=-(-network.affines[-1].outputs // (2 * copies)),
                degrees=tuple(activation.degree for activation in network.activations),
                rescales=(AFTER,) * len(network.activations),
                doublings=tuple(doublings),
                baby_steps=tuple(babies),
                giant_steps=tuple(giants),
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
        doublings=(0,) * layers,
        baby_steps=(1,) * layers,
        giant_steps=(1,) * layers,
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


def rescaling_variants(candidate: PackingCandidate) -> Iterator[PackingCandidate]:
    """The same packing with squares rescaled elsewhere: mostly quicker, and rougher.

    With encrypted weights there is no choice. Of very many ways, those that differ in the last
    activations.
    """
    if candidate.encrypted:
        return
    ways: list[tuple[int, ...]] = [
        (AFTER, NEVER, *sorted({0, doublings})) if power == 2 else (AFTER,)
        for power, doublings in zip(candidate.degrees, candidate.doublings, strict=True)
    ]
    for rescales in islice(product(*ways), _MAX_WAYS):
        if rescales != candidate.rescales:
            late = candidate.relinearise_after_last_layer and rescales[-1] == AFTER
            yield replace(candidate, rescales=rescales, relinearise_after_last_layer=late)
