r"""Comparison with a secret number by function secret sharing: a distributed comparison function.

Whoever knows α makes two keys. Each holder of one evaluates it at a public x, without a word to the
other, to a bit; the two bits' XOR is [x < α]. A key alone tells nothing of α. The construction is
that of Boyle et al. (EUROCRYPT 2021, "Function Secret Sharing for Mixed-Mode and Fixed-Point Secure
Computation", section 3), for outputs of one bit, which XOR adds, with early termination (Boyle,
Gilboa and Ishai, CCS 2016, section 3.2.3): a leaf of the tree holds the last seven bits' answers.

A seed is 125 bits; its three low bits are zero. Of s and a direction d in {0, 1}, or 2 for a leaf,
comes H(s + d) with H(x) = π(x) XOR x and π AES under a public key (:mod:`.aes`). The three low bits
of H are not the next seed's: they are the two of Boyle et al., t and v, and one without use. A
correction word has its three bits there: tᴸ, tᴿ and v.

Notes
-----
**Guarantee.** Bits are right for every α and x. A key is indistinguishable from one of another α.

**Assumptions.** π is as a random permutation (Guo, Katz, Wang and Yu, S&P 2020), and a key is
evaluated at one x that is masked by α's own randomness, once.

**Not covered.** A holder who alters a bit changes the result, and nobody sees it.
"""

import numpy as np
from numpy.typing import NDArray

from privacy.kernels import compiled
from privacy.shared_inference.aes import PublicPermutation, in_hardware, permuted
from privacy.shared_inference.ring import Ring

LEAF_BITS = 7
_STRIP = 256
"""Comparisons that go down a level together, so that the processor has something to overlap."""
_SEED = np.uint64(2**64 - 8)
_ZERO, _ONE, _TWO, _FOUR = (np.uint64(value) for value in (0, 1, 2, 4))
_WORD_BITS = np.uint64(64)
Bits = NDArray[np.uint8]


def levels(width: int) -> int:
    """Of the tree for numbers of ``width`` bits, above its leaves."""
    return max(width - LEAF_BITS, 0)


def key_words(width: int) -> int:
    """64-bit words of a comparison's correction words, which both holders get."""
    return 2 * (levels(width) + 1)


def seeds_of(words: Ring) -> Ring:
    """Seeds of random words, shape (comparisons, 2)."""
    seeds = words.copy()
    seeds[:, 0] &= _SEED
    return seeds


def make_keys(
    alpha: Ring,
    width: int,
    first: Ring,
    second: Ring,
    pi: PublicPermutation,
    corrections: Ring,
) -> None:
    """Write the correction words that make keys of two holders' seeds.

    Parameters
    ----------
    alpha : ndarray of uint64, shape (comparisons,)
        Below 2^``width``.
    width : int
        Bits of α and of what it is compared with.
    first, second : ndarray of uint64, shape (comparisons, 2)
        Random seeds, by :func:`seeds_of`.
    pi : PublicPermutation
    corrections : ndarray of uint64, shape (levels + 1, comparisons, 2)
        They are written here.
    """
    if in_hardware():
        _make(alpha, width, first, second, pi.round_keys, corrections)
    else:
        _make_in_arrays(alpha, width, (first, second), pi, corrections)


def evaluate(
    holder: int, x: Ring, width: int, seeds: Ring, corrections: Ring, pi: PublicPermutation
) -> Bits:
    """A holder's share of [x < α], shape (comparisons,), in 0 and 1.

    ``holder`` is 0 or 1; ``x`` is below 2^``width``; the rest is as in :func:`make_keys`.
    """
    result = np.empty(len(x), dtype=np.uint8)
    if in_hardware():
        _evaluate(holder, x, width, seeds, corrections, pi.round_keys, result)
    else:
        _evaluate_in_arrays(holder, x, width, seeds, corrections, pi, result)
    return result


@compiled
def _make(
    alpha: Ring, width: int, first: Ring, second: Ring, keys: Ring, corrections: Ring
) -> None:
    depth = corrections.shape[0] - 1
    lows, highs = np.empty((2, _STRIP), np.uint64), np.empty((2, _STRIP), np.uint64)
    states, totals = np.empty((2, _STRIP), np.uint64), np.empty(_STRIP, np.uint64)
    for start in range(0, len(alpha), _STRIP):
        count = min(_STRIP, len(alpha) - start)
        for place in range(count):
            lows[0, place], highs[0, place] = first[start + place, 0], first[start + place, 1]
            lows[1, place], highs[1, place] = second[start + place, 0], second[start + place, 1]
            states[0, place], states[1, place], totals[place] = _ZERO, _ONE, _ZERO
        for level in range(depth):
            shift = np.uint64(width - 1 - level)
            words = corrections[level, start : start + count]
            for place in range(count):
                bit = (alpha[start + place] >> shift) & _ONE
                other = bit ^ _ONE
                low0, high0, low1, high1 = (
                    lows[0, place],
                    highs[0, place],
                    lows[1, place],
                    highs[1, place],
                )
                a, b = permuted(low0 ^ bit, high0, keys)
                keep0, keep0_high = a ^ low0 ^ bit, b ^ high0
                a, b = permuted(low1 ^ bit, high1, keys)
                keep1, keep1_high = a ^ low1 ^ bit, b ^ high1
                a, b = permuted(low0 ^ other, high0, keys)
                lost, lost_high = a ^ low0 ^ other, b ^ high0
                a, b = permuted(low1 ^ other, high1, keys)
                lost, lost_high = lost ^ a ^ low1 ^ other, lost_high ^ b ^ high1
                # The lost child's seeds become equal, and its t; its value is the bit of alpha.
                seed, kept = lost & _SEED, keep0 ^ keep1
                kept_t, lost_t = (kept & _ONE) ^ _ONE, lost & _ONE
                value = totals[place] ^ ((lost >> _ONE) & _ONE) ^ bit
                totals[place] ^= ((kept >> _ONE) & _ONE) ^ value
                swap = (kept_t ^ lost_t) & bit
                words[place, 0] = (
                    seed | (kept_t ^ swap) | ((lost_t ^ swap) << _ONE) | (value << _TWO)
                )
                words[place, 1] = lost_high
                t0, t1 = states[0, place], states[1, place]
                mask0, mask1 = _ZERO - t0, _ZERO - t1
                lows[0, place] = (keep0 & _SEED) ^ (seed & mask0)
                lows[1, place] = (keep1 & _SEED) ^ (seed & mask1)
                highs[0, place] = keep0_high ^ (lost_high & mask0)
                highs[1, place] = keep1_high ^ (lost_high & mask1)
                states[0, place] = (keep0 & _ONE) ^ (t0 & kept_t)
                states[1, place] = (keep1 & _ONE) ^ (t1 & kept_t)
        for place in range(count):
            low0, low1 = lows[0, place] ^ _TWO, lows[1, place] ^ _TWO
            a0, b0 = permuted(low0, highs[0, place], keys)
            a1, b1 = permuted(low1, highs[1, place], keys)
            last = alpha[start + place] & np.uint64((1 << min(width, LEAF_BITS)) - 1)
            below, above = ~_ZERO, _ZERO  # ones where the last bits are below alpha's
            if last < _WORD_BITS:
                below = (_ONE << last) - _ONE
            else:
                above = (_ONE << (last - _WORD_BITS)) - _ONE
            every = _ZERO - totals[place]
            corrections[depth, start + place, 0] = a0 ^ low0 ^ a1 ^ low1 ^ below ^ every
            corrections[depth, start + place, 1] = (
                b0 ^ highs[0, place] ^ b1 ^ highs[1, place] ^ above ^ every
            )


@compiled
def _evaluate(
    holder: int, x: Ring, width: int, seeds: Ring, corrections: Ring, keys: Ring, result: Bits
) -> None:
    depth = corrections.shape[0] - 1
    lows, highs = np.empty(_STRIP, np.uint64), np.empty(_STRIP, np.uint64)
    states, totals = np.empty(_STRIP, np.uint64), np.empty(_STRIP, np.uint64)
    for start in range(0, len(x), _STRIP):
        count = min(_STRIP, len(x) - start)
        for place in range(count):
            lows[place], highs[place] = seeds[start + place, 0], seeds[start + place, 1]
            states[place], totals[place] = np.uint64(holder), _ZERO
        for level in range(depth):
            shift = np.uint64(width - 1 - level)
            words = corrections[level, start : start + count]
            for place in range(count):
                bit = (x[start + place] >> shift) & _ONE
                low = lows[place] ^ bit
                a, b = permuted(low, highs[place], keys)
                a, b = a ^ low, b ^ highs[place]
                mask = _ZERO - states[place]
                word, word_high = words[place, 0] & mask, words[place, 1] & mask
                totals[place] ^= ((a >> _ONE) ^ (word >> _TWO)) & _ONE
                states[place] = (a ^ (word >> bit)) & _ONE
                lows[place], highs[place] = (a ^ word) & _SEED, b ^ word_high
        for place in range(count):
            low = lows[place] ^ _TWO
            a, b = permuted(low, highs[place], keys)
            mask = _ZERO - states[place]
            a ^= low ^ (corrections[depth, start + place, 0] & mask)
            b ^= highs[place] ^ (corrections[depth, start + place, 1] & mask)
            last = x[start + place] & np.uint64((1 << min(width, LEAF_BITS)) - 1)
            answer = (a >> last) if last < _WORD_BITS else (b >> (last - _WORD_BITS))
            result[start + place] = np.uint8((answer ^ totals[place]) & _ONE)


def _make_in_arrays(
    alpha: Ring, width: int, seeds: tuple[Ring, Ring], pi: PublicPermutation, corrections: Ring
) -> None:
    """:func:`_make`, a level of all comparisons at a time."""
    count, depth = len(alpha), len(corrections) - 1
    here = [seed.copy() for seed in seeds]
    t = [np.zeros(count, np.uint64), np.ones(count, np.uint64)]
    total = np.zeros(count, np.uint64)
    for level in range(depth):
        bit = (alpha >> np.uint64(width - 1 - level)) & _ONE
        keep = [_child(seed, bit, pi) for seed in here]
        lose = [_child(seed, bit ^ _ONE, pi) for seed in here]
        lost, kept = lose[0] ^ lose[1], keep[0] ^ keep[1]
        kept_t, lost_t = (kept[:, 0] & _ONE) ^ _ONE, lost[:, 0] & _ONE
        left, right = np.where(bit, lost_t, kept_t), np.where(bit, kept_t, lost_t)
        value = total ^ ((lost[:, 0] >> _ONE) & _ONE) ^ bit
        total ^= ((kept[:, 0] >> _ONE) & _ONE) ^ value
        seed = seeds_of(lost)
        corrections[level] = seed
        corrections[level, :, 0] |= left | (right << _ONE) | (value << _TWO)
        for party in (0, 1):
            here[party] = seeds_of(keep[party]) ^ seed * t[party][:, None]
            t[party] = (keep[party][:, 0] & _ONE) ^ (t[party] & kept_t)
    leaves = [_child(seed, _TWO, pi) for seed in here]
    last = alpha & np.uint64((1 << min(width, LEAF_BITS)) - 1)
    shift = last % _WORD_BITS
    ones = (_ONE << shift) - _ONE
    low = last < _WORD_BITS
    table = np.stack([np.where(low, ones, ~_ZERO), np.where(low, _ZERO, ones)], axis=1)
    corrections[depth] = leaves[0] ^ leaves[1] ^ table ^ (_ZERO - total)[:, None]


def _evaluate_in_arrays(
    holder: int,
    x: Ring,
    width: int,
    seeds: Ring,
    corrections: Ring,
    pi: PublicPermutation,
    result: Bits,
) -> None:
    """:func:`_evaluate`, a level of all comparisons at a time."""
    here, state = seeds, np.full(len(x), holder, np.uint64)
    total = np.zeros(len(x), np.uint64)
    for level, words in enumerate(corrections[:-1]):
        bit = (x >> np.uint64(width - 1 - level)) & _ONE
        child, word = _child(here, bit, pi), words * state[:, None]
        total ^= ((child[:, 0] >> _ONE) ^ (word[:, 0] >> _TWO)) & _ONE
        state = (child[:, 0] ^ (word[:, 0] >> bit)) & _ONE
        here = seeds_of(child ^ word)
    leaf = _child(here, _TWO, pi) ^ corrections[-1] * state[:, None]
    last = x & np.uint64((1 << min(width, LEAF_BITS)) - 1)
    words = np.where(last < _WORD_BITS, leaf[:, 0], leaf[:, 1])
    result[:] = ((words >> (last % _WORD_BITS)) ^ total) & _ONE


def _child(seeds: Ring, direction: Ring | np.uint64, pi: PublicPermutation) -> Ring:
    chosen = seeds.copy()
    chosen[:, 0] ^= direction
    return pi.hashed(chosen)
