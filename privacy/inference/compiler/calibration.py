"""How long operations take on this machine: measured once a ring, and kept in the cache folder.

Choices never depend on it (two machines that compile one model must agree on its plan); the
milliseconds that a plan predicts do. The shortest of some repetitions counts, in processor time,
so that a busy machine does not spoil what is kept. Delete the folder ``ckks-costs`` in the user's
cache folder to measure again.
"""

import hashlib
import hmac
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from threadpoolctl import threadpool_limits

from privacy.inference.arithmetic import bodies as _release
from privacy.inference.arithmetic.batch_model import read_columns
from privacy.inference.ckks.modular import matrix_product
from privacy.inference.ckks.ring import MAX_MODULUS_BITS, Ring, seal
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES, expand
from privacy.inference.compiler.costs import Operation
from privacy.inference.messages import Reader
from privacy.inference.public_keys import refuse_secret

_FORMAT = 2
_REPETITIONS = 5
_MAX_PRIME_BITS = 60
_HASHED_BYTES = 1 << 18
_READ = tuple(range(10))
_MATRIX = 64
_ROW_BITS = 24
_BATCH_BYTES = 1 << 26


@dataclass(frozen=True)
class Calibration:
    """Milliseconds of each operation in one ring.

    Attributes
    ----------
    operations : mapping of str to tuple of float
        By name, one a level, from level 1 upwards.
    byte : float
        Of authenticating one byte of a message.
    """

    operations: Mapping[str, tuple[float, ...]]
    byte: float

    def milliseconds(self, operations: Counter[Operation], message_bytes: int) -> float:
        """Predicted time of the operations, and of checking and sealing messages."""
        spent = sum(
            count * self.operations[name][level - 1] for (name, level), count in operations.items()
        )
        return spent + self.byte * message_bytes


@cache
def calibration(degree: int, primes: int) -> Calibration:
    """Costs on this machine, by ring degree and number of primes: from the cache, or measured."""
    file = _file(degree, primes)
    try:
        kept = json.loads(file.read_text())
        return Calibration(
            {name: tuple(float(ms) for ms in row) for name, row in kept["operations"].items()},
            float(kept["byte"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there yet, or cut short by a process that died: it is measured again.
        measured = _measure(degree, primes)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(measured)))
    except OSError:
        # A cache folder that cannot be written costs some seconds a process, and nothing else.
        pass
    return measured


def _file(degree: int, primes: int) -> Path:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    machine = [_FORMAT, platform.machine(), platform.processor(), names[:1], version("tenseal")]
    digest = hashlib.sha256(json.dumps(machine).encode()).hexdigest()[:16]
    folder = platformdirs.user_cache_path("bloomseal") / "ckks-costs"
    return folder / f"{digest}-{degree}-{primes}.json"


def _shortest(action: Callable[[], object]) -> float:
    spent = []
    for _ in range(_REPETITIONS):
        start = time.thread_time()
        action()
        spent.append(time.thread_time() - start)
    return min(spent) * 1e3


def _measure(degree: int, primes: int) -> Calibration:
    bits = min(_MAX_PRIME_BITS, MAX_MODULUS_BITS[degree] // primes)
    ring = Ring(degree, (bits,) * primes)
    bench = _Bench(ring)
    rows = [bench.at(level) for level in range(1, ring.levels + 1)]
    names = dict.fromkeys(name for row in rows for name in row)
    # An operation that a level does not have (nothing is rescaled at level 1) is never counted.
    table = {name: tuple(row.get(name, 0.0) for row in rows) for name in names}
    content = bytes(_HASHED_BYTES)
    byte = _shortest(lambda: hmac.new(b"key", content, hashlib.sha256).digest()) / _HASHED_BYTES
    return Calibration(table, byte)


class _Bench:
    """Keys of a ring, and each operation as an evaluation does it."""

    def __init__(self, ring: Ring) -> None:
        self._ring = ring
        self._generator = seal.KeyGenerator(ring.context)
        self._encryptor = seal.Encryptor(ring.context, self._generator.secret_key())
        self._element = ring.galois_element(1)
        self._switching = len(ring.primes) > 1
        if self._switching:
            self._galois, self._relin = seal.GaloisKeys(), seal.RelinKeys()
            self._generator.create_galois_keys([self._element], self._galois)
            self._generator.create_relin_keys(self._relin)
        public = seal.PublicKey()
        self._generator.create_public_key(public)
        self._zero = seal.Encryptor(ring.last.context, ring.last_public_key(public))

    def at(self, level: int) -> dict[str, float]:
        """Milliseconds by name at one level."""
        ring, evaluator = self._ring, self._ring.evaluator
        identity = ring.parms_id(level)
        one = seal.Ciphertext()
        self._encryptor.encrypt_zero_symmetric(identity, one)
        full = ring.ciphertext_residues(one)
        body = memoryview(full[0].tobytes() + bytes(QUERY_SEED_BYTES))
        plain = ring.encode(np.full(ring.slots, 0.5), 2.0**20, level)
        total = seal.Ciphertext()
        evaluator.multiply_plain(one, plain, total)

        def load() -> None:
            reader = Reader(body)
            first = reader.residues(ring.primes[:level], ring.degree)
            refuse_secret(ring, first)
            uniform = expand(reader.raw(QUERY_SEED_BYTES), ring.primes[:level], ring.degree)
            ring.ciphertext(np.stack([first, uniform]), 1.0)

        def multiply_plain() -> None:
            product = seal.Ciphertext()
            evaluator.multiply_plain(one, plain, product)
            evaluator.add_inplace(total, product)

        spent = {
            "load": _shortest(load),
            "multiply plain": _shortest(multiply_plain),
            "unload": _shortest(lambda: ring.ciphertext_residues(one)),
            "load residues": _shortest(lambda: ring.ciphertext(full, 1.0)),
            "mask": 0.0,
            **self._matrix(full),
        }
        if level == 1:
            spent["mask"] = _shortest(lambda: self._mask(one))
        if level == ring.levels:
            # Enough of them that their memory is new, as a batch's is.
            count = -(-_BATCH_BYTES // len(body))
            batch = memoryview(bytes(body) * count)
            spent["expand"] = _shortest(lambda: read_columns(batch, ring, count)) / count
        if self._switching:
            spent |= self._switched(one, level)
        return spent

    def _switched(self, one: Any, level: int) -> dict[str, float]:
        evaluator = self._ring.evaluator
        large = seal.Ciphertext()
        evaluator.multiply(one, one, large)
        summed = self._copy(large, level)
        total = self._copy(one, level)

        def rotate() -> None:
            rotated = seal.Ciphertext()
            evaluator.apply_galois(one, self._element, self._galois, rotated)
            evaluator.add_inplace(total, rotated)

        def multiply() -> None:
            product = seal.Ciphertext()
            evaluator.multiply(one, one, product)
            evaluator.add_inplace(summed, product)

        def relinearise() -> None:
            result = seal.Ciphertext()
            evaluator.relinearize(large, self._relin, result)

        spent = {
            "rotate": _shortest(rotate),
            "multiply": _shortest(multiply),
            "relinearise": _shortest(relinearise),
        }
        if level > 1:
            spent["rescale"] = _shortest(lambda: self._rescale(one))
        return spent

    def _rescale(self, one: Any) -> None:
        result = seal.Ciphertext()
        self._ring.evaluator.rescale_to_next(one, result)

    def _copy(self, one: Any, level: int) -> Any:
        copy = seal.Ciphertext()
        self._ring.evaluator.mod_switch_to(one, self._ring.parms_id(level), copy)
        return copy

    def _mask(self, one: Any) -> None:
        answer = self._copy(one, 1)
        _release.rerandomise(self._ring, self._zero, answer)
        _release.extract(self._ring, answer, _READ, [0] * len(_READ))

    def _matrix(self, full: Any) -> dict[str, float]:
        """A matrix product over ciphertexts, by inputs, by outputs and by the products of both."""
        size, level, _ = full.shape

        def spent(outputs: int, inputs: int) -> float:
            # As many bits in a row as weights of 17 bits over some hundred inputs have.
            weights = np.full((outputs, inputs), 2.0**_ROW_BITS / inputs)
            columns = [np.repeat(full[:1, at, :], inputs, axis=0) for at in range(level)]

            def product() -> None:
                for column, prime in zip(columns, self._ring.primes, strict=False):
                    matrix_product(weights, column, prime)

            with threadpool_limits(1, user_api="blas"):
                return int(size) * _shortest(product)

        split, reduce = spent(1, _MATRIX) / _MATRIX, spent(_MATRIX, 1) / _MATRIX
        both = spent(_MATRIX, _MATRIX) / _MATRIX
        return {
            "split": split,
            "reduce": reduce,
            "scalar": max(0.0, both - split - reduce) / _MATRIX,
        }
