"""The record-level demonstration: what its clients spend, and that they learn."""

from dataclasses import replace

import numpy as np

from benchmarks.record_level import CLIENTS, EPSILON, RECIPES, accuracy, federate
from flower_app.data import load_dataset, load_inputs


def test_all_clients_take_every_round_within_the_budget() -> None:
    recipe = replace(RECIPES["hog-linear"], rounds=3)
    outcome = federate("hog-linear", recipe, 0, epsilon=EPSILON)
    assert len(outcome.epsilons) == CLIENTS
    # The noise leaves room for one round more, which a run that is resumed may need.
    assert all(0.8 * EPSILON < spent <= EPSILON for spent in outcome.epsilons)
    dataset = load_dataset("mnist")
    inputs = load_inputs(dataset, "hog").validation()
    assert accuracy(outcome.model, inputs, np.asarray(dataset.validation.labels)) > 80
