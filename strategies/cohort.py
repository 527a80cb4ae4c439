"""Who takes part in a round: drawn over the whole population, before anyone looks who is there."""

import numpy as np
import numpy.typing as npt

from privacy.accounting import FixedSize, Full, Poisson, Sampling
from privacy.mechanisms import Randomness


def draw_cohort(
    sampling: Sampling, population: int, *, randomness: Randomness
) -> npt.NDArray[np.intp]:
    """Draw a cohort.

    Parameters
    ----------
    sampling : Poisson, FixedSize or Full
        The rule, constant for a run.
    population : int
        N.
    randomness : Randomness
        Where the choice comes from. Amplification by sampling holds only against those who
        cannot foresee it.

    Returns
    -------
    ndarray of int
        Indices into the population, ascending. Under Poisson sampling it may be empty.
    """
    if isinstance(sampling, Poisson):
        return np.flatnonzero(randomness.bernoulli(sampling.rate, population))
    if isinstance(sampling, Full):
        return np.arange(population)
    keys = randomness.uint64(population)
    while len(np.unique(keys)) < population:  # ties would favour the earlier client
        keys = randomness.uint64(population)
    return np.sort(np.argsort(keys)[: sampling.cohort])


def expected_fraction(sampling: Sampling, population: int) -> float:
    """The public fraction of the population that a round is expected to draw.

    Raises
    ------
    ValueError
        If a fixed-size rule was made for another population.
    """
    if isinstance(sampling, Poisson):
        return float(sampling.rate)
    if isinstance(sampling, FixedSize):
        if sampling.population != population:
            raise ValueError(
                f"sampling was made for a population of {sampling.population}, "
                f"but the population is {population}"
            )
        return sampling.cohort / population
    return 1.0
