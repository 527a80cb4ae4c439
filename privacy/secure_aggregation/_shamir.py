"""Shamir's secret sharing of 252-bit secrets, many with the same points at once.

Shamir, "How to share a secret", CACM 1979. The field is the integers modulo the order of the group
of Curve25519, in which the shared private keys live; its elements are 32 bytes, little-endian. The
points are small (a holder's place among the owner's neighbours), so products of them stay small
integers until the one inversion: that makes the interpolation fast.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

from privacy.mechanisms import Randomness

PRIME = 2**252 + 27742317777372353535851937790883648493
SHARE_BYTES = 32
_DRAWN_BYTES = 64


def draw_elements(randomness: Randomness, count: int) -> list[int]:
    """``count`` elements of the field, uniform up to a statistical distance of 2^-259 each."""
    drawn = randomness.bytes(_DRAWN_BYTES * count) if count else b""
    return [
        int.from_bytes(drawn[place : place + _DRAWN_BYTES], "little") % PRIME
        for place in range(0, len(drawn), _DRAWN_BYTES)
    ]


def decode_element(encoded: bytes) -> int:
    """The integer that 32 bytes hold; it may lie outside the field."""
    return int.from_bytes(encoded, "little")


def encode_element(element: int) -> bytes:
    """An element of the field as 32 bytes."""
    return element.to_bytes(SHARE_BYTES, "little")


def draw_polynomial(secret: int, *, threshold: int, randomness: Randomness) -> list[int]:
    """A polynomial with ``threshold`` coefficients that is the secret at 0, else uniform.

    Its values at any ``threshold`` points determine the secret; fewer are independent of it. The
    coefficient of the highest power comes last. ``ValueError`` if the secret is outside the field
    or the threshold below 1.
    """
    if not 0 <= secret < PRIME:
        raise ValueError("the secret is not an element of the field")
    if threshold < 1:
        raise ValueError(f"threshold is {threshold}; it must be at least 1")
    return [secret, *draw_elements(randomness, threshold - 1)]


def value_at(polynomial: Sequence[int], point: int) -> int:
    """The value of a polynomial (Horner's rule)."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % PRIME
    return value


def values(polynomial: Sequence[int], holders: int) -> list[int]:
    """The shares of the holders at the points 1, 2, ..., ``holders``."""
    return [value_at(polynomial, point) for point in range(1, holders + 1)]


def combine(shares: Mapping[int, int]) -> int:
    """The secret that shares, by their points, determine; ``ValueError`` as ``weights_at_zero``."""
    points = tuple(sorted(shares))
    weights = weights_at_zero(points)
    return sum(weight * shares[point] for weight, point in zip(weights, points, strict=True)) % (
        PRIME
    )


@lru_cache(maxsize=1024)
def weights_at_zero(points: Sequence[int], *, prime: int = PRIME) -> tuple[int, ...]:
    """The factors of the values at ``points`` whose weighted sum is the value at 0.

    Lagrange's l_j(0) = prod_{m != j} x_m / (x_m - x_j). ``ValueError`` if there is no point, or one
    is not positive or occurs twice.
    """
    if not points or min(points) < 1 or len(set(points)) < len(points):
        raise ValueError(f"the points must be positive and distinct, got {points}")
    divisors = [
        own * prod(other - own for other in points if other != own) % prime for own in points
    ]
    product = prod(points) % prime
    # One inversion for all (Montgomery's trick).
    running = [1]
    for divisor in divisors:
        running.append(running[-1] * divisor % prime)
    inverse = pow(running[-1], -1, prime)
    weights = []
    for place in range(len(divisors) - 1, -1, -1):
        weights.append(product * inverse * running[place] % prime)
        inverse = inverse * divisors[place] % prime
    return tuple(reversed(weights))
