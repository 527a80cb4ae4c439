"""What leaves a data owner, and the certificate."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from privacy.inference import (
    ClassOnly,
    DataOwner,
    Evaluator,
    FloodedLogits,
    MeasurementOwner,
    ReleasePolicy,
    RoundedLogits,
    TopClasses,
    certify,
    compile_model,
)
from privacy.inference.ckks import Residues, Ring, SecretKey, expand
from privacy.inference.ckks.encoding import encoder
from privacy.inference.errors import ReleaseError
from tests.privacy.inference.inference_models import linear

COMPILED = compile_model(linear(20), input_shape=(20,), input_range=(-1.0, 1.0), tolerance=1e-6)
X = np.linspace(-1, 1, 20)


def ask(policy: ReleasePolicy | None) -> tuple[DataOwner, Evaluator]:
    owner = DataOwner(COMPILED.plan, release=policy)
    return owner, Evaluator(COMPILED, owner.public_material())


def test_each_policy_releases_what_it_says() -> None:
    logits = COMPILED.predict(X[None])[0]
    order = tuple(np.argsort(-logits).tolist())
    for policy, top, released in (
        (ClassOnly(), None, None),
        (TopClasses(3), (order[:3],), None),
        (RoundedLogits(2), None, np.round(logits, 2)),
    ):
        owner, evaluator = ask(policy)
        answer = owner.decrypt(evaluator.evaluate(owner.encrypt(X)))
        assert answer.label == order[0]
        assert answer.top == top
        if released is None:
            assert answer.logits is None
        else:
            assert answer.logits is not None
            np.testing.assert_array_equal(answer.logits[0], released)


def test_flooding_adds_the_noise_it_states_and_counts_queries() -> None:
    policy = FloodedLogits(statistical_bits=20, queries=2)
    owner, evaluator = ask(policy)
    logits = COMPILED.predict(X[None])[0]
    for _ in range(2):
        released = owner.decrypt(evaluator.evaluate(owner.encrypt(X))).logits
        assert released is not None
        # Ten draws beyond seven deviations: once in 10^10 runs.
        assert np.abs(released[0] - logits).max() < 7 * policy.noise(COMPILED.plan)
        assert np.abs(released[0] - logits).max() > 0
    with pytest.raises(ReleaseError, match="make new keys"):
        owner.decrypt(evaluator.evaluate(owner.encrypt(X)))


def test_the_flooding_noise_keeps_the_divergence_it_promises() -> None:
    plan, policy = COMPILED.plan, FloodedLogits(statistical_bits=20, queries=5)
    shift = 2.0**plan.worst_error_bits
    divergence = policy.queries * plan.classes * shift**2 / (2 * policy.noise(plan) ** 2)
    assert math.isclose(divergence, 2.0**-20 / 24)


def test_the_noise_is_gaussian() -> None:
    """Kolmogorov and Smirnov at a false-alarm rate of 10^-6."""
    policy, zeros = FloodedLogits(statistical_bits=20, queries=1), np.zeros((2_000, 10))
    released = policy.release(zeros, COMPILED.plan, 0).logits
    assert released is not None
    draws = released.ravel() / policy.noise(COMPILED.plan)
    assert stats.kstest(draws, "norm").pvalue > 1e-6


def test_a_plan_without_bits_for_a_policy_is_refused() -> None:
    with pytest.raises(ReleaseError, match="no bits"):
        DataOwner(COMPILED.plan, release=FloodedLogits(statistical_bits=60, queries=10**6))
    with pytest.raises(
        ReleaseError, match=r"give decimals=-?\d+ or less, or compile with"
    ) as refused:
        DataOwner(COMPILED.plan, release=RoundedLogits(9))
    allowed = int(str(refused.value).split("give decimals=")[1].split()[0])
    DataOwner(COMPILED.plan, release=RoundedLogits(allowed))
    with pytest.raises(ReleaseError, match=f"give decimals={allowed} or less"):
        DataOwner(COMPILED.plan, release=RoundedLogits(allowed + 1))
    with pytest.raises(ReleaseError, match="10 classes"):
        DataOwner(COMPILED.plan, release=TopClasses(11))


@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_certificate_compares_both_ways(batch_size: int) -> None:
    compiled = compile_model(
        linear(20), input_shape=(20,), input_range=(-1.0, 1.0), batch_size=batch_size
    )
    inputs = np.random.default_rng(0).uniform(-1, 1, (10, 20))
    labels = compiled.predict(inputs).argmax(axis=1)
    labels[0] = (labels[0] + 1) % 10
    certificate = certify(compiled, inputs, labels)
    assert certificate.images == 10
    assert certificate.plain_accuracy == certificate.encrypted_accuracy == 0.9
    assert certificate.agreement == 1.0
    assert 0 < certificate.worst_error < certificate.predicted_error
    assert json.loads(certificate.to_json())["agreement"] == 1.0
    with pytest.raises(ValueError, match="one each"):
        certify(compiled, inputs, labels[:3])


def test_only_throw_away_keys_show_logits() -> None:
    assert not hasattr(DataOwner, "logits")
    assert issubclass(MeasurementOwner, DataOwner)


@pytest.mark.parametrize("number", [-400, 400, 1.5, True, "2"])
def test_decimals_that_no_double_has_are_refused_by_name(number: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"decimals is .*; it must be a whole number"):
        RoundedLogits(number)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bits", "queries", "name"),
    [(4000, 1, "statistical_bits"), (0, 1, "statistical_bits"), (30, 10**400, "queries")],
)
def test_noise_that_no_double_has_is_refused_by_name(bits: int, queries: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*it must be a whole number"):
        FloodedLogits(bits, queries)
    with pytest.raises(ValueError, match="count is 0; it must be a whole number"):
        TopClasses(0)


# Li and Micciancio 2021: a decryption gives the key away -----------------------------------------

RING = Ring(4096, (36, 30, 40))
SCALE = 2.0**24


def key_from(decrypted: NDArray[np.complex128], first: Residues, second: Residues) -> Residues:
    """Solve c₀ + c₁·s = m + e for s, point by point, as whoever takes ``decrypted`` for m + e."""
    prime = RING.primes[0]
    coefficients = np.rint(encoder(RING.degree).coefficients(decrypted) * SCALE)
    right = RING.transformed(coefficients.astype(np.int64), (0,))[0]
    solved = [
        (int(m) - int(a)) * pow(int(b), -1, prime) % prime
        for m, a, b in zip(right, first, second, strict=True)
    ]
    return np.array(solved, dtype=np.uint64)


def test_a_decryption_in_full_precision_is_the_key_and_a_flooded_one_is_not() -> None:
    secret, chosen = SecretKey(RING), np.random.default_rng(1).uniform(-1, 1, RING.slots)
    first, seed = secret.encrypt(RING.encode(chosen, SCALE, 1))
    second = expand(seed, RING.primes[:1], RING.degree)
    decrypted = secret.decrypt(RING.ciphertext(np.stack([first, second]), SCALE))
    true = secret.residues[0]
    np.testing.assert_array_equal(key_from(decrypted, first[0], second[0]), true)

    # Both parts of every slot as logits of a plan with this error, in COMPILED's rows of ten.
    error = np.abs(decrypted - chosen).max()
    plan = replace(COMPILED.plan, worst_error_bits=math.ceil(math.log2(error)))
    logits = np.zeros((math.ceil(2 * RING.slots / 10), 10))
    logits.flat[: 2 * RING.slots] = decrypted.view(np.float64)
    flooding = FloodedLogits(statistical_bits=20, queries=1)
    released = flooding.release(logits, plan, 0).logits
    assert released is not None
    flooded = released.ravel()[: 2 * RING.slots].view(np.complex128)
    assert np.mean(key_from(flooded, first[0], second[0]) == true) < 0.01
