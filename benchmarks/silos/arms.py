"""The arms: one run of each, from the settings to a trained model."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from flower_app.data import load_dataset, load_inputs
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from privacy.accounting import Budget, Poisson, calibrate_noise_multiplier
from privacy.mechanisms import SeededRandomness, SiloGaussian
from privacy.secure_aggregation import FewSilos
from privacy.training import Persons, SiloStep, silo_sum, trained_parameters
from strategies import ServerSGD

DELTA, RECORDS = 1e-5, 50_000
MOMENTUM = 0.9


@dataclass(frozen=True)
class Setting:
    """What is chosen on validation images.

    Attributes
    ----------
    steps : int
        T.
    rate : float
        p, with which a person is drawn for a step.
    clipping_norm : float
        S, of one person's gradient. The run without privacy does not clip.
    learning_rate : float
        Of SGD with momentum 0.9, on the sum over p·N.
    """

    steps: int
    rate: float
    clipping_norm: float
    learning_rate: float


@dataclass(frozen=True)
class Data:
    """One model's inputs and labels."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def data_of(model: str) -> Data:
    """MNIST as a model of the app sees it."""
    dataset = load_dataset("mnist")
    inputs = load_inputs(dataset, MODELS[model].kind)

    def pair(values: NDArray[np.float32], labels: NDArray[np.generic]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(values), torch.from_numpy(labels.astype(np.int64))

    return Data(
        pair(inputs.train(np.arange(len(dataset.train))), dataset.train.labels),
        pair(inputs.validation(), dataset.validation.labels),
        pair(inputs.test(), dataset.test.labels),
    )


def accuracy(model: nn.Module, examples: tuple[Tensor, Tensor]) -> float:
    """Percent."""
    inputs, labels = examples
    with torch.no_grad():
        classes = torch.cat([model(part).argmax(1) for part in inputs.split(2000)])
    return 100 * float((classes == labels).double().mean())


def distributed(
    name: str,
    data: Data,
    setting: Setting,
    *,
    silos: int,
    epsilon: float,
    seed: int,
    parts: Sequence[Tensor] = (),
) -> nn.Module:
    """Ours: the noise is shared.

    With ``parts``, the rows of each silo, there is a sum for each; without them one over everybody,
    beside which the other silos' shares are drawn as one of their summed variance.
    """
    few = FewSilos(silos)
    mechanism = SiloGaussian(few.min_silos, few.colluders)
    model, randomness = _initial(name, seed), SeededRandomness(seed)
    step = silo_step(model, mechanism, setting, epsilon)
    inputs, labels = data.train
    divided = [Persons((inputs[part], labels[part])) for part in parts] or [Persons(data.train)]
    others = silos - len(divided)

    def noisy_sum() -> NDArray[np.float64]:
        total = np.sum(
            [
                silo_sum(
                    model,
                    persons,
                    loss=nn.functional.cross_entropy,
                    step=step,
                    ledger=None,
                    physical_batch_size=32 if parts else 256,
                    randomness=randomness,
                )
                for persons in divided
            ],
            axis=0,
        )
        if others:
            z = step.noise_multiplier * math.sqrt(others)
            mechanism.add_share(total, noise_multiplier=z, randomness=randomness)
        return mechanism.decode(total, clipping_norm=setting.clipping_norm)

    _descend(model, setting, len(labels), noisy_sum)
    return model


def skewed_parts(labels: Tensor, silos: int, *, seed: int) -> list[Tensor]:
    """Rows of each silo: sizes are log-normal (σ = 1), and each has few labels.

    The rows, sorted by label, are cut at the silos' sizes.
    """
    sizes = np.random.default_rng(seed).lognormal(sigma=1.0, size=silos)
    ends = np.round(np.cumsum(sizes) / sizes.sum() * len(labels)).astype(int)
    return list(torch.tensor_split(labels.argsort(stable=True), ends[:-1].tolist()))


def silo_step(
    model: nn.Module, mechanism: SiloGaussian, setting: Setting, epsilon: float
) -> SiloStep:
    """With just the noise that ε allows."""
    dimension = sum(p.numel() for p in trained_parameters(model).values())
    sampling = Poisson(setting.rate)
    z = calibrate_noise_multiplier(
        sampling=sampling,
        rounds=setting.steps,
        budget=Budget(epsilon, DELTA),
        release=lambda z: mechanism.account(
            parameters=dimension, noise_multiplier=z, sampling=sampling
        ),
    )
    return SiloStep(
        mechanism=mechanism,
        clipping_norm=setting.clipping_norm,
        noise_multiplier=z,
        sampling_rate=setting.rate,
        persons=RECORDS,
    )


def _descend(
    model: nn.Module,
    setting: Setting,
    persons: int,
    noisy_sum: Callable[[], NDArray[np.float64]],
) -> None:
    optimizer = ServerSGD(learning_rate=setting.learning_rate, momentum=MOMENTUM)
    parameters = list(trained_parameters(model).values())
    ends = np.cumsum([p.numel() for p in parameters])[:-1]
    for _ in range(setting.steps):
        moves = np.split(noisy_sum() / -(setting.rate * persons), ends)
        arrays = [p.detach().numpy() for p in parameters]
        update = [move.reshape(a.shape) for move, a in zip(moves, arrays, strict=True)]
        stepped = optimizer.step(arrays, update)
        with torch.no_grad():
            for parameter, array in zip(parameters, stepped, strict=True):
                parameter.copy_(torch.from_numpy(array))


class _Pooled(TensorDataset):
    """Takes a batch's rows at once, and not one by one, which would take most of the time."""

    def __getitems__(self, rows: list[int]) -> list[Tensor]:
        return [each[rows] for each in self.tensors]


def noise_of(setting: Setting, epsilon: float) -> float:
    """The noise multiplier of Opacus's arms: just what ε allows."""
    return calibrate_noise_multiplier(
        sampling=Poisson(setting.rate), rounds=setting.steps, budget=Budget(epsilon, DELTA)
    )


def opacus(
    name: str, data: Data, setting: Setting, *, epsilon: float, seed: int, silos: int = 1
) -> tuple[nn.Module, float]:
    """Opacus on the pooled data: a curator, or silos that each add all of the noise.

    The sum of K silos' sums is the sum over everybody whom they drew, with √K times the noise.

    Returns
    -------
    tuple of nn.Module and float
        The model, and the ε of a silo's sums by Opacus's own accountant.
    """
    model = _initial(name, seed)
    z = noise_of(setting, epsilon)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate, momentum=MOMENTUM)
    coins = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on hooks, and, once a run, on the seeded generator
        engine = PrivacyEngine(accountant="prv")
        private, private_optimizer, criterion, loader = engine.make_private(
            module=model,
            optimizer=optimizer,
            criterion=nn.CrossEntropyLoss(),
            data_loader=DataLoader(
                _Pooled(*data.train),
                batch_size=round(setting.rate * len(data.train[0])),
                collate_fn=list,
                generator=coins,
            ),
            noise_multiplier=z * math.sqrt(silos),
            max_grad_norm=setting.clipping_norm,
            noise_generator=coins,
            grad_sample_mode="ghost",
        )
        left = setting.steps
        while left:
            for inputs, labels in loader:
                private_optimizer.zero_grad()
                criterion(private(inputs), labels).backward()
                private_optimizer.step()
                left -= 1
                if not left:
                    break
    alone = PRVAccountant()
    alone.history = [(z, setting.rate, setting.steps)]
    return model, float(alone.get_epsilon(DELTA))


def without_privacy(name: str, data: Data, setting: Setting, *, seed: int) -> nn.Module:
    """Plain SGD on Poisson batches."""
    model = _initial(name, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.learning_rate, momentum=MOMENTUM)
    inputs, labels = data.train
    coins = torch.Generator().manual_seed(seed)
    for _ in range(setting.steps):
        drawn = torch.rand(len(labels), generator=coins) < setting.rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[drawn]), labels[drawn]).backward()
        optimizer.step()
        if not all(math.isfinite(float(p.detach().sum())) for p in model.parameters()):
            break
    return model


def _initial(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name)
