"""Noise a million parameters at a time: ours against numpy's generator, which is not secure."""

import time

import numpy as np

from benchmarks.harness import Log, Row, Spread, interleave
from privacy.correlated_noise import BandedMF, CorrelatedNoise
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
        for bands in (10,) if quick else (10, 100):
            log(f"correlated noise, {size:,} parameters, {bands} bands")
            rows += correlated(size, bands, repetitions=1 if quick else 5)
    return rows


def correlated(size: int, bands: int, *, repetitions: int) -> list[Row]:
    """A round's row of correlated noise and the past it takes back, beside independent noise."""
    factor = BandedMF(bands).factor(rounds=10 * bands, momentum=0.9)
    noise = CorrelatedNoise(factor, sigma=2.0**23, size=size)
    # Any rows do, and to draw them would take minutes.
    filler = np.random.default_rng(0)
    noise._past.extend(
        filler.integers(-(2**25), 2**25, size, dtype=np.int32) for _ in range(bands - 1)
    )
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
    case = f"correlated over {bands} rounds, {size // _MILLION} M parameters"
    held = sum(row.nbytes for row in noise._past if row is not None) / 1e6
    peer = "independent noise, rounded exactly"
    return [
        Row(case, "time a round", "s", times["correlated"], times["independent"], peer),
        Row(case, "past noise in memory", "MB", Spread.of([held])),
    ]


def _per_million(spread: Spread, millions: int) -> Spread:
    return Spread(
        spread.median / millions, spread.low / millions, spread.high / millions, spread.repetitions
    )
