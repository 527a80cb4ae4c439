"""Compile: a trained model and the range of its inputs become a plan and encoded weights."""

import hashlib
import logging
import math
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from privacy.inference import messages as _wire
from privacy.inference.arguments import (
    check_count,
    check_error,
    check_kind,
    limits_of,
    numbers_of,
    sizes_of,
)
from privacy.inference.arithmetic.batch_model import BatchModel, BatchProgram
from privacy.inference.arithmetic.encrypted_weights import blind_layers, encrypt_program
from privacy.inference.arithmetic.slot_model import EncodedModel, ProductProgram, SlotProgram
from privacy.inference.ckks.ring import Ring
from privacy.inference.compiler.assemble import pack_batch, pack_products, pack_slots
from privacy.inference.compiler.calibration import calibration
from privacy.inference.compiler.costs import Operation
from privacy.inference.compiler.lowering import Network, Vector, check_agreement, lower, reference
from privacy.inference.compiler.planner import (
    LARGEST_SLOTS,
    Choice,
    ProductChoice,
    check_depth,
    check_size,
    choose,
    choose_products,
    logit_bits,
)
from privacy.inference.compiler.ranges import Ranges, ranges
from privacy.inference.compiler.sensitivity import drawn_inputs, sensitivity
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError
from privacy.inference.messages import Tag
from privacy.inference.parties import ThreeParties
from privacy.inference.plan import Plan, pack_taps
from privacy.inference.public_keys import public_key

_log = logging.getLogger(__name__)
_QUERY_BYTES = (1_500_000, 16_000_000)
"""What a query takes where that is enough, and what it may take by default."""
_POINTS = 16
_TOLERANCES = (1 / 50, 1 / 10)
"""Of how far logits lie apart: by default, and where no plan reaches that."""
_TOLERANCE_OF_ALIKE = 2.0**-10
"""Of a model whose logits do not differ, such as one before training."""
_ALIKE = 2.0**-40
"""Of the largest logit: what lies closer together is alike but for the rounding of doubles."""


@dataclass(frozen=True)
class CompiledModel:
    """A model made ready for encrypted questions; made by :func:`compile_model`.

    It holds the model's weights, and no key. It is the model owner's; the plan is what others
    may see.

    Attributes
    ----------
    plan : Plan
    network : Network
        What was compiled, in the clear: affine maps and polynomials in double precision.
    program : SlotProgram, ProductProgram or BatchProgram
        The packed weights.
    model : nn.Sequential
        The model itself as PyTorch runs it, in evaluation mode and double precision: what
        encrypted answers are held against.
    """

    plan: Plan
    network: Network = field(repr=False)
    program: SlotProgram | ProductProgram | BatchProgram = field(repr=False)
    model: nn.Sequential = field(repr=False)

    @cached_property
    def encoded(self) -> EncodedModel | BatchModel:
        """The weights encoded for the ring: made at first use, shared by all evaluators."""
        if isinstance(self.program, BatchProgram):
            return BatchModel(self.plan, self.program)
        return EncodedModel(self.plan, self.program)

    def encrypt_weights(self, public_material: bytes) -> bytes:
        """The weights, encrypted under a data owner's public key, for a third party.

        Parameters
        ----------
        public_material : bytes
            What :meth:`DataOwner.public_material` returned. Of its keys the public one is used.

        Returns
        -------
        bytes
            For :class:`BlindEvaluator`, with the same public material. Do not send it to the data
            owner, who could decrypt it.

        Raises
        ------
        ValueError
            If the model was compiled without ``parties``.
        MessageError
            If the material is not of this plan.
        """
        plan = self.plan
        if not plan.parties or isinstance(self.program, BatchProgram):
            raise ValueError(
                "the model was compiled without parties: whoever evaluates it holds its weights. "
                "Compile with parties=ThreeParties(...) if a third party evaluates"
            )
        ring = Ring(plan.degree, plan.prime_bits)
        session_key, public = public_key(public_material, ring, plan)
        body = b"".join(encrypt_program(plan, self.program, ring, public))
        return _wire.seal_message(Tag.WEIGHTS, plan, plan.digest, 0, body, session_key)

    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """The model's own logits, in double precision, of inputs (images, ...): (images, logits).

        PyTorch computes them, from :attr:`model`.
        """
        values = torch.from_numpy(numbers_of("inputs", inputs, "shape (images, ...)"))
        with torch.no_grad():
            logits = self.model(values.reshape(len(inputs), *self.plan.input_shape))
        return np.asarray(logits.numpy())


def compile_model(
    model: nn.Sequential,
    *,
    input_shape: Sequence[int] | int,
    input_range: tuple[float, float],
    sample: ArrayLike | None = None,
    batch_size: int = 1,
    tolerance: float | None = None,
    max_query_bytes: int | None = None,
    parties: ThreeParties | None = None,
) -> CompiledModel:
    """Compile a trained model for encrypted inference with CKKS at 128-bit security.

    The compiled model answers as PyTorch runs the model in evaluation mode: it is held against it
    on points of the range, and what PyTorch would run beside the layers is refused by name.

    Parameters
    ----------
    model : nn.Sequential
        Linear, Conv2d, AvgPool2d, AdaptiveAvgPool2d, Flatten, BatchNorm, Dropout, Square and
        Polynomial layers, nested as you like, ending in a vector of logits: one a class, or a
        single one that decides between two (see :func:`decide`). Exactly these types, without
        forward hooks; one layer may stand at several places.
    input_shape : sequence of int, or int
        The shape of one input, without the batch; a number alone is that of a vector.
    input_range : tuple of float
        The lowest and highest value an element of an input may have, also as NumPy's or torch's
        ``min()`` and ``max()`` give them. The plan's proof holds in this range and the data
        owner's client refuses inputs outside it.
    sample : array_like, optional
        Some dozen typical inputs, shape (inputs, ...): the predicted error is that of the worst
        of them, and of inputs like them. Without them, noise and patterns of blocks drawn from the
        range, which are harder than most images, and may be unlike yours: see what a certificate
        measures. They must be public: the plan depends on them. The proof of headroom does not.
    batch_size : int
        How many images a query holds at most. 1 asks for the least time to an answer; more for
        the most images a second (one image a slot; worth it from some dozens on).
    tolerance : float, optional
        The largest predicted error of a logit that the planner may accept (six standard
        deviations, for typical inputs). By default a fiftieth of how far the logits of typical
        inputs lie apart (their standard deviation over the classes; for a single logit, half its
        mean distance from zero), however small that is, and a tenth of it where no plan
        reaches that; 2^-10 where they do not differ at all.
        Where the predicted error is larger than how far they lie apart, the log warns of it.
    max_query_bytes : int, optional
        The largest message with one query that the plan may have (``plan.query_bytes``). By
        default 1.5 MB for one image where that is enough, else 16 MB, which takes the networks
        that are usual for small images; no limit for a batch. Larger queries cost upload, and
        save rotations.
    parties : ThreeParties, optional
        Declares that a third party evaluates, and who it is. The plan is then for weights that
        are encrypted as well: :meth:`CompiledModel.encrypt_weights` makes them and
        :class:`BlindEvaluator` evaluates them. For one image, and activations of degree 2.

    Returns
    -------
    CompiledModel

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Sequential``, or is a subclass; or another argument is of
        another kind.
    UnsupportedLayerError
        If a layer cannot be evaluated under encryption, is a subclass, has a hook, or does not
        answer as compiled; the message offers what can.
    CannotPlanError
        If the model is too deep, too wide or too imprecise for 128-bit security.
    ValueError
        If an argument is out of its range.
    """
    input_shape, (low, high) = sizes_of(input_shape), limits_of(input_range)
    if tolerance is not None:
        tolerance = check_error("tolerance", tolerance, "a positive error of a logit")
    # A plan is JSON, which knows no integers of NumPy.
    batch_size = check_count("batch_size", batch_size, "1 or more images a query")
    if max_query_bytes is not None:
        max_query_bytes = check_count(
            "max_query_bytes", max_query_bytes, "a positive number of bytes"
        )
    if parties is not None:
        check_kind("parties", parties, ThreeParties, "ThreeParties(...), or leave it out")
    query_limits: tuple[int, ...] = (sys.maxsize,) if batch_size > 1 else _QUERY_BYTES
    if max_query_bytes is not None:
        query_limits = (max_query_bytes,)
    if parties is not None and batch_size > 1:
        raise ValueError(f"batch_size is {batch_size}; encrypted weights answer 1 image a query")
    itself = reference(model)
    network = lower(
        itself, input_shape, (low, high), widest=LARGEST_SLOTS if batch_size == 1 else None
    )
    encrypted = parties is not None
    if encrypted:
        _check_activations(network)
    check_depth(network)
    bounds = ranges(network, low, high)
    check_size(network, bounds)
    bits = logit_bits(bounds)
    samples = _sampled(sample, network, bounds, input_shape)
    check_agreement(network, itself, input_shape, _points(samples, bounds))
    spread = _spread(network(samples.T))
    if tolerance is not None:
        tolerances: tuple[float, ...] = (tolerance,)
    elif spread == 0:
        tolerances = (_TOLERANCE_OF_ALIKE,)
    else:
        tolerances = tuple(share * spread for share in _TOLERANCES)
    choice: Choice | ProductChoice
    program: SlotProgram | ProductProgram | BatchProgram
    if network.activations:
        choice = choose(
            network,
            bounds,
            sensitivity(network, bounds, samples),
            batch_size=batch_size,
            tolerances=tolerances,
            spread=spread,
            query_limits=query_limits,
            encrypted=encrypted,
        )
        program, facts = (
            pack_slots(network, choice) if batch_size == 1 else pack_batch(network, choice)
        )
    else:
        choice = choose_products(
            network,
            bounds,
            batch_size=batch_size,
            tolerance=tolerances[-1],
            spread=spread,
            encrypted=encrypted,
        )
        program, facts = (
            pack_products(network, choice) if batch_size == 1 else pack_batch(network, choice)
        )
    _warn_of_error(choice.error, spread)
    ring = Ring(facts.degree, facts.primes)
    error_bits = math.ceil(math.log2(choice.error))
    worst_bits = math.ceil(math.log2(choice.worst_error))
    largest = (2.0**bits + 2.0**worst_bits) * 2.0**facts.answer_bits
    headroom = math.floor(10 * (math.log2(ring.primes[0] / 2) - math.log2(largest))) / 10
    plan = Plan(
        input_shape=input_shape,
        input_range=(low, high),
        logits=network.affines[-1].outputs,
        degree=facts.degree,
        prime_bits=facts.primes,
        input_scale_bits=facts.input_bits,
        answer_scale_bits=facts.answer_bits,
        logit_bits=bits,
        headroom_bits=headroom,
        error_bits=error_bits,
        worst_error_bits=worst_bits,
        batch_size=batch_size,
        packing_kind=facts.kind,
        packing="" if facts.taps is None else pack_taps(facts.taps),
        packing_shape=(
            (network.affines[0].inputs,) if facts.taps is None else tuple(facts.taps.shape)
        ),
        answers=facts.answers,
        rotation_levels=tuple(
            sorted((ring.galois_element(step), level) for step, level in facts.rotations.items())
        ),
        relin_level=facts.relin_level,
        operations=_by_name(facts.operations),
        predicted_ms=0.0,
        # A digest would let the evaluator confirm a guess of weights that it must not know.
        model_version=secrets.token_hex(16) if encrypted else _version(network),
        parties=() if parties is None else parties.names,
        blind_layers=(
            ()
            if parties is None or isinstance(program, BatchProgram)
            else blind_layers(program, ring.levels)
        ),
    )
    if plan.query_bytes > query_limits[-1]:
        raise CannotPlanError(
            f"a query takes {plan.query_bytes:,} bytes, max_query_bytes is "
            f"{query_limits[-1]:,}; give max_query_bytes={plan.query_bytes}"
        )
    predicted = calibration(plan.degree, len(plan.prime_bits)).milliseconds(
        facts.operations, plan.query_bytes + plan.answer_bytes
    )
    return CompiledModel(replace(plan, predicted_ms=round(predicted, 2)), network, program, itself)


def _warn_of_error(error: float, spread: float) -> None:
    if spread == 0:
        _log.warning(
            "compile_model: on typical inputs the model's logits are all alike, and the error "
            "decides the class; train the model, or give a sample of inputs that it tells apart"
        )
    elif error > spread:
        _log.warning(
            "compile_model: the predicted error of a logit is %.3g, and the logits of typical "
            "inputs lie %.3g apart: encrypted classes will be wrong; give tolerance=%.2g or less",
            *(error, spread, _TOLERANCES[0] * spread),
        )


def _spread(logits: Vector) -> float:
    """How far the logits of typical inputs lie apart, of logits of shape (logits, inputs)."""
    least = _ALIKE * float(np.abs(logits).max())
    if len(logits) == 1:  # one logit stands for two, of which the other is zero
        logits = np.vstack([logits, np.zeros_like(logits)])
    spread = float(logits.std(axis=0).mean())
    return spread if spread > least else 0.0


def _check_activations(network: Network) -> None:
    """Refuse activations whose coefficients the evaluator would have to be told."""
    for activation in network.activations:
        if activation.degree > 2:
            raise UnsupportedLayerError(
                f"layer {activation.name} has degree {activation.degree}, whose coefficients an "
                "evaluator of encrypted weights would see; use Square or a Polynomial of degree 2"
            )


def _points(samples: Vector, bounds: Ranges) -> Vector:
    """Where compiled model and model are compared: corners of the range, and typical inputs."""
    generator = np.random.default_rng(0)
    low, high = bounds.inputs.low, bounds.inputs.high
    corners = np.where(generator.random((_POINTS // 2, len(low))) < 0.5, low, high)
    return np.vstack([low, high, corners, samples[:_POINTS]])


def _sampled(
    sample: ArrayLike | None, network: Network, bounds: Ranges, input_shape: Sequence[int]
) -> Vector:
    if sample is None:
        return drawn_inputs(bounds, input_shape)
    values = numbers_of("sample", sample, "shape (inputs, *input_shape)")
    if values.ndim < 2 or len(values) == 0 or values[0].size != network.affines[0].inputs:
        raise ValueError(f"sample has shape {values.shape}; give (inputs, *input_shape)")
    flat = values.reshape(len(values), -1)
    if not bool(((flat >= bounds.inputs.low) & (flat <= bounds.inputs.high)).all()):
        raise ValueError("sample has elements outside input_range; clip them or widen the range")
    return flat


def _by_name(operations: Counter[Operation]) -> dict[str, int]:
    named: Counter[str] = Counter()
    for (name, _), count in operations.items():
        named[name] += count
    return {name: count for name, count in named.items() if count}


def _version(network: Network) -> str:
    digest = hashlib.sha256()
    for affine in network.affines:
        for part in (affine.matrix.indptr, affine.matrix.indices, affine.matrix.data, affine.bias):
            digest.update(np.ascontiguousarray(part).tobytes())
    for activation in network.activations:
        digest.update(np.array(activation.coefficients).tobytes())
    return digest.hexdigest()[:32]
