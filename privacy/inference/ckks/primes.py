"""The primes of a ring: those that SEAL chooses for the same bits."""

from collections.abc import Sequence
from functools import lru_cache

MAX_MODULUS_BITS = {1024: 27, 2048: 54, 4096: 109, 8192: 218, 16384: 438, 32768: 881}
"""Bits of the whole modulus at 128-bit security, by ring degree.

Homomorphic Encryption Standard (2018), table 1: ternary secret, classical attacks.
"""

MAX_PRIME_BITS = 50
"""Residues are held in doubles, whose products are exact for shorter primes only."""

_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)
"""Miller and Rabin's test with these bases decides below 3.3e24 (Sorenson and Webster 2015)."""


def choose_primes(degree: int, prime_bits: Sequence[int]) -> tuple[int, ...]:
    """Different primes of these bits, each 1 modulo 2N: the largest, the smallest of them first.

    Raises
    ------
    ValueError
        If the ring is none, 128 bits of security do not hold so many bits, or there are not
        enough such primes.
    """
    if degree not in MAX_MODULUS_BITS:
        raise ValueError(f"degree is {degree}; choose one of {sorted(MAX_MODULUS_BITS)}")
    bits = [int(each) for each in prime_bits]
    if not bits or any(not 2 <= each <= MAX_PRIME_BITS for each in bits):
        raise ValueError(
            f"primes of {bits} bits; give one or more of at most {MAX_PRIME_BITS} bits: longer "
            "ones belong to plans of an earlier release, whose models must be compiled again"
        )
    if sum(bits) > MAX_MODULUS_BITS[degree]:
        raise ValueError(
            f"primes of {bits} bits sum to {sum(bits)}; degree {degree} holds 128 bits of security "
            f"up to {MAX_MODULUS_BITS[degree]}"
        )
    waiting = {each: list(_largest(degree, each, bits.count(each))) for each in set(bits)}
    return tuple(waiting[each].pop() for each in bits)


@lru_cache(maxsize=256)
def _largest(degree: int, bits: int, count: int) -> tuple[int, ...]:
    """The ``count`` largest primes of exactly so many bits that are 1 modulo 2N."""
    step = 2 * degree
    primes: list[int] = []
    candidate = ((1 << bits) - 1) // step * step + 1
    while len(primes) < count and candidate > 1 << (bits - 1):
        if candidate < 1 << bits and is_prime(candidate):
            primes.append(candidate)
        candidate -= step
    if len(primes) < count:
        raise ValueError(
            f"there are {len(primes)} primes of {bits} bits for degree {degree}, not {count}; "
            "choose longer ones"
        )
    return tuple(primes)


def is_prime(number: int) -> bool:
    """Whether a number below 3.3e24 is prime."""
    if number < 2 or any(number % witness == 0 for witness in _WITNESSES):
        return number in _WITNESSES
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    return not any(_is_composite(number, witness, odd, twos) for witness in _WITNESSES)


def _is_composite(number: int, witness: int, odd: int, twos: int) -> bool:
    power = pow(witness, odd, number)
    if power in (1, number - 1):
        return False
    for _ in range(twos - 1):
        power = power * power % number
        if power == number - 1:
            return False
    return True
