"""Whether a noised number of persons can be that of the silos' data, beside the public N."""

import math

_BEYOND = 6.0  # deviations of the noise, less likely than 10⁻⁹
_SEEN = 4.0  # deviations above which an accuracy is worked out: noise alone is there once in 30,000


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


def implausible_test_count(
    count: float, deviation: float, *, persons: int, unit: str, expected: int | None = None
) -> str | None:
    """A sentence for the operator, if an evaluation's count shows no data, or other ones.

    The silos' test data are other ones than N counts, mostly fewer, so that N says nothing of how
    few there may be: without ``expected`` only a count within its noise, or far above 2N, is a
    reason to ask.

    Parameters
    ----------
    count, deviation, persons, unit
        As above; the count is of those for testing.
    expected : int, optional
        A public number of those for testing.
    """
    opened = f"The silos' noised number of {unit}s for testing is {count:,.0f} ± {deviation:,.0f}"
    if count <= _SEEN * deviation:
        return (
            f"{opened}, within its noise: the silos have too few for testing to be seen through "
            "it, or add noise alone, because their data did not load. Ask them for their logs, or "
            "give evaluations less noise."
        )
    if expected is not None and count < expected / 2 - _BEYOND * deviation:
        return (
            f"{opened}, far below evaluation.persons = {expected:,}: some silos' test data did not "
            "load, or evaluation.persons is wrong. Ask the silos for their logs."
        )
    name, most = ("persons", persons) if expected is None else ("evaluation.persons", expected)
    if count > 2 * most + _BEYOND * deviation:
        return (
            f"{opened}, far above {name} = {most:,}: a silo sent a false sum, or {name} is wrong. "
            "The accuracy may be wrong too."
        )
    return None


def summed_deviation(deviation: float, *, silos: int, honest: int) -> float:
    """Of the noise of all silos' shares, if that of the honest ones is ``deviation``."""
    return deviation * math.sqrt(silos / honest)
