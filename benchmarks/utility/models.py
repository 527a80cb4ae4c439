"""The models of the utility benchmark, as functions of one flat vector of parameters."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from flower_app.models.build import build_model

Vector = NDArray[np.float32]


class Model(Protocol):
    """A model with the clients' shards in place."""

    def first(self) -> Vector:
        """Return the first weights, float32 (d,)."""

    def gradients(self, weights: Vector, shards: NDArray[np.int64]) -> Vector:
        """Return the gradient of the mean loss over each of some shards, (len(shards), d)."""

    def accuracy(self, weights: Vector, inputs: Vector, labels: NDArray[np.int64]) -> float:
        """Return the share of inputs whose largest logit is their label's."""


class Linear:
    """Softmax regression without bias, as the application's ``hog-linear``.

    All shards' gradients are two matrix products.

    Parameters
    ----------
    inputs
        float32, (shards, images, features).
    labels
        int64, (shards, images).
    """

    def __init__(self, inputs: Vector, labels: NDArray[np.int64]) -> None:
        self._inputs = inputs
        self._truth = np.eye(10, dtype=np.float32)[labels]

    def first(self) -> Vector:
        """See ``Model.first``."""
        return np.zeros(self._inputs.shape[-1] * 10, np.float32)

    def gradients(self, weights: Vector, shards: NDArray[np.int64]) -> Vector:
        """See ``Model.gradients``."""
        everyone = len(shards) == len(self._inputs)
        inputs = self._inputs if everyone else self._inputs[shards]
        truth = self._truth if everyone else self._truth[shards]
        # One matrix product over all shards, not one a shard.
        logits = inputs.reshape(-1, inputs.shape[-1]) @ weights.reshape(10, -1).T
        logits -= logits.max(axis=1, keepdims=True)
        np.exp(logits, out=logits)
        logits /= logits.sum(axis=1, keepdims=True)
        residuals = logits.reshape(truth.shape) - truth
        gradients = residuals.transpose(0, 2, 1) @ inputs
        return np.asarray(gradients.reshape(len(shards), -1) / np.float32(inputs.shape[1]))

    def accuracy(self, weights: Vector, inputs: Vector, labels: NDArray[np.int64]) -> float:
        """See ``Model.accuracy``."""
        logits = inputs @ weights.reshape(10, -1).T
        return float((logits.argmax(axis=1) == labels).mean())


class Network:
    """A model of the application, its gradients taken by PyTorch, one shard after another.

    Parameters
    ----------
    name
        As ``flower_app.models.build.build_model`` takes it.
    inputs
        float32, (shards, images, ...).
    labels
        int64, (shards, images).
    """

    def __init__(self, name: str, inputs: Vector, labels: NDArray[np.int64]) -> None:
        self._model = build_model(name)
        self._inputs = torch.from_numpy(inputs)
        self._labels = torch.from_numpy(labels)

    def _set(self, weights: Vector) -> list[torch.nn.Parameter]:
        parameters = list(self._model.parameters())
        vector_to_parameters(torch.from_numpy(weights.copy()), parameters)
        return parameters

    def first(self) -> Vector:
        """See ``Model.first``."""
        vector: Any = parameters_to_vector(self._model.parameters()).detach().numpy()
        return np.array(vector, np.float32)

    def gradients(self, weights: Vector, shards: NDArray[np.int64]) -> Vector:
        """See ``Model.gradients``."""
        parameters = self._set(weights)
        result = np.empty((len(shards), len(weights)), np.float32)
        for shard, out in zip(shards, result, strict=True):
            loss = cross_entropy(self._model(self._inputs[shard]), self._labels[shard])
            gradient = torch.autograd.grad(loss, parameters)
            np.concatenate([g.numpy().ravel() for g in gradient], out=out)
        return result

    def accuracy(self, weights: Vector, inputs: Vector, labels: NDArray[np.int64]) -> float:
        """See ``Model.accuracy``."""
        self._set(weights)
        with torch.no_grad():
            parts = torch.from_numpy(inputs).split(1000)
            guesses = torch.cat([self._model(part).argmax(dim=1) for part in parts])
        return float((guesses.numpy() == labels).mean())
