"""Write the test vectors of docs/reference/wire.md: ``python tools/wire_vectors.py``.

Whatever speaks the wire format computes the same from the same numbers. Long results stand as
SHA-256 of their bytes, residues as 64-bit integers, little-endian.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from privacy.inference import MeasurementOwner, Plan
from privacy.inference.ckks import Ring, SecretKey, expand
from privacy.inference.ckks.encoding import encoder
from privacy.inference.ckks.transforms import smallest_root
from privacy.inference.messages import Tag, seal_message
from privacy.inference.owner.secret_state import SecretState
from privacy.inference.plan import pack_taps

FILE = Path(__file__).parents[1] / "docs" / "reference" / "wire-vectors.json"
SEED = bytes(range(32))
SESSION_KEY = bytes(range(100, 132))
BINDING = b"bound to this"
Numbers = NDArray[np.int64]
RINGS = ((1024, (27,)), (4096, (36, 36, 37)), (8192, (50, 48, 50, 50)))


def secret_of(degree: int) -> Numbers:
    """The rule of a secret key's coefficients."""
    n = np.arange(degree)
    return (31 * n * n + 17 * n + 5) % 97 % 3 - 1


def error_of(degree: int) -> Numbers:
    """The rule of an encryption's error."""
    return (37 * np.arange(degree) + 11) % 43 - 21


def values_of(degree: int) -> NDArray[np.float64]:
    """The rule of an input, in 64ths from -50 to 50."""
    return ((29 * np.arange(degree) + 13) % 101 - 50) / 64


def residues_of(degree: int, prime: int) -> NDArray[np.uint64]:
    """The rule of a polynomial modulo a prime."""
    n = np.arange(degree, dtype=np.uint64)
    return (n * n * np.uint64(12345) + n) % np.uint64(prime)


def plans() -> dict[str, Plan]:
    """A plan of each kind of packing; their models do not exist."""
    common: dict[str, Any] = {
        "degree": 4096,
        "prime_bits": (36, 36, 37),
        "input_scale_bits": 20,
        "answer_scale_bits": 40,
        "logit_bits": 5,
        "headroom_bits": 1.5,
        "error_bits": -12,
        "worst_error_bits": -10,
        "operations": {"multiply plain": 2},
        "predicted_ms": 3.25,
        "model_version": "00112233445566778899aabbccddeeff",
    }
    slots = np.full((2, 2, 2048), -1, dtype=np.int32)
    slots[0, 0, :6], slots[1, 1, 100:106] = range(6), range(5, -1, -1)
    placed = np.array([[0, 1, 2, -1], [3, -1, 4, 5]], dtype=np.int32)
    return {
        "coefficients": Plan(
            **common,
            input_shape=(6,),
            input_range=((-1.0, 0.0, -2.0, -1.0, -1.0, -1.0), (1.0, 1.0, 2.0, 1.0, 1.0, 1.5)),
            logits=3,
            answer_level=2,
            batch_size=1,
            packing_kind="coefficients",
            packing=pack_taps(placed),
            packing_shape=(2, 4),
            answers=((7, 4095), (0,)),
            rotation_levels=(),
            relin_level=0,
            class_names=("no", "perhaps", "yes"),
            feature_names=("age", "sex = f", "sex = m", "größe", "x", "y"),
        ),
        "slots": Plan(
            **common,
            input_shape=(1, 2, 3),
            input_range=(-1.0, 1.0),
            logits=2,
            answer_level=1,
            batch_size=1,
            packing_kind="slots",
            packing=pack_taps(slots),
            packing_shape=(2, 2, 2048),
            answers=((0, 1),),
            rotation_levels=((3, 1), (8191, 2)),
            relin_level=2,
        ),
        "batch": Plan(
            **common,
            input_shape=(2,),
            input_range=(-1.0, 1.0),
            logits=1,
            answer_level=2,
            batch_size=16,
            packing_kind="batch",
            packing="",
            packing_shape=(2,),
            answers=(),
            rotation_levels=(),
            relin_level=2,
        ),
    }


def sha256(array: NDArray[Any]) -> str:
    """Of integers as 64 bits, little-endian."""
    return hashlib.sha256(np.ascontiguousarray(array).astype("<u8").tobytes()).hexdigest()


def vectors() -> dict[str, Any]:
    """All vectors."""
    return {
        "note": "Written by tools/wire_vectors.py; docs/reference/wire.md says what they are.",
        "seed": SEED.hex(),
        "session_key": SESSION_KEY.hex(),
        "binding": BINDING.hex(),
        "rings": [_ring(degree, bits) for degree, bits in RINGS],
        "expansion": [_expansion(*case) for case in _EXPANSIONS],
        "embedding": _embedding(1024),
        "plans": {kind: _plan(plan) for kind, plan in plans().items()},
        "message": _message(plans()["slots"]),
        "encryption": _encryption(Ring(4096, (36, 36, 37))),
        "answers": {kind: _answer(plans()[kind]) for kind in ("coefficients", "slots", "batch")},
    }


def _ring(degree: int, bits: tuple[int, ...]) -> dict[str, Any]:
    ring = Ring(degree, bits)
    return {
        "degree": degree,
        "prime_bits": bits,
        "primes": ring.primes,
        "roots": [smallest_root(prime, degree) for prime in ring.primes],
        "transformed_secret": [
            sha256(row)
            for row in ring.transformed(
                secret_of(degree).astype(np.float64), tuple(range(len(ring.primes)))
            )
        ],
    }


_EXPANSIONS = ((64, (12289, 40961, 65537)), (1024, (134215681,)), (4096, (68719403009,)))
"""Small primes leave out many values, so that refills show."""


def _expansion(degree: int, primes: tuple[int, ...]) -> dict[str, Any]:
    rows = expand(SEED, primes, degree)
    return {
        "degree": degree,
        "primes": primes,
        "first": rows[:, 0].tolist(),
        "last": rows[:, -1].tolist(),
        "sha256": sha256(rows),
    }


def _embedding(degree: int) -> dict[str, Any]:
    slots = values_of(degree // 2) + 1j * values_of(degree // 2)[::-1]
    coefficients = encoder(degree).coefficients(slots)
    return {
        "degree": degree,
        "places": [0, 1, 2, 511, 512, 1023],
        "coefficients": [float(coefficients[n]) for n in (0, 1, 2, 511, 512, 1023)],
    }


def _plan(plan: Plan) -> dict[str, Any]:
    return {
        "text": plan.to_json(),
        "digest": plan.digest.hex(),
        "public_bytes": plan.public_bytes,
        "query_bytes": plan.query_bytes,
        "answer_bytes": plan.answer_bytes,
        "taps": None
        if plan.packing_kind == "batch"
        else hashlib.sha256(plan.taps.astype("<i4").tobytes()).hexdigest(),
    }


def _message(plan: Plan) -> dict[str, Any]:
    body = b"body"
    sealed = seal_message(Tag.QUERY, plan, plan.digest, 258, body, SESSION_KEY)
    bound = seal_message(Tag.MATERIAL, plan, plan.digest, 0, body, SESSION_KEY, binding=BINDING)
    return {"plan": "slots", "body": body.hex(), "query_258": sealed.hex(), "material": bound.hex()}


def _encryption(ring: Ring) -> dict[str, Any]:
    """First polynomials under the seed: of the values, and of parts of switching keys."""
    degree = ring.degree
    secret = secret_of(degree).astype(np.float64)
    plain = ring.encode_coefficients(values_of(degree), 2.0**20, 2)
    squared = [_transformed(ring, secret, place) ** 2 % ring.primes[place] for place in range(3)]
    turned = [_transformed(ring, _rotated(secret, 5), place) for place in range(3)]
    return {
        "degree": degree,
        "prime_bits": [36, 36, 37],
        "scale_bits": 20,
        "query": _masked(ring, (0, 1), [_whole(row) for row in plain.polynomial]),
        "public": _masked(ring, (0, 1, 2), [0, 0, 0]),
        "relinearisation_level_2_part_1": _masked(
            ring, (0, 1, 2), [0, squared[1] * ring.primes[2], 0]
        ),
        "rotation_5_level_1_part_0": _masked(ring, (0, 2), [turned[0] * ring.primes[2], 0]),
    }


def _masked(ring: Ring, places: tuple[int, ...], message: list[Any]) -> str:
    """(-a·s + e + m), of a from the seed."""
    secret, error = (rule(ring.degree).astype(np.float64) for rule in (secret_of, error_of))
    primes = [ring.primes[place] for place in places]
    uniform = expand(SEED, primes, ring.degree)
    rows = [
        (_transformed(ring, error, place) + each - _whole(a) * _transformed(ring, secret, place))
        % prime
        for place, prime, a, each in zip(places, primes, uniform, message, strict=True)
    ]
    return sha256(np.stack(rows))


def _whole(row: NDArray[Any]) -> NDArray[Any]:
    """As integers of any size."""
    return row.astype(np.uint64).astype(object)


def _transformed(ring: Ring, polynomial: NDArray[np.float64], place: int) -> NDArray[Any]:
    return _whole(ring.transformed(polynomial, (place,))[0])


def _rotated(polynomial: NDArray[np.float64], element: int) -> NDArray[np.float64]:
    """The polynomial in X^element."""
    degree, result = len(polynomial), np.zeros(len(polynomial))
    for n, value in enumerate(polynomial):
        power = n * element % (2 * degree)
        result[power % degree] += value if power < degree else -value
    return result


def _answer(plan: Plan) -> dict[str, Any]:
    """An answer's message by rule, and its logits under the secret key."""
    ring = Ring(plan.degree, plan.prime_bits)
    primes = ring.primes[: plan.answer_level]
    body = b""
    if plan.packing_kind == "batch":
        body = b"".join(
            residues_of(plan.degree, prime).astype("<u8").tobytes()
            for _ in range(2 * plan.logits)
            for prime in primes
        )
    for positions in plan.answers:
        body += b"".join(residues_of(plan.degree, p).astype("<u8").tobytes() for p in primes)
        body += b"".join(
            (997 * position % prime).to_bytes(8, "little")
            for position in positions
            for prime in primes
        )
    message = seal_message(Tag.ANSWER, plan, plan.digest, 0, body, SESSION_KEY)
    residues = np.stack(
        [
            ring.transformed(secret_of(plan.degree).astype(np.float64), (place,))[0]
            for place in range(len(ring.primes))
        ]
    ).astype(np.uint64)
    state = SecretState(SESSION_KEY, residues, 1, 0, {0: 2 if plan.batch_size > 1 else 1})
    owner = MeasurementOwner.from_secret_state(plan, state.to_bytes(plan.digest))
    assert SecretKey(ring, residues).coefficients.tolist() == secret_of(plan.degree).tolist()  # noqa: S101
    return {
        "sha256": hashlib.sha256(message).hexdigest(),
        "logits": owner.logits(message).tolist(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, sort_keys=True) + "\n")
    print(f"wrote {FILE.relative_to(FILE.parents[1])}")
