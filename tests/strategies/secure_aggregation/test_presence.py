"""What one client's presence may cost is judged before a run, and what is said to fit does."""

import ast
import re
from dataclasses import replace
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from privacy.accounting import AdditiveDelta, GaussianRelease, Poisson
from strategies import SecureAggregation


@settings(max_examples=15, deadline=None)
@given(
    population=st.integers(4, 90),
    rate=st.sampled_from([0.3, 0.5, 1.0]),
    rounds=st.sampled_from([1, 2, 30]),
    min_clients=st.integers(3, 30),
    max_dropout_fraction=st.sampled_from([0.0, 0.2, 0.5]),
    noise=st.sampled_from(["central", "distributed"]),
    paid=st.sampled_from([0.0, 6e-6, 2e-5]),
)
@example(
    population=90,
    rate=1.0,
    rounds=1,
    min_clients=3,
    max_dropout_fraction=0.5,
    noise="central",
    paid=2e-5,
)  # it would fit, were it not for what is paid
def test_settings_that_an_error_proposes_for_so_few_clients_fit(
    population: int,
    rate: float,
    rounds: int,
    min_clients: int,
    max_dropout_fraction: float,
    noise: Any,
    paid: float,
) -> None:
    """Each remedy is taken at its word: the same check lets it pass."""
    min_clients += 14 * (noise == "distributed")  # more than collude of the largest cohort
    asked = SecureAggregation(
        min_clients=min_clients,
        max_dropout_fraction=max_dropout_fraction,
        noise_placement=noise,
        max_clients=130,
    )
    earlier = [AdditiveDelta(paid), GaussianRelease(2.0, Poisson(rate))]
    try:
        asked.check_presence(population, Poisson(rate), rounds=rounds, delta=1e-5, paid=earlier)
    except ValueError as error:
        said = str(error)
    else:
        charged = asked.presence(population, Poisson(rate)).delta
        assert rounds * charged + paid < 1e-5
        return
    assert "presence can decide" in said
    _, fits, remedies = said.partition("What fits: ")
    assert fits or said.endswith("draw more clients")
    for remedy in remedies.split("; ") if fits else ():
        changed: dict[str, Any] = {
            name: ast.literal_eval(value)
            for name, value in re.findall(r"secure_aggregation\.(\w+) = ([\d.e-]+)", remedy)
        }
        drawn = re.search(r"a sampling rate of ([\d.]+)", remedy)
        assert remedy.count(" with ") == len(changed) + bool(drawn) - 1 or not changed
        fewer = re.search(r"^(\d+) rounds?$", remedy)
        assert changed or drawn or fewer, remedy
        replace(asked, **changed).check_presence(
            population,
            Poisson(float(drawn[1])) if drawn else Poisson(rate),
            rounds=int(fewer[1]) if fewer else rounds,
            delta=1e-5,
            paid=earlier,
        )
