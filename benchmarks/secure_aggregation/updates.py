"""Rows of the secure aggregation benchmark: updates as integers, and what rounding takes."""

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Row, Spread, interleave
from privacy.mechanisms import (
    ClippingGeometry,
    DistributedGaussian,
    MaskedGaussian,
    SystemRandomness,
    lattice_radius,
)

_MILLION = 1_000_000
_Z = 1.0
_FLAT = ClippingGeometry((1.0,), (0,))
_RANDOMNESS = SystemRandomness()


def encoding_rows(*, quick: bool) -> list[Row]:
    """Seconds for a million parameters: a client's half and the server's, with either noise."""
    radius = lattice_radius(_MILLION)
    central = MaskedGaussian(radius)
    shared = DistributedGaussian(radius, min_clients=60, colluders=5, max_clients=160)
    update, model = [_normal(_MILLION)], [np.zeros(_MILLION, np.float32)]
    opened = np.zeros(_MILLION, dtype=np.int64)

    def encode(mechanism: MaskedGaussian | DistributedGaussian) -> None:
        mechanism.encode(
            update, model, _FLAT, weight=1.0, noise_multiplier=_Z, randomness=_RANDOMNESS
        )

    def decode(mechanism: MaskedGaussian | DistributedGaussian) -> None:
        mechanism.decode(
            opened,
            model,
            _FLAT,
            survivors=95,
            noise_multiplier=_Z,
            randomness=_RANDOMNESS,
        )

    times = interleave(
        {
            "client, central noise": lambda: encode(central),
            "client, distributed noise": lambda: encode(shared),
            "server, central noise": lambda: decode(central),
            "server, distributed noise": lambda: decode(shared),
        },
        repetitions=5 if quick else 15,
    )
    return [
        Row("update of 1 M parameters", metric, "s", spread) for metric, spread in times.items()
    ]


def rounding_rows() -> list[Row]:
    """What a clipped update of normal coordinates keeps of itself at each radius."""
    rows = []
    for parameters in (3_920, 100_000, _MILLION):
        update = _normal(parameters)
        model = [np.zeros(parameters, np.float32)]
        for exponent in (12, 14, 15, 16, 18, 20):
            for weight in (1.0, 0.1):
                cells = MaskedGaussian(1 << exponent).encode(
                    [update],
                    model,
                    _FLAT,
                    weight=weight,
                    noise_multiplier=0.0,
                    randomness=_RANDOMNESS,
                )
                length = float(np.linalg.norm(cells))
                share = length / (weight * 2.0**exponent)
                along = float(cells @ update) / (length * float(np.linalg.norm(update)))
                case = f"rounding, {parameters} parameters, R = 2^{exponent}, weight {weight:g}"
                rows.append(Row(case, "length share", "", Spread.of([share])))
                rows.append(Row(case, "cosine with the update", "", Spread.of([along])))
    return rows


def _normal(parameters: int) -> npt.NDArray[np.float32]:
    drawn = np.random.default_rng(0).standard_normal(parameters)
    return drawn.astype(np.float32)
