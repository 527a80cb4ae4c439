"""Every operation beside SEAL's: equal in every residue where SEAL computes the same thing."""

import math
from functools import reduce

import numpy as np
import pytest
from tenseal import sealapi as seal

from privacy.inference.ckks import (
    CONJUGATE,
    Ciphertexts,
    Plaintext,
    Residues,
    Ring,
    SwitchingKey,
)
from privacy.inference.ckks import _key_switching as switching
from privacy.inference.ckks.primes import choose_primes
from tests.privacy.inference.ckks.seal_reference import SealReference

SHAPES = {
    1024: (27,),
    2048: (27, 27),
    4096: (39, 30, 40),
    8192: (50, 40, 30, 24, 50),
    16384: (50, *[34] * 9, 50),
    32768: (50, *[45] * 5, 50),
}


class Both:
    """A ring of ours and SEAL's, with one secret key and the same evaluation keys."""

    def __init__(self, degree: int) -> None:
        self.ring = ring = Ring(degree, SHAPES[degree])
        self.seal = SealReference(ring)
        self.generator = np.random.default_rng(degree)
        if len(ring.primes) > 1:
            self.steps = (1, 5, ring.slots // 2, CONJUGATE)
            elements = [ring.galois_element(step) for step in self.steps]
            self.relinearisation, self.rotations = self.seal.make_keys(elements)
            self.relinearisation_key = self.key(self.relinearisation)
            self.rotation_keys = {
                element: self.key(parts, element) for element, parts in self.rotations.items()
            }

    def key(self, parts: Residues, element: int = 1) -> SwitchingKey:
        backwards = self.ring._order(pow(element, -1, 2 * self.ring.degree))
        key = parts[..., backwards].astype(np.float64)
        return SwitchingKey(np.ascontiguousarray(key), self.ring.levels)

    def random(self, size: int, level: int) -> Residues:
        """Uniform residues, with the extremes among them."""
        shape = (size, self.ring.degree)
        rows = []
        for prime in self.ring.primes[:level]:
            row = self.generator.integers(0, prime, shape, dtype=np.uint64)
            row[:, :4] = [0, 1, prime - 1, prime // 2]
            rows.append(row)
        return np.stack(rows, axis=1)

    def slots(self) -> np.ndarray:
        return self.generator.normal(size=self.ring.slots) + 1j * self.generator.normal(
            size=self.ring.slots
        )


@pytest.fixture(scope="module", params=SHAPES)
def both(request: pytest.FixtureRequest) -> Both:
    return Both(request.param)


def levels(both: Both) -> list[int]:
    return sorted({1, (both.ring.levels + 1) // 2, both.ring.levels})


@pytest.mark.parametrize("degree", SHAPES)
@pytest.mark.parametrize("bits", [24, 30, 37, 43, 50])
def test_primes_are_seals(degree: int, bits: int) -> None:
    wanted = [bits, 27, bits, 50, bits]
    fitting = [each for each in wanted if each > 17 or degree < 32768]
    for count in range(1, len(fitting) + 1):
        chosen = fitting[:count]
        try:
            ours = choose_primes(degree, chosen)
        except ValueError:
            continue  # more bits than the degree holds
        theirs = seal.CoeffModulus.Create(degree, chosen)
        assert ours == tuple(modulus.value() for modulus in theirs)


def test_encoding_is_seals_to_one_unit(both: Both) -> None:
    slots = both.slots()
    for scale in (2.0**20, 2.0**22.3):
        theirs = both.seal.encoded(slots, scale, both.ring.levels)
        ours = both.ring.encode(slots, scale, both.ring.levels)
        assert difference(both.ring, ours, theirs) <= 1


def test_large_scales_lose_no_more_than_doubles_do(both: Both) -> None:
    room = sum(SHAPES[both.ring.degree][: both.ring.levels]) - 8
    slots = both.slots()
    for bits in (40, 60, 100):
        if bits > room:
            continue
        theirs = both.seal.encoded(slots, 2.0**bits, both.ring.levels)
        ours = both.ring.encode(slots, 2.0**bits, both.ring.levels)
        assert difference(both.ring, ours, theirs) <= max(1, 2.0 ** (bits - 45))


def test_a_number_in_all_slots_is_seals(both: Both) -> None:
    for value in (0.0, 1.0, -3.7, 1e-9):
        theirs = both.seal.encoded(value, 2.0**20, both.ring.levels)
        ours = both.ring.encode(value, 2.0**20, both.ring.levels).polynomial
        np.testing.assert_array_equal(ours, theirs.astype(np.float64))


def difference(ring: Ring, ours: Plaintext, theirs: Residues) -> int:
    """The largest difference of a coefficient, read modulo all primes."""
    gap = (ours.polynomial - theirs.astype(np.float64))[None]
    gap += (gap < 0) * np.array(ring.primes[: len(theirs)])[:, None]
    rows = ring.coefficient_residues(ring.ciphertext(gap.astype(np.uint64), 1.0))[0]
    primes = ring.primes[: len(theirs)]
    modulus = math.prod(primes)
    ones = [modulus // prime * pow(modulus // prime, -1, prime) for prime in primes]
    values = rows.T.astype(object) @ np.array(ones, dtype=object) % modulus
    return int(np.minimum(values, modulus - values).max())


def test_products_and_sums_are_seals(both: Both) -> None:
    ring, reference = both.ring, both.seal
    for level in levels(both):
        one, other, third = (both.random(2, level) for _ in range(3))
        a, b, c = (ring.ciphertext(each, 1.0) for each in (one, other, third))
        product = ring.multiply(a, b)
        expected = reference.of("multiply", one, other)
        np.testing.assert_array_equal(ring.residues(product), expected)
        square = ring.multiply(a, a)
        np.testing.assert_array_equal(ring.residues(square), reference.of("square", one))
        plain = reference.plain(both.slots(), 2.0**15, level)
        ours = ring.encode(1.0, 1.0, level)
        ours.polynomial[:] = reference.residues(plain, level)
        times = ring.multiply_plain(a, ours)
        expected_times = reference.of("multiply_plain", one, plain)
        np.testing.assert_array_equal(ring.residues(times), expected_times)
        ring.add(a, b)
        np.testing.assert_array_equal(ring.residues(a), reference.of("add", one, other))
        ring.add(c, product)  # a pair and a product of size 3
        widened = reference.of("add", expected, third)
        np.testing.assert_array_equal(ring.residues(c), widened)
        # Sums of products: more terms than are added up without a reduction, and one left out.
        values = Ciphertexts(np.stack([each.astype(np.float64) for each in [one, other] * 3]), 1.0)
        places = [0, 1, 2, 4, 5]
        total = ring.weighted_sum(values, ring.weights(dict.fromkeys(places, ours)))
        terms = [reference.of("multiply_plain", (one, other)[at % 2], plain) for at in places]
        np.testing.assert_array_equal(ring.residues(total), summed(reference, terms))
        others = Ciphertexts(values.polynomials[: len(places)], 1.0)
        large = ring.sum_of_products(values, others, np.array(places))
        terms = [
            reference.of("multiply", (one, other)[at % 2], (one, other)[term % 2])
            for term, at in enumerate(places)
        ]
        np.testing.assert_array_equal(ring.residues(large), summed(reference, terms))


def summed(reference: SealReference, terms: list[Residues]) -> Residues:
    return reduce(lambda one, other: reference.of("add", one, other), terms)


def test_adding_a_plaintext_is_seals(both: Both) -> None:
    ring, reference = both.ring, both.seal
    residues = both.random(2, ring.levels)
    slots, scale = both.slots(), 2.0**15
    plain = reference.plain(slots, scale, ring.levels)
    ours = ring.encode(slots, scale, ring.levels)
    ours.polynomial[:] = reference.encoded(slots, scale, ring.levels)
    value = ring.ciphertext(residues, scale)
    ring.add_plain(value, ours)
    expected = reference.of("add_plain", residues, plain, scale=scale)
    np.testing.assert_array_equal(ring.residues(value), expected)


def test_rescaling_is_seals(both: Both) -> None:
    ring = both.ring
    for level in levels(both):
        if level == 1:
            continue
        for size in (2, 3):
            residues = both.random(size, level)
            value = ring.ciphertext(residues, 2.0**60)
            ring.rescale(value)
            expected = both.seal.of("rescale_to_next", residues, scale=2.0**60)
            np.testing.assert_array_equal(ring.residues(value), expected)
            assert value.scale == 2.0**60 / ring.primes[level - 1]
            assert value.level == level - 1


def test_fewer_primes_are_seals(both: Both) -> None:
    residues = both.random(2, both.ring.levels)
    value = both.ring.ciphertext(residues, 1.0)
    for level in levels(both):
        lower = both.ring.residues(both.ring.at_level(value, level))
        np.testing.assert_array_equal(lower, residues[:, :level])


def with_digits_of_seal(both: Both, polynomial: Residues, key: Residues) -> Residues:
    """A switched polynomial (level, N), by our kernels from SEAL's digits, which lie in [0, q)."""
    ring, level = both.ring, len(polynomial)
    base = ring._with_special(level)
    coefficients = ring.coefficient_residues(ring.ciphertext(polynomial[None], 1.0))[0]
    digits = np.stack(
        [ring.transformed(digit.astype(np.float64), tuple(base.places)) for digit in coefficients]
    )
    total = np.zeros((2, level + 1, ring.degree))
    switching_key = SwitchingKey(key.astype(np.float64), ring.levels)
    for row in range(level + 1):
        here = np.ascontiguousarray(digits[:, row])
        ring._multiply_key(total, row, here, switching_key)
    return ring._divided_by_last(total, base).astype(np.uint64)


def test_relinearising_is_seals_for_its_digits(both: Both) -> None:
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    for level in levels(both):
        residues = both.random(3, level)
        expected = both.seal.of("relinearize", residues, both.seal.relinearisation_keys)
        switched = with_digits_of_seal(both, residues[2], both.relinearisation)
        primes = np.array(ring.primes[:level], dtype=np.uint64)[:, None]
        np.testing.assert_array_equal((residues[:2] + switched) % primes, expected)


def test_rotating_is_seals_for_its_digits(both: Both) -> None:
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    for level in levels(both):
        residues = both.random(2, level)
        primes = np.array(ring.primes[:level], dtype=np.uint64)[:, None]
        for step in both.steps:
            element = ring.galois_element(step)
            turned = residues[..., ring._order(element)]
            switched = with_digits_of_seal(both, turned[1], both.rotations[element])
            switched[0] = (switched[0] + turned[0]) % primes
            expected = both.seal.of("apply_galois", residues, element, both.seal.galois_keys)
            np.testing.assert_array_equal(switched, expected)


def encrypted(both: Both, level: int) -> tuple[np.ndarray, Residues, float]:
    slots = both.slots()
    scale = 2.0 ** (17 if sum(SHAPES[both.ring.degree][:level]) < 35 else 25)
    return slots, both.seal.encrypt(slots, scale, level), scale


def test_centred_digits_rotate_the_same_slots_with_less_noise(both: Both) -> None:
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    for level in levels(both):
        slots, residues, scale = encrypted(both, level)
        value = ring.ciphertext(residues, scale)
        many = ring.rotate_many(value, (*both.steps, None), both.rotation_keys)
        np.testing.assert_array_equal(many[len(both.steps)].polynomials, value.polynomials)
        for index, step in enumerate(both.steps):
            rotated = many[index]
            turned = slots.conj() if step == CONJUGATE else np.roll(slots, -step)
            alone = ring.divided(ring.rotate(ring.extended(value), step, both.rotation_keys))
            np.testing.assert_array_equal(alone.polynomials, rotated.polynomials)
            ours = np.abs(both.seal.decrypted(ring.residues(rotated), scale) - turned).max()
            element = ring.galois_element(step)
            theirs = both.seal.of("apply_galois", residues, element, both.seal.galois_keys)
            error = np.abs(both.seal.decrypted(theirs, scale) - turned).max()
            # Errors of one encryption are in both; ours adds no slot that stands out.
            assert ours <= 1.5 * error


def test_centred_digits_relinearise_the_same_product(both: Both) -> None:
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    for level in levels(both):
        slots, residues, scale = encrypted(both, level)
        if 2 * np.log2(scale) + 6 > sum(SHAPES[ring.degree][:level]):
            continue
        value = ring.ciphertext(residues, scale)
        product = ring.multiply(value, value)
        large = both.seal.decrypted(ring.residues(product), scale**2)
        ring.relinearise(product, both.relinearisation_key)
        assert product.size == 2
        small = both.seal.decrypted(ring.residues(product), scale**2)
        np.testing.assert_allclose(small, large, atol=2.0**-12)
        np.testing.assert_allclose(small, slots**2, atol=0.1)


def test_a_sum_of_rotations_is_divided_once(both: Both) -> None:
    """Σ p_j ⊙ rot_j(x), doubly hoisted, beside the same sum one by one."""
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    for level in levels(both):
        slots, residues, scale = encrypted(both, level)
        value = ring.ciphertext(residues, scale)
        steps = (None, *both.steps)
        hoisted = ring.hoist(ring.extended(value), steps, both.rotation_keys)
        weights = [both.slots() for _ in steps]
        turned = [slots, *(np.roll(slots, -step) for step in both.steps[:-1]), slots.conj()]
        plain_scale = 2.0 ** (8 if scale < 2**20 else 12)
        plains = [ring.encode(row, plain_scale, level, hoisted=True) for row in weights]
        total = ring.divided(ring.combine(hoisted, ring.weights(dict(enumerate(plains)))))
        assert total.scale == scale * plain_scale
        if np.log2(total.scale) + 7 > sum(SHAPES[ring.degree][:level]):
            continue
        expected = sum(w * t for w, t in zip(weights, turned, strict=True))
        rotated = ring.rotate_many(value, steps, both.rotation_keys)
        low = [ring.encode(row, plain_scale, level) for row in weights]
        slow = ring.weighted_sum(rotated, ring.weights(dict(enumerate(low))))
        once = both.seal.decrypted(ring.residues(total), total.scale)
        often = both.seal.decrypted(ring.residues(slow), total.scale)
        tolerance = np.abs(often - expected).max()
        assert np.abs(once - expected).max() <= 1.5 * tolerance
        plain_sum = ring.divided(
            ring.add_rotations(ring.extended(value), both.steps, both.rotation_keys)
        )
        got = both.seal.decrypted(ring.residues(plain_sum), plain_sum.scale)
        np.testing.assert_allclose(got, sum(turned), atol=0.1)


def test_rotations_follow_each_other_before_one_division(both: Both) -> None:
    """rot(x) + x, rotated and added up, beside the same with a division after every step."""
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    one, other = both.steps[:2]
    for level in levels(both):
        slots, residues, scale = encrypted(both, level)
        value = ring.ciphertext(residues, scale)
        keys = both.rotation_keys
        total = ring.add_rotations(ring.extended(value), (one,), keys)
        total = ring.add_extended(ring.rotate(total, other, keys), ring.extended(value))
        ours = both.seal.decrypted(ring.residues(ring.divided(total)), scale)

        slow = ring.rotate_many(value, (one,), keys)[0]
        ring.add(slow, value)
        slow = ring.rotate_many(slow, (other,), keys)[0]
        ring.add(slow, value)
        divided = both.seal.decrypted(ring.residues(slow), scale)
        expected = np.roll(np.roll(slots, -one) + slots, -other) + slots
        error = np.abs(divided - expected).max()
        assert np.abs(ours - expected).max() <= 1.5 * error


def test_multiples_of_the_special_prime_change_no_rounding(both: Both) -> None:
    """A relinearised product plus a ciphertext, divided: both divided, and added."""
    ring = both.ring
    if len(ring.primes) == 1:
        pytest.skip("no special prime")
    large = ring.ciphertext(both.random(3, ring.levels), 1.0)
    value = ring.ciphertext(both.random(2, ring.levels), 1.0)
    extended = ring.relinearised(large, both.relinearisation_key)
    once = ring.divided(ring.add_extended(extended, ring.extended(value)))
    ring.relinearise(large, both.relinearisation_key)
    ring.add(large, value)
    np.testing.assert_array_equal(once.polynomials, large.polynomials)


def test_a_key_for_lower_levels_is_refused_above_them(both: Both) -> None:
    ring = both.ring
    if ring.levels < 2:
        pytest.skip("one level")
    parts = both.relinearisation[:1, :, [0, len(ring.primes) - 1]].astype(np.float64)
    key = SwitchingKey(np.ascontiguousarray(parts), 1)
    with pytest.raises(ValueError, match="levels up to 1"):
        ring.relinearise(ring.ciphertext(both.random(3, 2), 1.0), key)
    low = both.random(3, 1)
    value = ring.ciphertext(low, 1.0)
    ring.relinearise(value, key)
    whole = ring.ciphertext(low, 1.0)
    ring.relinearise(whole, both.relinearisation_key)
    np.testing.assert_array_equal(value.polynomials, whole.polynomials)


def test_digits_are_centred() -> None:
    ring = Ring(4096, SHAPES[4096])
    coefficients = np.empty((1, 4096))
    prime = float(ring.primes[0])
    values = np.concatenate([[0, 1, prime - 1, prime // 2, prime // 2 + 1], np.zeros(4091)])
    transformed = ring.transformed(values, (0,))
    switching.centred_coefficients(
        coefficients, transformed, ring._unmixing, ring._primes, np.zeros(1, dtype=np.int64), 0, 1
    )
    assert coefficients[0, :5].tolist() == [0, 1, -1, prime // 2, -(prime // 2)]
