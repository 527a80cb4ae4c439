"""Polynomials fitted to activations on the values that these meet.

Weighted least squares: the weight is how often a value occurs, with a little everywhere in the
range, so that the polynomial is good where the network lives and not wild where it seldom is. That
the coefficients should follow the distribution of the inputs is in Tong et al. 2024 ("Accurate
low-degree polynomial approximation of non-polynomial operators", coefficient tuning).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.polynomial import Chebyshev
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.compiler import significant
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError
from privacy.inference.replacement.places import Place, Separated

_BINS = 2048
_EVERYWHERE = 0.05
"""Share of the weight that lies evenly over the range."""
_TAIL = 1e-4
"""Share of values on either side that the range leaves out."""
_VALUES = 1 << 20
"""Of one place, looked at."""
_STEPS = (2, 4, 7)
"""The best degree for each depth."""
_STRAIGHT = 0.9
"""Share of a line's error from which on a parabola is no better than the line."""


@dataclass(frozen=True, eq=False)
class Values:
    """How often an activation meets which values.

    Attributes
    ----------
    low, high : float
        The range: all values but one in 10,000 on either side.
    weights : array of float64, shape (2048,)
        Of equal parts of the range; they sum to one.
    function : nn.Module
        The activation.
    """

    low: float
    high: float
    weights: NDArray[np.float64]
    function: nn.Module

    @property
    def centres(self) -> NDArray[np.float64]:
        """The middles of the parts."""
        edges = np.linspace(self.low, self.high, _BINS + 1)
        return np.asarray((edges[1:] + edges[:-1]) / 2)


@dataclass(frozen=True, eq=False)
class Fit:
    """A polynomial and its distance from the activation.

    Attributes
    ----------
    coefficients : tuple of float
        Lowest power first.
    largest, usual : float
        Largest distance in the range; root of the weighted mean square.
    """

    coefficients: tuple[float, ...]
    largest: float
    usual: float

    @property
    def degree(self) -> int:
        """Of the polynomial."""
        return len(self.coefficients) - 1


def observed(model: nn.Module, places: Sequence[Place], batches: Sequence[Tensor]) -> list[Values]:
    """What the activations at some places meet when the model runs on batches of inputs."""
    seen: dict[str, list[NDArray[np.float64]]] = {place.name: [] for place in places}
    generator = np.random.default_rng(0)
    most = max(1, _VALUES // len(batches))

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].detach().flatten().double().cpu().numpy()
            if len(values) > most:
                values = values[generator.integers(0, len(values), most)]
            seen[name].append(values)

        return hook

    hooks = [
        model.get_submodule(place.name).register_forward_pre_hook(keep(place.name))
        for place in places
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        _values(np.concatenate(seen[place.name]), model.get_submodule(place.name), place)
        for place in places
    ]


def _values(values: NDArray[np.float64], function: nn.Module, place: Place) -> Values:
    if not bool(np.isfinite(values).all()):
        raise UnsupportedLayerError(
            f"layer {place.label} meets values that are not finite; the polynomials before it "
            "leave their ranges: give a lower degree, or load other weights"
        )
    low, high = (float(end) for end in np.quantile(values, (_TAIL, 1 - _TAIL)))
    if not high - low > 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 1, high + 1  # all values alike
    counts, _ = np.histogram(values.clip(low, high), _BINS, (low, high))
    weights = (1 - _EVERYWHERE) * counts / counts.sum() + _EVERYWHERE / _BINS
    return Values(low, high, weights, function)


def fitted(values: Values, degree: int, place: Place) -> Fit:
    """The polynomial of at most ``degree`` closest to an activation where its values lie.

    Powers that contribute nothing are left out.

    Raises
    ------
    UnsupportedLayerError
        If the activation is constant over its range.
    """
    x = values.centres
    target = _evaluated(values, x)
    roots = np.sqrt(values.weights)
    centre, half = (values.low + values.high) / 2, (values.high - values.low) / 2
    basis = np.polynomial.chebyshev.chebvander((x - centre) / half, degree)
    parts, *_ = np.linalg.lstsq(basis * roots[:, None], target * roots, rcond=None)
    series = Chebyshev(parts, domain=[values.low, values.high])
    coefficients = significant(
        series.convert(kind=np.polynomial.Polynomial).coef, max(abs(values.low), abs(values.high))
    )
    if len(coefficients) < 2:
        raise UnsupportedLayerError(
            f"layer {place.label} gives one number for every value that it meets, "
            f"{values.low:.3g} to {values.high:.3g}: it is dead; leave it out, or train again"
        )
    ends = np.linspace(values.low, values.high, 2 * _BINS + 1)
    largest = np.abs(
        np.polynomial.polynomial.polyval(ends, coefficients) - _evaluated(values, ends)
    )
    distances = np.polynomial.polynomial.polyval(x, coefficients) - target
    usual = float(np.sqrt(values.weights @ distances**2))
    return Fit(tuple(float(each) for each in coefficients), float(largest.max()), usual)


def chosen_degree(values: Values, place: Place) -> int:
    """2, or 3 where a parabola is no better than a straight line, as for tanh around zero."""
    line, parabola = fitted(values, 1, place), fitted(values, 2, place)
    straight = line.usual <= 1e-6 * float(np.abs(_evaluated(values, values.centres)).max())
    return 3 if not straight and parabola.usual > _STRAIGHT * line.usual else 2


def degrees_within(separated: Separated, values: list[Values], levels: int) -> list[int]:
    """Degrees that spend a budget of levels where polynomials are farthest from activations.

    Every activation begins with degree 2; the one whose fit is worst, for the size of what it
    gives, goes to the best degree of the next depth while the longest path allows it.

    Raises
    ------
    CannotPlanError
        If the budget does not hold degree 2 everywhere.
    """
    names = [place.name for place in separated.places]
    degrees = dict.fromkeys(names, _STEPS[0])

    def spent(tried: dict[str, int]) -> int:
        return separated.levels({name: DEPTH[degree] for name, degree in tried.items()})

    if spent(degrees) > levels:
        raise CannotPlanError(
            f"with degree 2 everywhere the model needs {spent(degrees)} levels, levels is "
            f"{levels}; give levels={spent(degrees)}, or a model with fewer activations in a row"
        )
    sizes = {
        place.name: float(np.sqrt(each.weights @ _evaluated(each, each.centres) ** 2)) or 1.0
        for place, each in zip(separated.places, values, strict=True)
    }

    def error(index: int) -> float:
        place = separated.places[index]
        return fitted(values[index], degrees[place.name], place).usual / sizes[place.name]

    while True:
        for index in sorted(range(len(names)), key=error, reverse=True):
            degree = degrees[names[index]]
            larger = next((each for each in _STEPS if each > degree), None)
            if larger is not None and spent(degrees | {names[index]: larger}) <= levels:
                degrees[names[index]] = larger
                break
        else:
            return [degrees[name] for name in names]


def _evaluated(values: Values, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The activation itself, in double precision."""
    function = copy.deepcopy(values.function).cpu().double()
    with torch.no_grad():
        return np.asarray(function(torch.from_numpy(x)).numpy())
