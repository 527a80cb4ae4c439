"""Shamir's secret sharing of 255-bit secrets, many with the same points at once.

Shamir, "How to share a secret", CACM 1979. The field is that of the integers modulo
2^255 - 19; a secret, a coefficient and a share are elements of it, 32 bytes little-endian.
The points are small (a holder's place among the owner's neighbours), which is what makes the
interpolation fast: products of points stay small integers until the one inversion.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

from privacy.mechanisms import Randomness

PRIME = 2**255 - 19
SHARE_BYTES = 32
_BELOW = 2**255 - 1


def draw_elements(randomness: Randomness, count: int) -> list[int]:
    """``count`` elements of the field, uniform."""
    elements: list[int] = []
    while len(elements) < count:
        missing = count - len(elements)
        drawn = randomness.bytes(SHARE_BYTES * missing)
        for place in range(missing):
            element = read_element(drawn[SHARE_BYTES * place :][:SHARE_BYTES]) & _BELOW
            if element < PRIME:
                elements.append(element)
    return elements


def read_element(encoded: bytes) -> int:
    """The integer that 32 bytes hold; it may lie outside the field."""
    return int.from_bytes(encoded, "little")


def write_element(element: int) -> bytes:
    """An element of the field as 32 bytes."""
    return element.to_bytes(SHARE_BYTES, "little")


def split(secret: int, *, threshold: int, holders: int, randomness: Randomness) -> list[int]:
    """Share a secret among holders at the points 1, 2, ..., ``holders``.

    Any ``threshold`` shares determine the secret; fewer are independent of it.

    Returns
    -------
    list of int
        The share of each holder.

    Raises
    ------
    ValueError
        If the secret is outside the field or the threshold not in [1, ``holders``].
    """
    if not 0 <= secret < PRIME:
        raise ValueError("the secret is not an element of the field modulo 2^255 - 19")
    if not 1 <= threshold <= holders:
        raise ValueError(f"threshold is {threshold}; it must lie in [1, {holders}]")
    coefficients = draw_elements(randomness, threshold - 1)
    shares = []
    for point in range(1, holders + 1):
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares.append((value + secret) % PRIME)
    return shares


def combine(shares: Mapping[int, int]) -> int:
    """The secret that shares, by their points, determine.

    Raises
    ------
    ValueError
        If there is no share, or a point is not positive.
    """
    points = tuple(sorted(shares))
    weights = weights_at_zero(points)
    return sum(weight * shares[point] for weight, point in zip(weights, points, strict=True)) % (
        PRIME
    )


@lru_cache(maxsize=1024)
def weights_at_zero(points: Sequence[int], *, prime: int = PRIME) -> tuple[int, ...]:
    """What to multiply the values at ``points`` with, so that they add up to the value at 0.

    Lagrange's l_j(0) = prod_{m != j} x_m / (x_m - x_j).

    Raises
    ------
    ValueError
        If there is no point, or one is not positive or occurs twice.
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
