"""The data owner's side of a packing: inputs into plaintexts, residues of answers into logits."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from privacy.inference.ckks import Plaintext, Ring, SecretKey
from privacy.inference.input_range import to_unit
from privacy.inference.messages import Reader
from privacy.inference.plan import EMPTY, Plan

Images = NDArray[np.float64]
"""Inputs, shape (images, elements)."""


def packer(plan: Plan, ring: Ring) -> Callable[[Images], list[Callable[[], Plaintext]]]:
    """A function that turns checked inputs into the plaintexts of a query, each yet to encode."""
    scale, level = 2.0**plan.input_scale_bits, ring.levels
    centre, radius = to_unit(plan.input_range, plan.input_shape)

    def batch(images: Images) -> list[Callable[[], Plaintext]]:
        # Slots where something is squared, coefficients for an affine map.
        encode, size = (
            (ring.encode, ring.slots)
            if plan.relin_level
            else (ring.encode_coefficients, ring.degree)
        )
        elements = ((images - centre) / radius).T
        return [partial(encode, _padded(each, size), scale, level) for each in elements]

    if plan.packing_kind == "batch":
        return batch
    taps = plan.taps
    # Empty places read a zero that is appended to the input.
    places = np.where(taps == EMPTY, -1, taps)

    def single(images: Images) -> list[Callable[[], Plaintext]]:
        placed = np.append((images[0] - centre) / radius, 0.0)[places]
        if plan.packing_kind != "slots":
            padded = (_padded(each, ring.degree) for each in placed)
            return [partial(ring.encode_coefficients, each, scale, level) for each in padded]
        slots = placed[0] if len(placed) == 1 else placed[0] + 1j * placed[1]
        return [partial(ring.encode, each, scale, level) for each in slots]

    return single


def _padded(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    return np.pad(values, (0, size - len(values)))


def answer_reader(
    plan: Plan, ring: Ring, secret: SecretKey
) -> Callable[[Reader], NDArray[np.float64]]:
    """A function that decrypts the residues of an answer into logits, shape (images, logits)."""
    if plan.packing_kind == "batch":
        return _batch_reader(plan, ring, secret)
    return _single_reader(plan, ring, secret.coefficients)


def _single_reader(
    plan: Plan, ring: Ring, secret: NDArray[np.int64]
) -> Callable[[Reader], NDArray[np.float64]]:
    """Decrypts the coefficients that hold logits, and no other, without SEAL."""
    moduli = ring.primes[: plan.answer_level]
    whole = math.prod(moduli)
    # By the Chinese remainder theorem: multiples of all primes but one, and 1 modulo that.
    bases = [whole // prime * pow(whole // prime, -1, prime) for prime in moduli]
    indices = np.arange(plan.degree)

    def read(reader: Reader) -> NDArray[np.float64]:
        logits: list[float] = []
        for positions in plan.answers:
            second = reader.residues(moduli, plan.degree)
            low = (second & np.uint64(0xFFFFFFFF)).astype(np.int64)
            high = (second >> np.uint64(32)).astype(np.int64)
            for position in positions:
                # Coefficient `position` of the second polynomial times the secret, mod X^N + 1.
                row = np.where(indices <= position, 1, -1) * secret[position - indices]
                value = 0
                for base, upper, lower in zip(bases, high @ row, low @ row, strict=True):
                    first = int.from_bytes(reader.raw(8), "little")
                    value += (first + (int(upper) << 32) + int(lower)) * base
                value %= whole
                value -= whole if value > whole // 2 else 0
                logits.append(value / 2.0**plan.answer_scale_bits)
        return np.array([logits])

    return read


def _batch_reader(
    plan: Plan, ring: Ring, secret: SecretKey
) -> Callable[[Reader], NDArray[np.float64]]:
    scale = 2.0**plan.answer_scale_bits
    moduli = ring.primes[: plan.answer_level]

    def read(reader: Reader) -> NDArray[np.float64]:
        logits = []
        for _ in range(plan.logits):
            pair = np.stack([reader.residues(moduli, plan.degree) for _ in range(2)])
            slots = secret.decrypt(ring.ciphertext(pair, scale))
            logits.append(slots.real if plan.relin_level else ring.coefficients(slots))
        return np.stack(logits, axis=1)

    return read
