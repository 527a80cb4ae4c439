"""What an answer gives away about the model: the attacks, and that they fail."""

import numpy as np
import pytest

from privacy.inference import CompiledModel, Evaluator, MeasurementOwner, compile_model
from privacy.inference.arithmetic import slot_model
from privacy.inference.ckks import (
    SEED_BYTES,
    Ciphertext,
    Ring,
    SecretKey,
    expand,
)
from privacy.inference.ckks.seal_keys import SealKeys, seal
from privacy.inference.errors import MessageError
from privacy.inference.messages import Reader, Tag, open_message
from privacy.inference.public_keys import refuse_secret
from tests.privacy.inference.inference_models import linear

INPUTS = 100


class Attacker(MeasurementOwner):
    """A curious data owner: knows the secret key, the query and the answer."""

    def ring(self) -> Ring:
        return self._ring

    def query_polynomial(self, query: bytes) -> np.ndarray:
        """The query's second polynomial, in the number-theoretic domain, (N,)."""
        _, body = open_message(
            query, Tag.QUERY, self.plan, self._digest, lambda _: self._session_key
        )
        reader = Reader(body)
        reader.residues(self._ring.primes[:1], self.plan.degree)
        return expand(reader.raw(SEED_BYTES), self._ring.primes[:1], self.plan.degree)[0]

    def answer_polynomial(self, answer: bytes) -> np.ndarray:
        """The answer's second polynomial, as coefficients, (N,)."""
        _, body = open_message(
            answer, Tag.ANSWER, self.plan, self._digest, lambda _: self._session_key
        )
        return Reader(body).residues(self._ring.primes[:1], self.plan.degree)[0]

    def transformed(self, polynomial: np.ndarray, *, back: bool) -> np.ndarray:
        if back:
            one = self._ring.ciphertext(polynomial[None, None], 1.0)
            return self._ring.coefficient_residues(one)[0, 0]
        return self._ring.transformed(polynomial.astype(np.float64), (0,))[0].astype(np.uint64)

    def divide(self, query: bytes, answer: bytes) -> np.ndarray:
        """Answer / query in the ring: the weights' polynomial, if nothing stops it, (N,)."""
        modulus = self._ring.primes[0]
        above = self.transformed(self.answer_polynomial(answer), back=False)
        below = self.query_polynomial(query)
        ratio = [
            int(a) * pow(int(b), -1, modulus) % modulus for a, b in zip(above, below, strict=True)
        ]
        return self._signed(self.transformed(np.array(ratio, dtype=np.uint64), back=True))

    def every_coefficient(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Decrypt all coefficients of an answer, (N,)."""
        plain = seal.Plaintext()
        pair = np.stack([self.transformed(each, back=False)[None] for each in (first, second)])
        keys = self._secret._seal
        keys._decryptor.decrypt(keys.load(pair, 1.0), plain)
        values = np.array([plain.data(k) for k in range(self.plan.degree)], dtype=np.uint64)
        return self._signed(self.transformed(values, back=True))

    def _signed(self, values: np.ndarray) -> np.ndarray:
        modulus = self._ring.primes[0]
        centred = [int(v) - modulus if v > modulus // 2 else int(v) for v in values]
        return np.array(centred, dtype=np.float64)


@pytest.fixture(scope="module")
def compiled() -> CompiledModel:
    return compile_model(linear(INPUTS), input_shape=(INPUTS,), input_range=(0.0, 1.0))


@pytest.fixture(scope="module")
def attacker(compiled: CompiledModel) -> Attacker:
    return Attacker(compiled.plan)


@pytest.fixture(scope="module")
def evaluator(compiled: CompiledModel, attacker: Attacker) -> Evaluator:
    return Evaluator(compiled, attacker.public_material())


def weights_found(compiled: CompiledModel, guess: np.ndarray) -> float:
    """The largest correlation of a guess with any row of the model's weights.

    By chance it is about 1/sqrt(INPUTS) = 0.1 a row; 10 rows stay under 0.6 except with
    probability 1e-8.
    """
    rows = compiled.network.layers[0].affines[0].matrix.toarray()
    parts = guess[: rows.size].reshape(rows.shape)[:, ::-1]
    return max(abs(np.corrcoef(a, b)[0, 1]) for a, b in zip(rows, parts, strict=True))


def test_division_in_the_ring_finds_nothing(
    compiled: CompiledModel, attacker: Attacker, evaluator: Evaluator
) -> None:
    query = attacker.encrypt(np.full(INPUTS, 0.5))
    answer = evaluator.evaluate(query)
    assert weights_found(compiled, attacker.divide(query, answer)) < 0.6


def test_without_the_encryption_of_zero_division_finds_the_weights(
    compiled: CompiledModel,
    attacker: Attacker,
    evaluator: Evaluator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slot_model, "rerandomise", lambda *_: None)
    query = attacker.encrypt(np.full(INPUTS, 0.5))
    answer = evaluator.evaluate(query)
    assert weights_found(compiled, attacker.divide(query, answer)) > 0.999999


def test_with_all_coefficients_one_answer_is_the_weights(
    compiled: CompiledModel,
    attacker: Attacker,
    evaluator: Evaluator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What :func:`extract` leaves out would be the product of the query and all weights."""
    leaked: list[np.ndarray] = []

    def leak(
        ring: Ring, answer: Ciphertext, positions: tuple[int, ...], biases: list[int]
    ) -> bytes:
        copy = ring.at_level(answer, 1)
        leaked.append(ring.coefficient_residues(copy)[:, 0])
        return extract(ring, answer, positions, biases)

    extract = slot_model.extract
    monkeypatch.setattr(slot_model, "extract", leak)
    probe = np.zeros(INPUTS)
    probe[0] = 1.0
    answer = evaluator.evaluate(attacker.encrypt(probe))
    first, second = leaked[0]
    assert weights_found(compiled, attacker.every_coefficient(first, second)) > 0.999999
    # As released, all but the ten coefficients that are read are missing.
    sent = attacker.answer_polynomial(answer)
    np.testing.assert_array_equal(sent, second)
    assert len(answer) < 8 * compiled.plan.degree + 200
    masked = np.zeros_like(first)
    masked[list(compiled.plan.answers[0])] = first[list(compiled.plan.answers[0])]
    assert weights_found(compiled, attacker.every_coefficient(masked, second)) < 0.6


def test_two_answers_to_one_input_have_nothing_in_common(
    attacker: Attacker, evaluator: Evaluator
) -> None:
    x = np.full(INPUTS, 0.5)
    one, two = (attacker.answer_polynomial(evaluator.evaluate(attacker.encrypt(x))) for _ in "ab")
    assert not np.any(one == two)


def test_a_secret_key_is_refused_in_either_form(attacker: Attacker, evaluator: Evaluator) -> None:
    ring = attacker.ring()
    secret = attacker._secret.residues
    plain = attacker.transformed(secret[0], back=True)[None]
    for residues in (secret, plain):
        with pytest.raises(MessageError, match="secret key"):
            refuse_secret(ring, residues)
    kinds = seal.SecretKey | SecretKey | SealKeys
    holders = [value for value in vars(evaluator).values() if isinstance(value, kinds)]
    assert not holders
