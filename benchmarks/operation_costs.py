"""What each homomorphic operation takes, and the planner's table of prices, fitted to it.

One core, processor time, the least of some repetitions: a busy machine hardly changes it. Before
each repetition other data passes through the caches nearest to the processor, as it does in a
network, where keys and weights come from farther away than what was computed last. The rows
of the table are the coefficients that ``privacy.inference.compiler.operation_costs`` holds; the
picture shows how far its own figures are from what was measured.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import nnls

from benchmarks._pictures import OURS, SOFT, save
from benchmarks.harness import Log, Row, Spread
from privacy.inference.arithmetic.bodies import extract, read_ciphertexts, rerandomise
from privacy.inference.ckks import Ciphertext, Ciphertexts, Extended, PublicKey, Ring, SwitchingKey
from privacy.inference.compiler.operation_costs import features, milliseconds
from privacy.inference.public_keys import Keys

_SHAPES = (
    (2048, 50, (1,)),
    (4096, 27, (1, 2, 3)),
    (8192, 43, (1, 2, 3, 4)),
    (16384, 48, (1, 2, 3, 5, 8)),
    (32768, 50, (1, 3, 8, 15)),
)
"""Ring degrees, bits of every prime, and levels."""
_ROTATIONS = 4
_TERMS = 8
_PASSING = ((8192, 1 << 19), (32768, 1 << 22))
"""Doubles that pass through the caches before a repetition, by ring degrees up to that.

Networks in small rings have keys and weights of some megabytes, those in larger ones of hundreds.
"""
_Times = dict[tuple[str, int, int], float]
"""Milliseconds by operation, ring degree and level."""


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure every operation at several levels and ring degrees, and fit the table of prices."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    times: _Times = {}
    for degree, bits, levels in _SHAPES[:3] if quick else _SHAPES:
        log(f"N={degree}")
        for level in levels:
            primes = 1 if degree == _SHAPES[0][0] else level + 1
            ring = Ring(degree, [bits] * primes)
            for name, spent in _Operations(ring, repetitions=5 if quick else 20).measure():
                times[name, degree, level] = spent
    rows = [
        Row(
            f"N={degree}, {level} primes",
            name,
            "ms",
            Spread.of([spent]),
            details={"table": milliseconds(Counter({(name, level): 1}), degree)},
        )
        for (name, degree, level), spent in times.items()
    ]
    shares = Spread.of([row.ours.median / row.details["table"] for row in rows])
    rows.append(Row("all operations", "measured of the planner's table", "", shares))
    return rows + list(_fitted(times))


def draw(document: Mapping[str, Any], path: Path) -> None:
    """Draw each operation's measured share of the planner's price, a point a ring and level."""
    shares: dict[str, list[float]] = defaultdict(list)
    for row in document["rows"]:
        if "details" in row:
            shares[row["metric"]].append(row["ours"] / row["details"]["table"])
    figure = Figure(figsize=(9, 0.34 * len(shares) + 1.3))
    axes = figure.subplots()
    for place, points in zip(range(len(shares), 0, -1), shares.values(), strict=True):
        axes.plot(points, [place] * len(points), "o", color=OURS, alpha=0.5, ms=5)
    axes.axvline(1, color=SOFT, lw=1)
    axes.set_xscale("log")
    axes.set_yticks(range(len(shares), 0, -1), list(shares), fontsize=8)
    axes.set_title("Measured of the planner's table", loc="left")
    axes.set_xlabel("share; a point a ring and level")
    save(figure, path)


def _fitted(times: _Times) -> Iterator[Row]:
    """The coefficients of each operation that make relative errors least, none negative."""
    points: dict[str, list[tuple[int, int, float]]] = defaultdict(list)
    for (name, degree, level), spent in times.items():
        points[name].append((degree, level, spent))
    for name, measured in points.items():
        weighed = np.array([np.array(features(n, level)) / spent for n, level, spent in measured])
        coefficients, _ = nnls(weighed, np.ones(len(measured)))
        for index, value in enumerate(coefficients):
            yield Row("fit", f"{name}, coefficient {index}", "ms", Spread.of([float(value)]))


@dataclass(frozen=True)
class _Operations:
    """The operations of one ring at its highest level."""

    ring: Ring
    repetitions: int

    def measure(self) -> Iterator[tuple[str, float]]:
        """The milliseconds of each operation; those of hoisting as differences."""
        ring, level = self.ring, self.ring.levels
        value = self._ciphertext()
        plain = ring.encode(np.linspace(-1, 1, ring.slots), 2.0**15, level)
        public = PublicKey(ring, self._residues(1, ring.primes)[0], secrets.token_bytes(32))
        keys = Keys(public, None, {})
        body = self._body()

        def load() -> None:
            hmac.new(b"key", body, hashlib.sha256).digest()
            read_ciphertexts(body, ring, 1, 1.0)

        yield "load", self._time(load)

        def mask() -> None:
            answer = Ciphertext(value.polynomials.copy(), 1.0)
            rerandomise(ring, keys, answer)
            extract(ring, answer, tuple(range(10)), [1] * 10)

        yield "mask", self._time(mask)
        several = ring.weights(dict.fromkeys(range(_TERMS), plain))
        values = Ciphertexts(np.stack([value.polynomials] * _TERMS), 1.0)
        products = self._time(lambda: ring.weighted_sum(values, several))
        yield "multiply plain", products / _TERMS
        places = np.arange(_TERMS)
        products = self._time(lambda: ring.sum_of_products(values, values, places))
        yield "multiply", products / _TERMS
        if level > 1:
            yield "rescale", self._time(lambda: ring.rescale(Ciphertext(value.polynomials, 1.0)))
        if len(ring.primes) > 1:
            yield from self._key_switches(value)

    def _key_switches(self, value: Ciphertext) -> Iterator[tuple[str, float]]:
        ring, level = self.ring, self.ring.levels
        parts = self._residues(2 * level, ring.primes).astype(np.float64)
        key = SwitchingKey(parts.reshape(level, 2, level + 1, -1), level)
        steps = tuple(range(1, _ROTATIONS + 1))
        keys = {ring.galois_element(step): key for step in steps}
        large = Ciphertext(self._residues(3, ring.primes[:level]).astype(np.float64), 1.0)
        yield "relinearise", self._time(lambda: ring.relinearised(large, key))
        yield "extend", self._time(lambda: ring.extended(value))
        total = ring.extended(value)
        yield "divide", self._time(lambda: ring.divided(total))

        one = self._time(lambda: ring.add_rotations(total, (1,), keys))
        undivided = Extended(total.polynomials, 1.0)
        yield "divide half", self._time(lambda: ring.add_rotations(undivided, (1,), keys)) - one
        several = self._time(lambda: ring.add_rotations(total, steps, keys))
        rotation = max(0.0, several - one) / (_ROTATIONS - 1)
        yield "hoist", one - rotation
        yield "hoisted rotation", rotation
        plain = ring.encode(np.linspace(-1, 1, ring.slots), 2.0**15, level, hoisted=True)
        rotated = ring.hoist(total, steps, keys)
        weights = ring.weights(dict.fromkeys(range(_ROTATIONS), plain))
        products = self._time(lambda: ring.combine(rotated, weights))
        yield "hoisted product", products / _ROTATIONS

    def _time(self, work: Callable[[], Any]) -> float:
        work()
        count = next(count for degree, count in _PASSING if self.ring.degree <= degree)
        spent, passing = [], np.ones(count)
        for _ in range(self.repetitions):
            passing += 1.0
            start = time.process_time()
            work()
            spent.append(time.process_time() - start)
        return 1e3 * min(spent)

    def _residues(self, size: int, primes: Sequence[int]) -> NDArray[np.uint64]:
        generator = np.random.default_rng(size)
        draws = [generator.integers(0, prime, (size, self.ring.degree)) for prime in primes]
        return np.stack(draws, axis=1).astype(np.uint64)

    def _ciphertext(self) -> Ciphertext:
        ring = self.ring
        return ring.ciphertext(self._residues(2, ring.primes[: ring.levels]), 1.0)

    def _body(self) -> memoryview:
        """One ciphertext of a query."""
        first = self._residues(1, self.ring.primes[: self.ring.levels])
        return memoryview(first.astype("<u8").tobytes() + os.urandom(32))
