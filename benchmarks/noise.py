"""Noise a million parameters at a time: ours against numpy's generator, which is not secure."""

import time

import numpy as np

from benchmarks.harness import Log, Row, Spread, interleave
from privacy.correlated_noise import BLT, BandedMF, CorrelatedMechanism, CorrelatedNoise
from privacy.mechanisms import (
    SystemRandomness,
    add_discrete_gaussian,
    add_gaussian,
    add_rounded_gaussian,
)

_MILLION = 1_000_000


def run(*, quick: bool, log: Log) -> list[Row]:
    """Time adding noise in place, one thread, seconds a million parameters."""
    millions = 1 if quick else 4
    generator = np.random.default_rng()
    randomness = SystemRandomness()
    reals = {name: np.zeros(millions * _MILLION, dtype=name) for name in ("float32", "float64")}
    whole = np.zeros(millions * _MILLION, dtype=np.int64)

    def numpys_normal() -> None:
        reals["float64"] += generator.standard_normal(len(whole)) * 3.0

    def numpys_rounded() -> None:
        noise = generator.standard_normal(len(whole)) * 2.0**20
        whole[:] += np.rint(noise).astype(np.int64)

    log("continuous, rounded and discrete Gaussian noise, os.urandom; numpy: PCG64 and ziggurat")
    times = interleave(
        {
            "float64": lambda: add_gaussian(reals["float64"], sigma=3.0, randomness=randomness),
            "numpy": numpys_normal,
            "float32": lambda: add_gaussian(reals["float32"], sigma=3.0, randomness=randomness),
            "small": lambda: add_rounded_gaussian(whole, sigma=2.0**4, randomness=randomness),
            "rounded": lambda: add_rounded_gaussian(whole, sigma=2.0**20, randomness=randomness),
            "numpy rounded": numpys_rounded,
            "wide": lambda: add_rounded_gaussian(whole, sigma=2.0**30, randomness=randomness),
            "discrete": lambda: add_discrete_gaussian(
                whole, variance=2.0**26, randomness=randomness
            ),
        },
        repetitions=3 if quick else 9,
    )
    times = {name: _per_million(spread, millions) for name, spread in times.items()}
    real, rounded = (
        "numpy standard_normal (not secure)",
        "numpy standard_normal, rounded (not secure)",
    )
    cases = [
        ("continuous, float64", "float64", "numpy", real),
        ("continuous, float32", "float32", "numpy", real),
        ("rounded exactly, sigma 2^4", "small", "numpy rounded", rounded),
        ("rounded exactly, sigma 2^20", "rounded", "numpy rounded", rounded),
        ("rounded exactly, sigma 2^30", "wide", "numpy rounded", rounded),
        ("discrete exactly, sigma 2^13", "discrete", "numpy rounded", rounded),
    ]
    rows = [
        Row(case, "time a million parameters", "s", times[ours], times[peer], peer_name)
        for case, ours, peer, peer_name in cases
    ]
    for size in (_MILLION,) if quick else (_MILLION, 10 * _MILLION):
        for groups in (10,) if quick else (10, 100):
            for mechanism in (BandedMF(groups), BLT()):
                log(f"correlated noise, {size:,} parameters, {mechanism}, {groups} groups")
                rows += correlated(size, mechanism, groups, repetitions=1 if quick else 5)
    return rows


def correlated(
    size: int, mechanism: CorrelatedMechanism, groups: int, *, repetitions: int
) -> list[Row]:
    """A round's row of correlated noise and the past it takes back, beside independent noise."""
    factor = mechanism.factor(rounds=10 * groups, momentum=0.9, groups=groups)
    noise = CorrelatedNoise(factor, sigma=2.0**23, size=size)
    # Any rows do, and to draw them would take minutes.
    filler = np.random.default_rng(0)
    for _ in range(groups - 1):
        noise._past.add(filler.integers(-(2**25), 2**25, size))
    whole, randomness = np.zeros(size, dtype=np.int64), SystemRandomness()
    times = interleave(
        {
            "correlated": lambda: noise.draw(randomness.bytes(32)),
            "independent": lambda: add_rounded_gaussian(
                whole, sigma=2.0**23, randomness=randomness
            ),
        },
        repetitions=repetitions,
        clock=time.process_time,
    )
    over = f"over {groups} rounds" if isinstance(mechanism, BandedMF) else f"BLT, {groups} groups"
    case = f"correlated {over}, {size // _MILLION} M parameters"
    peer = "independent noise, rounded exactly"
    return [
        Row(case, "time a round", "s", times["correlated"], times["independent"], peer),
        Row(case, "past noise in memory", "MB", Spread.of([noise.nbytes / 1e6])),
    ]


def _per_million(spread: Spread, millions: int) -> Spread:
    return Spread(
        spread.median / millions, spread.low / millions, spread.high / millions, spread.repetitions
    )
