"""Whether a noised number of persons can be that of the silos' data, beside the public N."""

import math

_BEYOND = 6.0  # deviations of the noise, less likely than 10⁻⁹


def implausible_count(count: float, deviation: float, *, persons: int, unit: str) -> str | None:
    """A sentence for the operator, if the count is far below N/2 or far above 2N; else None.

    It reads what was opened and paid for, and costs no privacy.

    Parameters
    ----------
    count : float
        The opened number of persons, with its noise.
    deviation : float
        The noise's standard deviation, in persons.
    persons : int
        N, the public number.
    unit : str
        "person" or "row".
    """
    opened = f"The silos' noised number of {unit}s is {count:,.0f} ± {deviation:,.0f}"
    if count < persons / 2 - _BEYOND * deviation:
        return (
            f"{opened}, far below persons = {persons:,}: silos add noise alone, because their data "
            "did not load, or persons is wrong. Ask the silos for their logs before you use this "
            "run's model or statistics."
        )
    if count > 2 * persons + _BEYOND * deviation:
        return (
            f"{opened}, far above persons = {persons:,}: a silo sent a false sum, or persons is "
            "wrong. Steps are longer than was meant; give about as many as there are."
        )
    return None


def summed_deviation(deviation: float, *, silos: int, honest: int) -> float:
    """Of the noise of all silos' shares, if that of the honest ones is ``deviation``."""
    return deviation * math.sqrt(silos / honest)
