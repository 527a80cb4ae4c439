"""Fresh encryptions of ours: what TenSEAL makes of them, and the noise that they carry."""

import numpy as np
import pytest
from scipy import stats

from privacy.inference.ckks import PublicKey, Residues, Ring, SecretKey, expand
from privacy.inference.compiler.error_model import public_noise, rescale_noise

RING = Ring(4096, (36, 30, 40))
SCALE = 2.0**24
FALSE_ALARM = 1e-9


@pytest.fixture(scope="module")
def secret() -> SecretKey:
    return SecretKey(RING)


@pytest.fixture(scope="module")
def public(secret: SecretKey) -> PublicKey:
    return PublicKey(RING, *secret.public_key())


def pair(secret: SecretKey, slots: np.ndarray, level: int) -> Residues:
    first, seed = secret.encrypt(RING.encode(slots, SCALE, level))
    return np.stack([first, expand(seed, RING.primes[:level], RING.degree)])


def noise(secret: SecretKey, residues: Residues, message: Residues) -> np.ndarray:
    """c₀ + c₁·s - m, coefficient by coefficient, read modulo the first prime, (N,)."""
    prime = RING.primes[0]
    first, second, key, plain = (
        [int(value) for value in row]
        for row in (residues[0, 0], residues[1, 0], secret.residues[0], message[0])
    )
    rest = [(a + b * s - m) % prime for a, b, s, m in zip(first, second, key, plain, strict=True)]
    row = np.array(rest, dtype=np.uint64)[None, None]
    values = RING.coefficient_residues(RING.ciphertext(row, 1.0))[0, 0].astype(np.int64)
    return np.where(values > prime // 2, values - prime, values)


def slots() -> np.ndarray:
    generator = np.random.default_rng(1)
    return generator.normal(size=RING.slots) + 1j * generator.normal(size=RING.slots)


@pytest.mark.parametrize("level", [1, 2])
def test_tenseal_decrypts_what_either_key_encrypts(
    secret: SecretKey, public: PublicKey, level: int
) -> None:
    values = slots()
    ours = RING.ciphertext(pair(secret, values, level), SCALE)
    np.testing.assert_allclose(secret.decrypt(ours), values, atol=1e-3)
    plain = RING.encode(values, SCALE, level)
    under_public = RING.ciphertext(public.encrypt(plain), SCALE)
    np.testing.assert_allclose(secret.decrypt(under_public), values, atol=2e-3)
    zero = public.encrypt_zero(level)
    assert zero.level == level
    zero.scale = SCALE
    assert np.abs(secret.decrypt(zero)).max() < 0.02
    RING.add(ours, zero)
    np.testing.assert_allclose(secret.decrypt(ours), values, atol=0.02)


def test_the_noise_of_a_query_is_the_centred_binomial_that_was_drawn(secret: SecretKey) -> None:
    """Pearson's test on 16 encryptions: a false alarm in 10^9 runs."""
    values = slots()
    plain = RING.encode(values, SCALE, 2).polynomial.astype(np.uint64)
    drawn = np.concatenate([noise(secret, pair(secret, values, 2), plain) for _ in range(16)])
    assert np.abs(drawn).max() <= 21
    counts = np.array([(drawn == value).sum() for value in range(-11, 12)])
    shares = stats.binom.pmf(np.arange(-11, 12) + 21, 42, 0.5)
    rest = len(drawn) - counts.sum()
    observed, expected = [*counts, rest], np.array([*shares, 1 - shares.sum()]) * len(drawn)
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


def test_the_noise_of_a_zero_is_what_the_planner_counts(
    secret: SecretKey, public: PublicKey
) -> None:
    nothing = np.zeros((1, RING.degree), dtype=np.uint64)
    drawn = [noise(secret, RING.residues(public.encrypt_zero(1)), nothing) for _ in range(8)]
    measured = float(np.mean(np.square(np.concatenate(drawn).astype(np.float64))))
    # 32,768 values, correlated through 8 draws of u and the key: within a fifth.
    assert measured == pytest.approx(public_noise(RING.degree), rel=0.2)


def test_the_noise_of_encrypted_weights_is_that_of_a_rounding(
    secret: SecretKey, public: PublicKey
) -> None:
    plain = RING.encode(slots(), SCALE, 2)
    message = plain.polynomial.astype(np.uint64)
    drawn = [noise(secret, public.encrypt(plain), message) for _ in range(8)]
    measured = float(np.mean(np.square(np.concatenate(drawn).astype(np.float64))))
    assert measured == pytest.approx(rescale_noise(RING.degree), rel=0.2)


def test_no_encryption_is_like_another(secret: SecretKey, public: PublicKey) -> None:
    values = slots()
    one, other = (pair(secret, values, 2) for _ in "ab")
    # A residue meets another by chance once in 2^30.
    assert np.mean(one == other) < 1e-3
    one, other = (RING.residues(public.encrypt_zero(2)) for _ in "ab")
    assert np.mean(one == other) < 1e-3
    assert np.mean(one[0] == one[1]) < 1e-3


def test_values_that_do_not_fit_are_refused() -> None:
    for wrong in (np.nan, np.inf, 2.0**40):
        with pytest.raises(ValueError, match="hold less than"):
            RING.encode(wrong, SCALE, 1)
    large = RING.ciphertext(np.zeros((3, 1, RING.degree), dtype=np.uint64), 1.0)
    with pytest.raises(ValueError, match="size 2"):
        RING.multiply(large, large)


def test_rings_that_are_none_are_refused() -> None:
    for degree, bits, words in (
        (1000, (30,), "choose one of"),
        (4096, (50, 50, 50), "128 bits"),
        (4096, (51,), "at most 50 bits"),
        (4096, (), "one or more"),
        (32768, (17, 17, 17), "primes of 17 bits"),
    ):
        with pytest.raises(ValueError, match=words):
            Ring(degree, bits)
