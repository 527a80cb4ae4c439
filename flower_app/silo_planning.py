"""Costs of a run over a few silos (distributed DP-SGD), before any training."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flower_app.measurements import AccuracyRange, MeasuredSilos, silo_sizes
from flower_app.models.specs import MODELS
from privacy.accounting import Budget, Event, Poisson, calibrate_noise_multiplier
from privacy.mechanisms import SiloGaussian
from privacy.secure_aggregation import FewSilos

SAMPLING_RATES = (0.01, 0.02, 0.05, 0.1)
STEPS = 250


@dataclass(frozen=True)
class SiloQuestion:
    """A budget for each person, the silos, N over all of them, and a model.

    A model of the user's own has ``parameters``.
    """

    budget: Budget
    silos: FewSilos
    persons: int
    model: str = "hog-linear"
    dataset: str = "mnist"
    parameters: int | None = None


@dataclass(frozen=True)
class SiloOption:
    """One way to spend the budget: p, T, and z, which is None where no noise fits.

    Attributes
    ----------
    batch : float
        Expected persons a step, over all silos: p·N.
    noise_share : float or None
        The noise on each parameter of a step's average, as a share of the clipping norm, if all
        silos take part.
    curator_share : float or None
        The same of one trusted curator over all persons: z / (p·N).
    own_noise_share : float or None
        The same where each silo adds all of the noise alone: √K times the curator's.
    step_bytes : float
        What a step moves to and from each silo: the model in single precision, and the masked sum.
    """

    sampling_rate: float
    steps: int
    noise_multiplier: float | None
    batch: float
    noise_share: float | None
    curator_share: float | None
    own_noise_share: float | None
    step_bytes: float | None


def silo_options(
    question: SiloQuestion,
    *,
    rates: Sequence[float],
    steps: Sequence[int],
    spent: Sequence[Event] = (),
) -> Iterator[SiloOption]:
    """Work out every combination of sampling rate and number of steps, one after another.

    ``spent`` is what the silos' ledger has, from the same budget.
    """
    silos = question.silos
    parameters = question.parameters or MODELS[question.model].parameters
    mechanism = SiloGaussian(silos.min_silos, silos.colluders)
    for count in steps:
        for rate in rates:
            batch = rate * question.persons
            z = _noise(question.budget, mechanism, parameters, rate, count, spent)
            if z is None:
                yield SiloOption(rate, count, None, batch, None, None, None, None)
                continue
            curator = z / batch
            yield SiloOption(
                sampling_rate=rate,
                steps=count,
                noise_multiplier=z,
                batch=batch,
                noise_share=curator * math.sqrt(silos.silos / mechanism.honest),
                curator_share=curator,
                own_noise_share=curator * math.sqrt(silos.silos),
                step_bytes=_step_bytes(question, mechanism, parameters, rate, z),
            )


def expected_accuracy(question: SiloQuestion, table: Sequence[MeasuredSilos]) -> AccuracyRange:
    """Bound the accuracy by measured runs."""
    silos, budget = question.silos, question.budget
    honest = SiloGaussian(silos.min_silos, silos.colluders).honest
    sizes = silo_sizes(question.persons, budget.epsilon, budget.delta, honest / silos.silos)
    return AccuracyRange.of(
        sizes, (m for m in table if (m.dataset, m.model) == (question.dataset, question.model))
    )


def _noise(
    budget: Budget,
    mechanism: SiloGaussian,
    parameters: int,
    rate: float,
    steps: int,
    spent: Sequence[Event],
) -> float | None:
    sampling = Poisson(rate)

    def release(z: float) -> Event:
        return mechanism.account(parameters=parameters, noise_multiplier=z, sampling=sampling)

    try:
        return calibrate_noise_multiplier(
            sampling=sampling, rounds=steps, budget=budget, release=release, spent=spent
        )
    except ValueError:
        return None


def _step_bytes(
    question: SiloQuestion, mechanism: SiloGaussian, parameters: int, rate: float, z: float
) -> float:
    bound = mechanism.bound(
        parameters=parameters,
        noise_multiplier=z,
        persons=question.persons,
        sampling=Poisson(rate),
    )
    bits = (2 * question.silos.silos * bound).bit_length()
    return parameters * (4 + bits / 8)
