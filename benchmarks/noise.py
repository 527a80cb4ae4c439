"""Noise a million parameters at a time: ours against numpy's generator, which is not secure."""

import time
from collections.abc import Iterator

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
_BLOCK = 1 << 14
_BYTES = 10  # that a draw takes


def run(*, quick: bool, log: Log) -> list[Row]:
    """Time adding noise in place: one thread each, processor seconds a million parameters."""
    millions = 1 if quick else 4
    generator = np.random.default_rng()
    randomness = SystemRandomness()
    reals = {name: np.zeros(millions * _MILLION, dtype=name) for name in ("float32", "float64")}
    whole = np.zeros(millions * _MILLION, dtype=np.int64)

    # numpy's at its best: in blocks that stay in the cache, without memory for each.
    block, integers = np.empty(_BLOCK), np.empty(_BLOCK, dtype=np.int64)
    raw = np.empty(_BLOCK * _BYTES, dtype=np.uint8)

    def numpys_blocks(sigma: float) -> Iterator[slice]:
        for start in range(0, len(whole), _BLOCK):
            count = min(_BLOCK, len(whole) - start)
            generator.standard_normal(out=block)
            np.multiply(block, sigma, out=block)
            yield slice(start, start + count)

    def numpys_normal() -> None:
        for part in numpys_blocks(3.0):
            reals["float64"][part] += block[: part.stop - part.start]

    def numpys_rounded() -> None:
        for part in numpys_blocks(2.0**20):
            np.rint(block, out=block)
            np.copyto(integers, block, casting="unsafe")
            whole[part] += integers[: part.stop - part.start]

    def random_bytes() -> None:
        for _ in range(0, len(whole), _BLOCK):
            randomness.fill(raw)

    log("continuous, rounded and discrete Gaussian noise, AES-256-CTR; numpy: PCG64 and ziggurat")
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
            "bytes": random_bytes,
        },
        repetitions=3 if quick else 9,
        clock=time.process_time,
    )
    times = {name: _per_million(spread, millions) for name, spread in times.items()}
    real, rounded = (
        "numpy standard_normal, in blocks (not secure)",
        "numpy standard_normal, in blocks, rounded (not secure)",
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
    rows.append(
        Row(f"{_BYTES} random bytes a draw", "time a million parameters", "s", times["bytes"])
    )
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
