"""The evaluator's arithmetic for batches: one input element a ciphertext, one image a slot."""

import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from privacy.inference.arithmetic import bodies as _release
from privacy.inference.arithmetic.polynomials import evaluate
from privacy.inference.arithmetic.scales import AFTER, LayerScales, Scales, walk
from privacy.inference.arithmetic.slot_model import rounds_to_zero
from privacy.inference.ckks.modular import matrix_product
from privacy.inference.ckks.operations import Cipher, CipherAlgebra
from privacy.inference.ckks.ring import Residues, Ring
from privacy.inference.ckks.seeded import QUERY_SEED_BYTES, expand
from privacy.inference.compiler.candidates import supports
from privacy.inference.compiler.lowering import Activation, Affine, Vector
from privacy.inference.errors import CannotPlanError
from privacy.inference.messages import Reader
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys, refuse_secret

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_ONE_BATCH = threading.Lock()


@dataclass(frozen=True)
class BatchProgram:
    """What the evaluator does for a batch: the same affine maps, on every slot alike."""

    affines: tuple[Affine, ...]
    activations: tuple[Activation, ...]
    scales: Scales


@dataclass(frozen=True)
class _Group:
    """Outputs that read the same inputs."""

    outputs: NDArray[np.intp]
    inputs: NDArray[np.intp]
    weights: NDArray[np.float64]


class BatchModel:
    """A compiled model for batches, its weights as integers.

    Parameters
    ----------
    plan : Plan
    program : BatchProgram
    """

    def __init__(self, plan: Plan, program: BatchProgram) -> None:
        self.plan = plan
        self.program = program
        self.digest = plan.digest
        self.ring = Ring(plan.degree, plan.prime_bits)

    @cached_property
    def _scales(self) -> tuple[LayerScales, ...]:
        program = self.program
        return walk(program.scales, program.activations, [float(p) for p in self.ring.primes])

    @cached_property
    def _groups(self) -> list[list[_Group]]:
        return [
            _group(affine, scales.weights)
            for affine, scales in zip(self.program.affines, self._scales, strict=True)
        ]

    def prepare(self) -> None:
        """Make everything now that does not depend on a query.

        Raises
        ------
        CannotPlanError
            If all weights of a layer round to zero.
        """
        for affine, scales in zip(self.program.affines, self._scales, strict=True):
            if not np.rint(affine.matrix.data * scales.weights).any():
                raise CannotPlanError(rounds_to_zero(affine.name, [affine.matrix.data]))
        _ = self._groups

    def answer(self, body: memoryview, keys: Keys, encryptor: Any) -> bytes:
        """Evaluate the body of a query and return the body of an answer."""
        # Blocks of a product go to threads of ours: they are too small for those of BLAS, whose
        # number is the process's. One batch takes every core.
        with (
            _ONE_BATCH,
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(_CORES) as threads,
        ):
            return self._answer(body, keys, encryptor, threads)

    def _answer(self, body: memoryview, keys: Keys, encryptor: Any, threads: Executor) -> bytes:
        ring, program = self.ring, self.program
        values = read_columns(body, ring, self.plan.ciphertexts)
        for index, activation in enumerate(program.activations):
            scales, affine = self._scales[index], program.affines[index]
            products = self._linear(values, index, threads)
            # Whatever is narrower is relinearised: these outputs, or the next layer's.
            narrows = program.affines[index + 1].outputs < affine.outputs
            end = self._scales[index + 1].level
            algebra = CipherAlgebra(ring, keys.relin, leave_at=end if narrows else 0)
            size = 3 if narrows else 2
            values = [np.empty((affine.outputs, end, ring.degree), np.uint64) for _ in range(size)]
            rescale = program.scales.rescales[index]
            products_scale, entry = scales.inputs * scales.weights, scales.entry
            for unit in range(affine.outputs):
                ciphertext = self._ciphertext(products[unit], products_scale, keys)
                if rescale >= 0:
                    ring.evaluator.rescale_to_next_inplace(ciphertext)
                    ciphertext.scale = entry.scale
                bias = float(affine.bias[unit])
                plain = ring.encode_constant(bias, entry.scale, entry.level)
                ring.evaluator.add_plain_inplace(ciphertext, plain)
                start = Cipher(ciphertext, entry.scale, entry.level)
                result = evaluate(algebra, activation, start, rescaled=rescale == AFTER)
                residues = ring.ciphertext_residues(result.ciphertext)
                for polynomial, column in zip(residues, values, strict=True):
                    column[unit] = polynomial
        products = self._linear(values, len(program.activations), threads)
        return self._finish(products, keys, encryptor)

    def _linear(self, values: list[Residues], index: int, threads: Executor) -> Residues:
        _, level, degree = values[0].shape
        outputs = self.program.affines[index].outputs
        result = np.zeros((outputs, len(values), level, degree), dtype=np.uint64)
        for polynomial, rows in enumerate(values):
            for prime_index, prime in enumerate(self.ring.primes[:level]):
                column = rows[:, prime_index]
                for group in self._groups[index]:
                    part = column if len(group.inputs) == len(column) else column[group.inputs]
                    product = matrix_product(group.weights, part, prime, threads)
                    result[group.outputs, polynomial, prime_index] = product
        return result

    def _ciphertext(self, residues: Residues, scale: float, keys: Keys) -> Any:
        ciphertext = self.ring.ciphertext(residues, scale)
        if len(residues) > 2:
            self.ring.evaluator.relinearize_inplace(ciphertext, keys.relin)
        return ciphertext

    def _finish(self, products: Residues, keys: Keys, encryptor: Any) -> bytes:
        """Add the bias, re-randomise, and return both polynomials of every logit.

        No coefficient is left out: every slot is an image's, or one that the data owner could
        have put an image into.
        """
        ring, plan = self.ring, self.plan
        scale = 2.0**plan.answer_scale_bits
        released = []
        for residues, bias in zip(products, self.program.affines[-1].bias, strict=True):
            ciphertext = self._ciphertext(residues, scale, keys)
            if self.program.activations:
                plain = ring.encode_constant(float(bias), scale, 1)
            else:
                plain = ring.encode_coefficients(np.full(plan.degree, float(bias)), scale, 1)
            ring.evaluator.add_plain_inplace(ciphertext, plain)
            _release.rerandomise(ring, encryptor, ciphertext)
            released.append(ring.ciphertext_residues(ciphertext).tobytes())
        return b"".join(released)


def _group(affine: Affine, scale: float) -> list[_Group]:
    """Outputs that read the same inputs, weights as integers."""
    groups = []
    for read, rows in supports(affine).items():
        inputs = np.array(read or (0,), dtype=np.int64)
        weights: Vector = np.rint(affine.matrix[rows].toarray()[:, inputs] * scale)
        # SEAL refuses what is nothing but a constant: a unit without weights reads one input with
        # the least weight there is, which is as little as rounding may be off.
        weights[~weights.any(axis=1), 0] = 1.0
        groups.append(_Group(np.array(rows), inputs, weights))
    return groups


def read_columns(body: memoryview, ring: Ring, count: int) -> list[Residues]:
    """Both polynomials of a query's ciphertexts, each (count, levels, N).

    The first ones stay where they are, in the message.

    Raises
    ------
    MessageError
        If a residue is not below its prime, or a polynomial is a secret key.
    """
    reader, primes = Reader(body), ring.primes[: ring.levels]
    shape = (count, ring.levels, ring.degree)
    uniform = np.empty(shape, dtype=np.uint64)
    for row in uniform:
        refuse_secret(ring, reader.residues(primes, ring.degree))
        row[:] = expand(reader.raw(QUERY_SEED_BYTES), primes, ring.degree)
    one = 8 * ring.degree
    strides = (ring.levels * one + QUERY_SEED_BYTES, one, 8)
    return [np.ndarray(shape, dtype="<u8", buffer=body, strides=strides), uniform]
