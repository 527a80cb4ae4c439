"""Evaluators in processes of their own, for many owners."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest

from privacy.inference import (
    CompiledModel,
    DataOwner,
    EvaluatorPool,
    compile_model,
)
from privacy.inference.errors import AnsweredBeforeError, EvaluatorFailedError, MessageError
from tests.privacy.inference.evaluator.evaluator_program import start_process
from tests.privacy.inference.inference_models import linear

X = np.random.default_rng(0).uniform(-1, 1, (5, 20))


def linear_model() -> CompiledModel:
    return compile_model(linear(20), input_shape=(20,), input_range=(-1.0, 1.0))


compiled = pytest.fixture(scope="module")(linear_model)


@pytest.fixture(scope="module")
def pool() -> Iterator[EvaluatorPool]:
    with EvaluatorPool(partial(start_process, linear_model), processes=2) as started:
        started.start_all()
        yield started


def test_a_pool_answers_like_an_evaluator_and_refuses_like_one(
    pool: EvaluatorPool, compiled: CompiledModel
) -> None:
    owner, other = DataOwner(compiled.plan), DataOwner(compiled.plan)
    keys = pool.hold(owner.public_material())
    queries = [owner.encrypt(one) for one in X]
    labels = [owner.decrypt(answer).label for answer in pool.evaluate_many(keys, queries)]
    assert labels == compiled.predict(X).argmax(axis=1).tolist()
    for query in queries:
        with pytest.raises(AnsweredBeforeError):
            pool.evaluate(keys, query)
    fresh = owner.encrypt(X[0])
    altered = fresh[:-1] + bytes([fresh[-1] ^ 1])
    for wrong in (b"", fresh[:-1], altered, other.encrypt(X[0]), owner.secret_state()):
        with pytest.raises(MessageError):
            pool.evaluate(keys, wrong)
    # What was refused took nobody's turn.
    assert owner.decrypt(pool.evaluate(keys, fresh)[0]).label == labels[0]
    pool.drop(keys)
    with pytest.raises(MessageError, match="replaced"):
        pool.evaluate(keys, owner.encrypt(X[0]))


def test_a_process_holds_few_owners_and_forgets_those_that_are_dropped(
    pool: EvaluatorPool, compiled: CompiledModel
) -> None:
    owners = [DataOwner(compiled.plan) for _ in range(9)]
    key_sets = [pool.hold(owner.public_material()) for owner in owners]
    for _ in range(2):
        for owner, keys in zip(owners, key_sets, strict=True):
            assert owner.decrypt(pool.evaluate(keys, owner.encrypt(X[0]))[0]).labels
    assert all(len(worker.slots) <= 4 for worker in pool._workers)
    for keys in key_sets:
        pool.drop(keys)
    assert not any(worker.slots for worker in pool._workers)


def test_a_process_that_dies_costs_one_query(pool: EvaluatorPool, compiled: CompiledModel) -> None:
    owner = DataOwner(compiled.plan)
    keys = pool.hold(owner.public_material())
    (worker,) = [worker for worker in pool._workers if worker.slots]
    assert worker.process is not None
    assert worker.process.pid is not None
    worker.process.timeout = 0.2
    os.kill(worker.process.pid, signal.SIGSTOP)
    lost = owner.encrypt(X[0])
    with pytest.raises(EvaluatorFailedError, match="code -9"):
        pool.evaluate(keys, lost)
    assert pool.running == 1
    assert owner.decrypt(pool.evaluate(keys, owner.encrypt(X[0]))[0]).labels
    pool.start_all()
    assert pool.running == 2
    # Whether it was answered nobody knows: it is not answered again.
    with pytest.raises(AnsweredBeforeError):
        pool.evaluate(keys, lost)
    # One that died while it had nothing to do costs nothing.
    (worker, *_) = [worker for worker in pool._workers if worker.slots]
    assert worker.process is not None
    worker.process.kill()
    assert owner.decrypt(pool.evaluate(keys, owner.encrypt(X[0]))[0]).labels
    pool.drop(keys)


def test_a_pool_without_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="processes is 0"):
        EvaluatorPool(partial(start_process, linear_model), processes=0)
