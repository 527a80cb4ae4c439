"""Batches: one input element a ciphertext, one image a slot."""

import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from privacy.inference.arithmetic.bodies import read_columns, rerandomise
from privacy.inference.arithmetic.network import Affine, Vector
from privacy.inference.arithmetic.polynomials import activate
from privacy.inference.arithmetic.program import BatchProgram
from privacy.inference.arithmetic.scales import AFTER
from privacy.inference.arithmetic.slot_model import refuse_zero
from privacy.inference.ckks import Ciphertext, Residues, Ring, matrix_product
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_ONE_BATCH = threading.Lock()


@dataclass(frozen=True)
class _Group:
    """Outputs that read the same inputs."""

    outputs: NDArray[np.intp]
    inputs: NDArray[np.intp]
    weights: NDArray[np.float64]


class BatchModel:
    """A model's weights as integers, ready for batches."""

    def __init__(self, plan: Plan, program: BatchProgram) -> None:
        self.plan = plan
        self.ring = ring = Ring(plan.degree, plan.prime_bits)
        self.digest = plan.digest
        self._program = program
        self._scales = tuple(program.scales.follow(program.activations, ring.primes))
        self._groups = []
        for affine, scales in zip(program.affines, self._scales, strict=True):
            data = affine.matrix.data
            refuse_zero(affine.name, [not np.rint(data * scales.weights).any()], [data])
            self._groups.append(_grouped(affine, scales.weights))

    def answer(self, body: memoryview, keys: Keys) -> bytes:
        """Evaluate the body of a query and return the body of an answer."""
        # Blocks of a product go to threads of ours: they are too small for those of BLAS, whose
        # number is the process's. One batch takes every core.
        with (
            _ONE_BATCH,
            threadpool_limits(1, user_api="blas"),
            ThreadPoolExecutor(_CORES) as threads,
        ):
            return self._answer(body, keys, threads)

    def _answer(self, body: memoryview, keys: Keys, threads: Executor) -> bytes:
        ring, program = self.ring, self._program
        values = read_columns(body, ring, self.plan.ciphertexts)
        for index, activation in enumerate(program.activations):
            scales, affine = self._scales[index], program.affines[index]
            products = self._linear(values, index, threads)
            # The narrower of these outputs and the next layer's are relinearised.
            narrows = program.affines[index + 1].outputs < affine.outputs
            end = self._scales[index + 1].level
            large_at = end if narrows else 0
            size = 3 if narrows else 2
            values = [np.empty((affine.outputs, end, ring.degree), np.uint64) for _ in range(size)]
            rescale, entry = program.scales.rescales[index], scales.entry
            for unit in range(affine.outputs):
                value = self._ciphertext(products[unit], scales.inputs * scales.weights, keys)
                if rescale >= 0:
                    ring.rescale(value)
                bias = float(affine.bias[unit])
                ring.add_plain(value, ring.encode(bias, entry.scale, entry.level))
                result = activate(
                    ring, keys, activation, value, rescaled=rescale == AFTER, large_at=large_at
                )
                for polynomial, column in zip(ring.residues(result), values, strict=True):
                    column[unit] = polynomial
        products = self._linear(values, len(program.activations), threads)
        return self._finish(products, keys)

    def _linear(self, values: list[Residues], index: int, threads: Executor) -> Residues:
        _, level, degree = values[0].shape
        outputs = self._program.affines[index].outputs
        result = np.zeros((outputs, len(values), level, degree), dtype=np.uint64)
        for polynomial, rows in enumerate(values):
            for prime_index, prime in enumerate(self.ring.primes[:level]):
                column = rows[:, prime_index]
                for group in self._groups[index]:
                    part = column if len(group.inputs) == len(column) else column[group.inputs]
                    product = matrix_product(group.weights, part, prime, threads)
                    result[group.outputs, polynomial, prime_index] = product
        return result

    def _ciphertext(self, residues: Residues, scale: float, keys: Keys) -> Ciphertext:
        ciphertext = self.ring.ciphertext(residues, scale)
        self.ring.relinearise(ciphertext, keys.relinearisation)
        return ciphertext

    def _finish(self, products: Residues, keys: Keys) -> bytes:
        """Add the bias, re-randomise, and return both polynomials of every logit.

        No coefficient is left out: every slot is an image's, or one that the data owner could
        have put an image into.
        """
        ring, plan = self.ring, self.plan
        scale, level = 2.0**plan.answer_scale_bits, plan.answer_level
        released = []
        for residues, value in zip(products, self._program.affines[-1].bias, strict=True):
            bias, answer = float(value), self._ciphertext(residues, scale, keys)
            if self._program.activations:
                plain = ring.encode(bias, scale, level)
            else:
                plain = ring.encode_coefficients(np.full(plan.degree, bias), scale, level)
            ring.add_plain(answer, plain)
            rerandomise(ring, keys, answer)
            released.append(ring.residues(answer).tobytes())
        return b"".join(released)


def _grouped(affine: Affine, scale: float) -> list[_Group]:
    """Outputs that read the same inputs, weights as integers."""
    groups = []
    for read, rows in affine.supports().items():
        inputs = np.array(read or (0,), dtype=np.int64)
        weights: Vector = np.rint(affine.matrix[rows].toarray()[:, inputs] * scale)
        # SEAL refuses ciphertexts of a constant alone: a unit without weights reads one input with
        # the least weight, as little as rounding may be off.
        weights[~weights.any(axis=1), 0] = 1.0
        groups.append(_Group(np.array(rows), inputs, weights))
    return groups
