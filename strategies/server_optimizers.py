"""Server optimizers, which step the model by a noisy average: post-processing, at no privacy.

Names and defaults follow Reddi et al. 2021 ("Adaptive federated optimization", Algorithm 2).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from privacy import arguments

Vector = npt.NDArray[Any]


class ServerOptimizer(Protocol):
    """Steps the global model along the noisy average of the clients' updates.

    Where an optimizer has an attribute ``iterate_average`` above zero, the model that is evaluated
    and returned is an exponential average of the models with this decay, in [0, 1).

    A resumed run must have the same settings: a dataclass's fields, or public numbers and texts of
    another class, as they are when the strategy is made.
    """

    def step(self, arrays: Sequence[Vector], update: Sequence[Vector]) -> list[Vector]:
        """Return the next model.

        Parameters
        ----------
        arrays : sequence of ndarray
            The model, floating-point arrays; not changed.
        update : sequence of ndarray
            The noisy average of (client's model - this model), the same shapes; may be used up.
        """

    def state_dict(self) -> dict[str, Vector]:
        """Everything the next step depends on."""

    def load_state_dict(self, state: dict[str, Vector]) -> None:
        """Take up where ``state_dict`` was taken."""


def _pack(**slots: list[Vector]) -> dict[str, Vector]:
    return {f"{name}.{i}": a for name, arrays in slots.items() for i, a in enumerate(arrays)}


def _unpack(state: dict[str, Vector], name: str) -> list[Vector]:
    keys = sorted((int(key.rpartition(".")[2]), key) for key in state if key.startswith(f"{name}."))
    return [np.array(state[key]) for _, key in keys]


@dataclass
class ServerSGD:
    """Averaging with a server learning rate and, if wanted, heavy-ball momentum.

    With ``learning_rate = 1`` and no momentum it is federated averaging. ``iterate_average`` is
    the decay of an exponential average of the models, as in :class:`ServerOptimizer`.
    """

    learning_rate: float = 1.0
    momentum: float = 0.0
    iterate_average: float = field(default=0.0, kw_only=True)
    _velocity: list[Vector] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        arguments.convert(self, "learning_rate", arguments.number, above=0)
        arguments.convert(self, "momentum", arguments.number, least=0, below=1)
        arguments.convert(self, "iterate_average", arguments.number, least=0, below=1)

    def step(self, arrays: Sequence[Vector], update: Sequence[Vector]) -> list[Vector]:
        """X + η v, where v = momentum v + update."""
        if self.momentum:
            if not self._velocity:
                self._velocity = [np.zeros_like(u) for u in update]
            for velocity, u in zip(self._velocity, update, strict=True):
                velocity *= self.momentum
                velocity += u
            update = [v.copy() for v in self._velocity]
        stepped = []
        for a, u in zip(arrays, update, strict=True):
            if self.learning_rate != 1:
                u *= self.learning_rate
            u += a
            stepped.append(u.astype(a.dtype, copy=False))
        return stepped

    def state_dict(self) -> dict[str, Vector]:
        """The velocity."""
        return _pack(velocity=self._velocity)

    def load_state_dict(self, state: dict[str, Vector]) -> None:
        """Restore the velocity."""
        self._velocity = _unpack(state, "velocity")


@dataclass
class _Adaptive:
    learning_rate: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    iterate_average: float = field(default=0.0, kw_only=True)
    _first: list[Vector] = field(default_factory=list, init=False, repr=False)
    _second: list[Vector] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        arguments.convert(self, "learning_rate", arguments.number, above=0)
        arguments.convert(self, "tau", arguments.number, above=0)
        arguments.convert(self, "beta1", arguments.number, least=0, below=1)
        arguments.convert(self, "beta2", arguments.number, least=0, below=1)
        arguments.convert(self, "iterate_average", arguments.number, least=0, below=1)

    def _moved(self, second: Vector, squared: Vector) -> Vector:
        raise NotImplementedError

    def step(self, arrays: Sequence[Vector], update: Sequence[Vector]) -> list[Vector]:
        """X + η m / (sqrt(v) + τ)."""
        if not self._first:
            self._first = [np.zeros_like(u) for u in update]
            self._second = [np.full_like(u, self.tau**2) for u in update]
        stepped = []
        for i, (a, u) in enumerate(zip(arrays, update, strict=True)):
            self._first[i] = self.beta1 * self._first[i] + (1 - self.beta1) * u
            self._second[i] = self._moved(self._second[i], u * u)
            direction = self._first[i] / (np.sqrt(self._second[i]) + self.tau)
            stepped.append((a + self.learning_rate * direction).astype(a.dtype, copy=False))
        return stepped

    def state_dict(self) -> dict[str, Vector]:
        """Both moments."""
        return _pack(first=self._first, second=self._second)

    def load_state_dict(self, state: dict[str, Vector]) -> None:
        """Restore both moments."""
        self._first, self._second = _unpack(state, "first"), _unpack(state, "second")


@dataclass
class ServerAdam(_Adaptive):
    """FedAdam: v = β₂ v + (1 - β₂) u²."""

    def _moved(self, second: Vector, squared: Vector) -> Vector:
        moved: Vector = self.beta2 * second + (1 - self.beta2) * squared
        return moved


@dataclass
class ServerYogi(_Adaptive):
    """FedYogi: v = v - (1 - β₂) u² sign(v - u²), which forgets large values more slowly."""

    def _moved(self, second: Vector, squared: Vector) -> Vector:
        moved: Vector = second - (1 - self.beta2) * squared * np.sign(second - squared)
        return moved
