"""What an attack on the running strategy shows of ε, beside what its ledger claims.

Each audit is one federated run of ``DPFedAvg`` with 400 canary clients, each put in or left out by
a fair coin (Steinke, Nasr and Jagielski 2023, arXiv 2305.08846). A lower bound above the ledger's ε
would contradict it; at 95 % confidence that happens by chance in at most one audit of twenty.

How small a fault such an audit sees is measured on the sums alone: each canary's sum is its coin
and Gaussian noise, of which there is less than claimed; or there is such noise alone; or cohorts
are drawn oftener than claimed.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from matplotlib.figure import Figure

from benchmarks import _pictures
from benchmarks.harness import Log, Row, Spread
from privacy.accounting import GaussianRelease, calibrate_noise_multiplier
from privacy.audit import (
    PrivacyCurve,
    curve_p_value,
    little_noise_p_value,
    poisson_cohort_p_value,
)
from privacy.audit.experiment import count_correct, default_guesses
from privacy.mechanisms import SystemRandomness, add_gaussian
from strategies import Budget, DPFedAvg, Full, Poisson, audit_strategy

CLIENTS, CANARIES, PARAMETERS, ROUNDS = 20, 400, 2000, 4
DELTA, CONFIDENCE = 1e-5, 0.95
CLAIMS = (1.0, 3.0, 8.0)
SAMPLINGS: Mapping[str, Full | Poisson] = {"everyone": Full(), "Poisson 0.5": Poisson(0.5)}


def run(*, quick: bool, log: Log) -> list[Row]:
    logging.getLogger("flwr").setLevel(logging.ERROR)  # not a line a round of 240 runs
    rows = []
    for claim in CLAIMS:
        for name, sampling in SAMPLINGS.items():
            bounds, gaussian, contradicted = [], [], 0
            for _ in range(5 if quick else 20):
                result = audit_strategy(
                    partial(make_strategy, claim, sampling),
                    ordinary_clients(),
                    ArrayRecord([np.zeros(PARAMETERS, np.float32)]),
                    clients=CLIENTS,
                    canaries=CANARIES,
                    num_rounds=ROUNDS,
                    confidence=CONFIDENCE,
                )
                bounds.append(result.epsilon_lower)
                gaussian.append(result.gaussian_epsilon_lower)
                contradicted += not result.passed
            log(
                f"ε = {claim:g}, {name}: lower bounds {min(bounds):.2f} to {max(bounds):.2f}, if "
                f"the noise is Gaussian {min(gaussian):.2f} to {max(gaussian):.2f}"
            )
            count = f"audits of {len(bounds)} that contradict the ledger, by chance at most 1 in 20"
            case = f"ledger ε={claim:g}, {name}, {CANARIES} canaries, {ROUNDS} rounds"
            whatever = {"claimed": claim, "sampling": name, "bounds": bounds}
            known = {"claimed": claim, "sampling": name, "gaussian": gaussian}
            metric = "lower bound on ε at 95 %"
            rows += [
                Row(case, metric, "ε", Spread.of(bounds), details=whatever),
                Row(case, f"{metric}, if Gaussian", "ε", Spread.of(gaussian), details=known),
                Row(
                    case,
                    count,
                    "audits",
                    Spread.of([float(contradicted)]),
                ),
            ]
    log("the smallest faults that are seen nine times of ten")
    return [
        *rows,
        *smallest_noise_faults(quick=quick),
        *smallest_lacks_alone(quick=quick),
        *smallest_sampling_faults(quick=quick),
    ]


def smallest_noise_faults(*, quick: bool) -> list[Row]:
    """For claims and numbers of canaries, how much noise may be there and its lack still be seen.

    The claim is one Gaussian release's. As in an audit of a strategy, three tests share the error.
    """
    rows = []
    for claim in CLAIMS:
        z = calibrate_noise_multiplier(
            sampling=Full(), rounds=1, budget=Budget(epsilon=claim, delta=DELTA)
        )
        curve = PrivacyCurve.of_events([GaussianRelease(z, Full())], delta=DELTA)
        for canaries in (100, 400) if quick else (100, 400, 1600, 6400):
            guesses = default_guesses(canaries)
            least = least_to_contradict(curve, canaries, guesses)

            def seen(
                fraction: float,
                z: float = z,
                canaries: int = canaries,
                guesses: int = guesses,
                least: int = least,
            ) -> bool:
                return nine_of_ten(
                    lambda: right_guesses(z * fraction, canaries, guesses) >= least, quick=quick
                )

            shown = largest_seen(seen)
            rows.append(
                Row(
                    f"ε={claim:g} claimed, {canaries} canaries, half of them guessed",
                    "most noise of the claimed whose lack is seen",
                    "%",
                    Spread.of([100 * shown]),
                    details={"claimed": claim, "canaries": canaries, "fraction": shown},
                )
            )
    return rows


def smallest_lacks_alone(*, quick: bool) -> list[Row]:
    """How much of the claimed noise may be there and its lack be seen where nothing else moves."""
    rows = []
    draw = np.random.default_rng()
    for numbers in (400, 8_000, 160_000):

        def seen(fraction: float, numbers: int = numbers) -> bool:
            def contradicted() -> bool:
                noise = fraction * draw.standard_normal(numbers)
                return little_noise_p_value(noise, sigma=1.0) < (1 - CONFIDENCE) / 3

            return nine_of_ten(contradicted, quick=quick)

        rows.append(
            Row(
                f"noise alone, parameters x rounds = {numbers:,}",
                "most noise of the claimed whose lack is seen",
                "%",
                Spread.of([100 * largest_seen(seen)]),
            )
        )
    return rows


def least_to_contradict(curve: PrivacyCurve, canaries: int, guesses: int) -> int:
    """The fewest right guesses that contradict the curve; one more than all if none do."""
    error = (1 - CONFIDENCE) / 3
    low, high = 0, guesses + 1  # high contradicts, by convention
    while high - low > 1:
        middle = (low + high) // 2
        p = curve_p_value(curve, canaries=canaries, guesses=guesses, correct=middle)
        low, high = (low, middle) if p < error else (middle, high)
    return high


def right_guesses(z: float, canaries: int, guesses: int) -> int:
    """The right guesses about sums with this much noise, where a canary moves its sum by 1."""
    coins = SystemRandomness().bernoulli(0.5, canaries)
    sums = coins.astype(np.float64)
    add_gaussian(sums, sigma=z, randomness=SystemRandomness())
    return count_correct(sums, coins, guesses=guesses)


def smallest_sampling_faults(*, quick: bool) -> list[Row]:
    """How much oftener than claimed clients may be drawn and it is seen in cohorts' sizes."""
    rows = []
    draw = np.random.default_rng()
    for population, rate, rounds in ((220, 0.1, 10), (220, 0.1, 100), (1000, 0.1, 100)):

        def seen(
            fraction: float, population: int = population, rate: float = rate, rounds: int = rounds
        ) -> bool:
            def contradicted() -> bool:
                sizes = draw.binomial(population, rate / fraction, rounds).tolist()
                p = poisson_cohort_p_value(sizes, population=population, rate=rate)
                return p < (1 - CONFIDENCE) / 5

            return nine_of_ten(contradicted, quick=quick)

        shown = 100 * (1 / largest_seen(seen) - 1)
        rows.append(
            Row(
                f"Poisson {rate:g} of {population} claimed, {rounds} rounds",
                "least excess of the rate that is seen",
                "%",
                Spread.of([shown]),
            )
        )
    return rows


def nine_of_ten(contradicted: Callable[[], bool], *, quick: bool) -> bool:
    """Whether it is so in nine tries of ten."""
    tries = 30 if quick else 300
    return sum(contradicted() for _ in range(tries)) >= 0.9 * tries


def largest_seen(seen: Callable[[float], bool]) -> float:
    """The largest fraction at which a fault is seen, to a hundredth; 0 where none of them is."""
    low, high = 0.0, 1.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if seen(middle) else (low, middle)
    return low


def make_strategy(claim: float, sampling: Full | Poisson, folder: Path) -> DPFedAvg:
    return DPFedAvg(
        population=CLIENTS + CANARIES,
        sampling=sampling,
        clipping=0.5,
        budget=Budget(epsilon=claim, delta=DELTA),
        ledger=folder / "ledger.jsonl",
    )


def ordinary_clients() -> ClientApp:
    """Clients with small updates of their own."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        draw = np.random.default_rng()
        arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
        moved = [a + draw.normal(0, 0.01, a.shape).astype(a.dtype) for a in arrays]
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1})})
        content["arrays"] = ArrayRecord(moved)
        return Message(content, reply_to=message)

    return app


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw every audit's lower bounds against the claim, and the smallest faults that are seen."""
    figure = Figure(figsize=(11.5, 4.6))
    axes, faults = figure.subplots(1, 2, width_ratios=(1.3, 1))
    rows = [row for row in document["rows"] if "sampling" in row.get("details", {})]
    top = 1.1 * max(row["details"]["claimed"] for row in rows)
    axes.plot([0, top], [0, top], color="#c9372c", lw=1.5)
    axes.text(top, top, " the ledger's ε", color="#c9372c", va="center")
    axes.fill_between([0, top], [0, top], [top, top], color="#c9372c", alpha=0.07, lw=0)
    axes.text(0.03 * top, 0.93 * top, "here the ledger would be wrong", color="#c9372c")
    colours = {"everyone": "#2a6fdb", "Poisson 0.5": "#e8833a"}
    kinds = {"bounds": ("o", "whatever was released"), "gaussian": ("^", "if noise is Gaussian")}
    for name, colour in colours.items():
        for kind, (marker, meaning) in kinds.items():
            points = [
                (row["details"]["claimed"], bound)
                for row in rows
                if row["details"]["sampling"] == name
                for bound in row["details"].get(kind, ())
            ]
            if points:
                shift = 0.015 * top * (1 if name == "everyone" else -1)
                shift *= 1 if kind == "bounds" else 2.2
                axes.scatter(
                    [x + shift for x, _ in points], [y for _, y in points], s=16, color=colour,
                    alpha=0.6, marker=marker, label=f"{name}, {meaning}",
                )  # fmt: skip
    axes.set_xlabel("ε that the ledger claims")
    axes.set_ylabel("ε that the attack proves, 95 %")
    axes.set_title("Audits of the running strategy", loc="left")
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.9), fontsize=8)
    for claim, colour in zip(CLAIMS, ("#1f9e89", "#2a6fdb", "#8e44ad"), strict=True):
        seen = [
            row["details"]
            for row in document["rows"]
            if "fraction" in row.get("details", {}) and row["details"]["claimed"] == claim
        ]
        faults.plot(
            [point["canaries"] for point in seen], [100 * point["fraction"] for point in seen],
            marker="o", color=colour, label=f"ε = {claim:g} claimed",
        )  # fmt: skip
    faults.set_xscale("log")
    faults.set_ylim(0, 100)
    faults.set_xlabel("canaries")
    faults.set_ylabel("noise, % of the claimed")
    faults.set_title("Less noise than this is seen 9 times of 10", loc="left")
    faults.legend(frameon=False)
    figure.tight_layout()
    _pictures.save(figure, path, dpi=130)
