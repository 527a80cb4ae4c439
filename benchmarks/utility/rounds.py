"""A federated run of the utility benchmark, made of the product's own parts, without messages."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.utility.clients import Holdings
from benchmarks.utility.models import Model, Vector
from privacy.accounting import (
    Budget,
    CyclicGroups,
    Full,
    Poisson,
    calibrate_noise_multiplier,
)
from privacy.correlated_noise import BLT, BandedMF, CorrelatedMechanism, CorrelatedNoise
from privacy.mechanisms import ClippingGeometry, Randomness
from strategies import ServerSGD
from strategies.correlated_rounds import group_of
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
    groups
        Groups of clients that take turns: in each round one of them is asked, or if q·groups is
        below 1 each of its clients with that probability. 1: a cohort of all clients.
    bands
        Over how many rounds the noise is correlated. 1: independent noise. 0: over all, in buffers.
    """

    sampling_rate: float
    rounds: int
    clipping_norm: float
    learning_rate: float
    momentum: float = 0.9
    groups: int = 1
    bands: int = 1

    @property
    def turns(self) -> CyclicGroups:
        """How groups take turns."""
        return CyclicGroups(self.groups, min(1.0, self.sampling_rate * self.groups))

    @property
    def sampling(self) -> Full | Poisson:
        """The rule by which cohorts are drawn, within a group."""
        return self.turns.within


def noise_multiplier(setting: Setting, budget: Budget) -> float:
    """The smallest z with which all rounds fit the budget, under add or remove one client."""
    return calibrate_noise_multiplier(
        sampling=setting.sampling,
        rounds=setting.turns.participations(setting.rounds),
        budget=budget,
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
    key = randomness.bytes(32)
    group = np.array([group_of(str(client), key, setting.groups) for client in range(clients)])
    mechanism: CorrelatedMechanism = BandedMF(setting.bands) if setting.bands else BLT()
    factor = mechanism.factor(
        rounds=setting.rounds, momentum=setting.momentum, groups=setting.groups
    )
    sigma = mechanism.sigma(
        factor,
        noise_multiplier=noise_multiplier,
        radius=mechanism.radius,
        size=weights.size,
    )
    noise = CorrelatedNoise(factor, sigma=sigma, size=weights.size)
    for number in range(setting.rounds):
        cohort = draw_cohort(setting.sampling, clients, randomness=randomness)
        cohort = cohort[group[cohort] == number % setting.groups]
        drawn = holdings.clients[cohort]
        shards = np.unique(drawn)
        gradients = model.gradients(weights, shards)
        row = _Row(noise.draw(randomness.bytes(32)))
        total = mechanism.open_row(
            [weights], geometry, noise_multiplier=noise_multiplier, noise=row
        )
        for client in np.searchsorted(shards, drawn):
            total.add([_trained(weights, gradients, client)], weight=1.0)
        [noisy] = total.release()
        [weights] = optimizer.step([weights], [noisy / expected])
    return weights


@dataclass(frozen=True)
class _Row:
    """A row of noise, as a sum adds it."""

    row: NDArray[np.int64]

    def add_to(self, integers: NDArray[np.int64], part: slice) -> None:
        integers += self.row[part]


def _trained(weights: Vector, gradients: Vector, shards: NDArray[np.int64]) -> Vector:
    """What a client replies with."""
    first, second = gradients[shards]
    mean: Vector = (first + second) * np.float32(0.5)
    return weights - mean
