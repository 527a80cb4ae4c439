"""A federated run over the app's partitions, private or not, with its accuracy by round."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_app.data import Dataset, Inputs, Partitions
from privacy.accounting import Full, Poisson, Sampling
from privacy.mechanisms import ClippingGeometry, LatticeGaussian, Randomness
from strategies import ServerSGD
from strategies.population import draw_cohort

Vector = NDArray[np.float32]
CLASSES = 10


@dataclass(frozen=True)
class Work:
    """What a round does, besides privacy.

    Attributes
    ----------
    sampling_rate
        q.
    local_steps
        Full-batch steps of a client, with rate ``local_rate``.
    server_rate, momentum
        Of the server.
    """

    sampling_rate: float
    local_steps: int
    server_rate: float
    local_rate: float = 1.0
    momentum: float = 0.9

    @property
    def sampling(self) -> Sampling:
        """The rule that draws cohorts."""
        return Full() if self.sampling_rate == 1 else Poisson(self.sampling_rate)


@dataclass(frozen=True)
class Protection:
    """S and z of a private run."""

    clipping_norm: float
    noise_multiplier: float


class Clients:
    """Softmax regression on each client's own images, as the app's ``hog-linear``."""

    def __init__(self, partitions: Partitions, inputs: Inputs, dataset: Dataset) -> None:
        table = inputs.train(np.arange(len(dataset.train)))
        truth = np.eye(CLASSES, dtype=np.float32)[dataset.train.labels]
        self._held = []
        for client in range(len(partitions)):
            rows = partitions.rows(client)
            self._held.append((table[rows], truth[rows]))
        self.parameters = CLASSES * table.shape[1]
        self._validation = inputs.validation()
        self._labels = dataset.validation.labels

    def __len__(self) -> int:
        return len(self._held)

    def trained(self, client: int, weights: Vector, work: Work) -> Vector:
        """A client's weights after its local steps; unchanged if it holds nothing."""
        inputs, truth = self._held[client]
        own = weights.reshape(CLASSES, -1).copy()
        if len(inputs):
            for _ in range(work.local_steps):
                logits = inputs @ own.T
                logits -= logits.max(axis=1, keepdims=True)
                np.exp(logits, out=logits)
                logits /= logits.sum(axis=1, keepdims=True)
                own -= np.float32(work.local_rate / len(inputs)) * ((logits - truth).T @ inputs)
        return own.ravel()

    def accuracy(self, weights: Vector) -> float:
        """On the validation images, which no client holds."""
        logits = self._validation @ weights.reshape(CLASSES, -1).T
        return float((logits.argmax(axis=1) == self._labels).mean())


def accuracy_by_round(
    clients: Clients,
    work: Work,
    protection: Protection | None,
    *,
    rounds: int,
    randomness: Randomness,
) -> list[float]:
    """Train, and score after every round.

    With a protection it is the product's own way: clipping and noise by ``LatticeGaussian``, and
    a fixed denominator. Without, it is federated averaging over whoever was drawn.
    """
    weights = np.zeros(clients.parameters, np.float32)
    optimizer = ServerSGD(learning_rate=work.server_rate, momentum=work.momentum)
    scores = []
    for _ in range(rounds):
        cohort = draw_cohort(work.sampling, len(clients), randomness=randomness)
        if protection is None:
            total = np.zeros_like(weights)
            for client in cohort.tolist():
                total += clients.trained(client, weights, work) - weights
            update = total / np.float32(max(1, len(cohort)))
        else:
            noisy = LatticeGaussian().open(
                [weights],
                ClippingGeometry((protection.clipping_norm,), (0,)),
                noise_multiplier=protection.noise_multiplier,
                randomness=randomness,
            )
            for client in cohort.tolist():
                noisy.add([clients.trained(client, weights, work)], weight=1.0)
            [update] = noisy.release()
            update = update / np.float32(work.sampling_rate * len(clients))
        [weights] = optimizer.step([weights], [update])
        scores.append(clients.accuracy(weights))
    return scores
