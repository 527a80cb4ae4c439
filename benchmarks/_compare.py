"""Whether figures measured anew agree with the committed ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SLACK = 0.1
"""By how much of itself each end of a spread is widened; all there is for a single measurement."""

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A figure whose spread does not meet the committed one."""

    case: str
    metric: str
    committed: Interval
    measured: Interval


@dataclass(frozen=True)
class Comparison:
    """A benchmark's figures beside its committed ones."""

    benchmark: str
    compared: int
    differences: tuple[Difference, ...]
    only_once: tuple[str, ...]
    """Figures that only one of the two has."""


def compare(committed: Mapping[str, Any], measured: Mapping[str, Any]) -> Comparison:
    """Compare two documents of one benchmark.

    A figure with a peer is compared by its ratio to the peer, which depends least on the machine;
    a figure without by itself. Two figures agree if their spreads (lowest to highest of the
    repetitions), each widened by a tenth, meet.

    Parameters
    ----------
    committed, measured : mapping
        As ``python -m benchmarks NAME --json FILE`` writes them.

    Raises
    ------
    ValueError
        If they are of two benchmarks, if one is of a quick run and the other is not (they hold
        other cases), or if a row is damaged.
    """
    name = committed["benchmark"]
    if measured["benchmark"] != name:
        raise ValueError(f"{name}: these figures are of {measured['benchmark']}")
    if committed["quick"] != measured["quick"]:
        raise ValueError(
            f"{name}: the committed figures are of a {_form(committed)} run, these of a "
            f"{_form(measured)} one"
        )
    differences = []
    try:
        before, now = _by_key(committed), _by_key(measured)
        both = [key for key in before if key in now]
        for key in both:
            old, new = _interval(before[key]), _interval(now[key])
            if not (old[0] <= new[1] and new[0] <= old[1]):  # NaN meets nothing
                differences.append(Difference(key[0], key[1], old, new))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{name}: a row is damaged: {type(error).__name__}: {error}") from error
    odd = [f"{case}: {metric}" for case, metric, *_ in before.keys() ^ now.keys()]
    return Comparison(name, len(both), tuple(differences), tuple(sorted(odd)))


def _form(document: Mapping[str, Any]) -> str:
    return "quick" if document["quick"] else "full"


def _by_key(document: Mapping[str, Any]) -> dict[tuple[str, str, str, str], Mapping[str, Any]]:
    rows = document["rows"]
    return {(r["case"], r["metric"], r["unit"], r["peer_name"] or ""): r for r in rows}


def _interval(row: Mapping[str, Any]) -> Interval:
    """The figure's spread, or that of its ratio, widened."""
    low, high = row["ours_spread"]["low"], row["ours_spread"]["high"]
    peer = row["peer_spread"]
    if peer is not None and low > 0 and peer["low"] > 0:
        larger_is_better = (row["ours"] > row["peer"]) == (row["ratio"] > 1)
        if larger_is_better:
            low, high = low / peer["high"], high / peer["low"]
        else:
            low, high = peer["low"] / high, peer["high"] / low
    return low - SLACK * abs(low), high + SLACK * abs(high)
