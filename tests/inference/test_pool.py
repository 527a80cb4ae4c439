"""Evaluators in processes of their own."""

import numpy as np
import pytest
from inference_models import linear

from privacy.inference import DataOwner, EvaluatorPool, MessageError, compile_model


def test_a_pool_answers_like_an_evaluator_and_refuses_like_one() -> None:
    compiled = compile_model(linear(20), input_shape=(20,), input_range=(-1.0, 1.0))
    owner, other = DataOwner(compiled.plan), DataOwner(compiled.plan)
    x = np.random.default_rng(0).uniform(-1, 1, (5, 20))
    with EvaluatorPool(compiled, owner.public_material(), processes=2) as pool:
        queries = [owner.encrypt(one) for one in x]
        labels = [owner.decrypt(answer).label for answer in pool.evaluate_many(queries)]
        assert labels == compiled.predict(x).argmax(axis=1).tolist()
        for query in queries:
            with pytest.raises(MessageError, match="answered before"):
                pool.submit(query).result()
        for wrong in (b"", queries[0][:-1], other.encrypt(x[0])):
            with pytest.raises(MessageError):
                pool.submit(wrong).result()
        (answer,) = pool.evaluate_many([owner.encrypt(x[0])])
        assert owner.decrypt(answer).label == labels[0]


def test_a_pool_without_processes_is_refused() -> None:
    compiled = compile_model(linear(4), input_shape=(4,), input_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="processes is 0"):
        EvaluatorPool(compiled, b"", processes=0)
