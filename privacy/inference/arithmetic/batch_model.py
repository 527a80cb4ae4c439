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
from privacy.inference.arithmetic.slot_model import refuse_zero
from privacy.inference.ckks import Ciphertext, Residues, Ring, matrix_product
from privacy.inference.plan import Plan
from privacy.inference.public_keys import Keys
from privacy.inference.rescaling import rescaled_after, rescaled_before

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
        self._layers = program.network.layers
        self._scales = tuple(program.scales.follow(self._layers, ring.primes))
        self._groups = []
        for layer, here in zip(self._layers, self._scales, strict=True):
            read = list(zip(layer.affines, here.weights, strict=True))
            zero = [not np.rint(each.matrix.data * scale).any() for each, scale in read]
            refuse_zero(layer.name, zero, [each.matrix.data for each, _ in read])
            self._groups.append([_grouped(each, scale) for each, scale in read])

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
        ring, layers = self.ring, self._layers
        values = [read_columns(body, ring, self.plan.ciphertexts)]
        network, rescales = self._program.network, iter(self._program.scales.rescales)
        for index, layer in enumerate(layers[:-1]):
            if layer.activation is None:
                copied = layer.affines[0].structure.indices
                values.append([rows[copied] for rows in values[0]])
                continue
            scales, rescale = self._scales[index], next(rescales)
            products = self._linear(values, index, threads)
            # The narrower of these outputs and the next layer's are relinearised.
            large, end = network.narrows(index), scales.result.level
            size = 3 if large else 2
            made = [np.empty((layer.outputs, end, ring.degree), np.uint64) for _ in range(size)]
            entry, biases = scales.entry, layer.bias
            for unit in range(layer.outputs):
                value = self._ciphertext(products[unit], scales.product, keys)
                if rescaled_before(rescale):
                    ring.rescale(value)
                bias = float(biases[unit])
                ring.add_plain(value, ring.encode_addend(bias, entry.scale, entry.level))
                result = activate(
                    ring,
                    keys,
                    layer.activation,
                    value,
                    rescaled=rescaled_after(rescale),
                    large_at=end if large else 0,
                )
                if layer.centre:
                    ring.add_plain(result, ring.encode_addend(-layer.centre, result.scale, end))
                for polynomial, column in zip(ring.residues(result), made, strict=True):
                    column[unit] = polynomial
            values.append(made)
            for source in layer.sources:
                if network.users[source][-1] == index:
                    values[source] = []  # its last use
        products = self._linear(values, len(layers) - 1, threads)
        return self._finish(products, keys)

    def _linear(self, values: list[list[Residues]], index: int, threads: Executor) -> Residues:
        layer, level, degree = self._layers[index], self._scales[index].level, self.ring.degree
        size = max(len(values[source]) for source in layer.sources)
        result = np.zeros((layer.outputs, size, level, degree), dtype=np.uint64)
        for source, groups in zip(layer.sources, self._groups[index], strict=True):
            for polynomial, rows in enumerate(values[source]):
                for prime_index, prime in enumerate(self.ring.primes[:level]):
                    column = rows[:, prime_index]
                    for group in groups:
                        part = column if len(group.inputs) == len(column) else column[group.inputs]
                        product = matrix_product(group.weights, part, prime, threads)
                        if source != layer.sources[0]:
                            product += result[group.outputs, polynomial, prime_index]
                            product %= np.uint64(prime)
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
        for residues, value in zip(products, self._layers[-1].bias, strict=True):
            bias, answer = float(value), self._ciphertext(residues, scale, keys)
            if self._program.network.activations:
                plain = ring.encode_addend(bias, scale, level)
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
