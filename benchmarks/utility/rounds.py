"""A federated run of the utility benchmark, made of the product's own parts, without messages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility.clients import Holdings
from benchmarks.utility.models import Model, Vector
from privacy.accounting import Budget, Full, Poisson, calibrate_noise_multiplier
from privacy.mechanisms import ClippingGeometry, LatticeGaussian, Randomness
from strategies import ServerSGD
from strategies.population import draw_cohort


@dataclass(frozen=True)
class Setting:
    """The choices of a run that cost privacy or accuracy.

    Attributes
    ----------
    sampling_rate
        q of Poisson sampling; at 1 everybody takes part.
    rounds
        T.
    clipping_norm
        S of a client's update, which is one full-batch gradient step with rate 1.
    learning_rate, momentum
        Of the server.
    """

    sampling_rate: float
    rounds: int
    clipping_norm: float
    learning_rate: float
    momentum: float = 0.9

    @property
    def sampling(self) -> Full | Poisson:
        """The rule by which cohorts are drawn."""
        return Full() if self.sampling_rate == 1 else Poisson(self.sampling_rate)


def noise_multiplier(setting: Setting, budget: Budget) -> float:
    """The smallest z with which all rounds fit the budget, under add or remove one client."""
    return calibrate_noise_multiplier(
        sampling=setting.sampling, rounds=setting.rounds, budget=budget
    )


def train(
    model: Model,
    holdings: Holdings,
    setting: Setting,
    *,
    noise_multiplier: float,
    randomness: Randomness,
) -> Vector:
    """Return the weights after the last round, float32 (d,).

    A client's update is one gradient step on all its images. Its shards are equally large, so
    that gradient is the mean of theirs, and each shard that the cohort holds is computed once.
    """
    clients = len(holdings.clients)
    weights = model.first()
    optimizer = ServerSGD(learning_rate=setting.learning_rate, momentum=setting.momentum)
    geometry = ClippingGeometry((setting.clipping_norm,), (0,))
    expected = np.float32(setting.sampling_rate * clients)
    for _ in range(setting.rounds):
        cohort = draw_cohort(setting.sampling, clients, randomness=randomness)
        drawn = holdings.clients[cohort]
        shards = np.unique(drawn)
        gradients = model.gradients(weights, shards)
        total = LatticeGaussian().open(
            [weights], geometry, noise_multiplier=noise_multiplier, randomness=randomness
        )
        for client in np.searchsorted(shards, drawn):
            total.add([_trained(weights, gradients, client)], weight=1.0)
        [noisy] = total.release()
        [weights] = optimizer.step([weights], [noisy / expected])
    return weights


def _trained(weights: Vector, gradients: Vector, shards: NDArray[np.int64]) -> Vector:
    """What a client replies with."""
    first, second = gradients[shards]
    mean: Vector = (first + second) * np.float32(0.5)
    return weights - mean
