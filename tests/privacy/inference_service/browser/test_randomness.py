"""Keys and errors in the browser have the distributions that the security estimates are for."""

from typing import Any

import numpy as np
from scipy import stats

COUNT = 1_500_000
COUNTS = """async ([name, count, low, high]) => {
    const random = await import("/browser/owner/randomness.js");
    const counts = new Array(high - low + 1).fill(0);
    const halves = [0, 0];
    const drawn = random[name](count);
    drawn.forEach((value, n) => {
        counts[value - low]++;
        halves[Number(n >= count / 2)] += Number(value === 0);
    });
    let pairs = 0;
    for (let n = 1; n < count; n++) pairs += drawn[n] * drawn[n - 1];
    return [counts, halves, pairs / count];
}"""


def check(modules: Any, name: str, probabilities: np.ndarray, variance: float) -> None:
    most = len(probabilities) // 2
    counts, halves, product = modules.evaluate(COUNTS, [name, COUNT, -most, most])
    assert sum(counts) == COUNT
    expected = COUNT * probabilities
    usual = expected >= 10  # of the rest there is one class
    seen = [*np.array(counts)[usual], np.array(counts)[~usual].sum()]
    wanted = [*expected[usual], expected[~usual].sum()]
    if wanted[-1] == 0:
        seen, wanted = seen[:-1], wanted[:-1]
    # False alarms: about 1e-6 each.
    assert stats.chisquare(seen, wanted).pvalue > 1e-6
    zero = float(probabilities[most])
    spread = np.sqrt(COUNT / 2 * zero * (1 - zero))
    assert all(abs(half - COUNT / 2 * zero) < 5 * spread for half in halves)
    assert abs(product) < 5 * variance / np.sqrt(COUNT)  # neighbours are independent


def test_errors_are_the_difference_of_two_sums_of_21_fair_bits(modules: Any) -> None:
    check(modules, "centredBinomial", stats.binom.pmf(np.arange(43), 42, 0.5), 21 / 2)


def test_secrets_are_uniform_over_three_values(modules: Any) -> None:
    check(modules, "ternary", np.full(3, 1 / 3), 2 / 3)
