"""Compile: a trained model and the range of its inputs become a plan and a program."""

import hashlib
import logging
import math
import secrets
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from torch import nn

from privacy.arguments import (
    number,
    of_kind,
    shown,
    sizes,
    whole,
)
from privacy.inference.arithmetic.encrypted_weights import blind_layers
from privacy.inference.arithmetic.network import Network, Vector
from privacy.inference.arithmetic.program import BatchProgram, Program
from privacy.inference.ckks import Ring
from privacy.inference.compiled_model import CompiledModel
from privacy.inference.compiler.assemble import PackingSummary, pack
from privacy.inference.compiler.logit_bound import SHAPE
from privacy.inference.compiler.lowering.forward import reference
from privacy.inference.compiler.lowering.lower import check_agreement, lower
from privacy.inference.compiler.operation_costs import Operations, milliseconds
from privacy.inference.compiler.planner import (
    LARGEST_SLOTS,
    Planner,
    ProductChoice,
    check_depth,
    check_size,
    choose_products,
    too_many_bytes,
)
from privacy.inference.compiler.ranges import Ranges, ranges
from privacy.inference.compiler.scale_search import Choice, logit_bits
from privacy.inference.compiler.sensitivity import drawn_inputs, sensitivity
from privacy.inference.errors import CannotPlanError, UnsupportedLayerError
from privacy.inference.input_range import InputRange, by_feature, inputs_of, to_unit
from privacy.inference.input_range import bounds as bounds_of
from privacy.inference.input_range import input_range as written_range
from privacy.inference.plan import Plan, ThreeParties, pack_taps

_log = logging.getLogger(__name__)
_MUCH_MEMORY = 1e9
"""Bytes of encoded weights from which on they are told of."""
_QUERY_BYTES = (1_500_000, 16_000_000)
"""Of a query, where that is enough, and at most by default."""
_POINTS = 16
_TOLERANCES = (1 / 50, 1 / 10)
"""Of how far logits lie apart: by default, and where no plan reaches that."""
_TOLERANCE_OF_ALIKE = 2.0**-10
"""Of a model whose logits do not differ, such as one before training."""
_ALIKE = 2.0**-40
"""Of the largest logit: values closer together differ by the rounding of doubles alone."""
_HASHED_MS = 7e-7
"""Of authenticating one byte of a message, on the reference machine."""


def compile_model(
    model: nn.Module,
    *,
    input_shape: Sequence[int] | int,
    input_range: tuple[ArrayLike, ArrayLike],
    sample: ArrayLike | None = None,
    batch_size: int = 1,
    tolerance: float | None = None,
    max_query_bytes: int | None = None,
    parties: ThreeParties | None = None,
    multi_label: bool = False,
    class_names: Sequence[str | int] | None = None,
    feature_names: Sequence[str | int] | None = None,
) -> CompiledModel:
    """Compile a trained model for encrypted inference with CKKS at 128-bit security.

    The compiled model answers as PyTorch runs the model in evaluation mode: its forward is traced
    by ``torch.fx``, every operation and the whole are compared with PyTorch on points of the range,
    and hooks and the like are refused by name.

    Parameters
    ----------
    model : nn.Module
        Layers and functions that are affine in evaluation mode, and polynomials of degree up to 7
        (docs/how-to/encrypted-inference.md has a table of them): one path or several, residual
        additions and concatenations among them. It takes a batch of inputs and returns a vector of
        logits for each: one a class, or a single one that decides between two (see
        :func:`decide`). Its forward may decide by shapes, not by values.
    input_shape : sequence of int, or int
        The shape of one input, without the batch; a number alone is that of a vector.
    input_range : tuple of float, or of arrays
        The lowest and highest value of an input's elements; arrays that broadcast to
        ``input_shape`` where features have ranges of their own, such as ([0, 18], [1, 99]) for two.
        The plan's proof holds in this range, the data owner's client refuses inputs outside it,
        and the plan publishes it.
    sample : array_like, optional
        Some dozen typical inputs, shape (inputs, ...), for the predicted error: that of the worst
        of them. They must be public, since the plan depends on them; the proof of headroom does
        not. By default noise and patterns of blocks drawn from the range, which are harder than
        most images and may be unlike yours; a certificate measures.
    batch_size : int
        Images in a query, at most. 1 asks for the least time to an answer; more for the most
        images a second (one image a slot; worth it from some dozens on).
    tolerance : float, optional
        The largest predicted error of a logit that the planner may accept (six standard
        deviations, for typical inputs). By default a fiftieth of how far the logits of typical
        inputs lie apart (their standard deviation over the classes; for a single logit, half its
        mean distance from zero), or a tenth where no plan reaches that; 2^-10 where they do not
        differ at all. The log warns of a predicted error larger than the whole of it.
    max_query_bytes : int, optional
        The largest message with one query (``plan.query_bytes``). By default 1.5 MB for one image
        where that is enough, else 16 MB; no limit for a batch. Larger queries take longer to
        send, and save rotations.
    parties : ThreeParties, optional
        Declares a third party that evaluates. The plan is then for encrypted weights, which
        :meth:`CompiledModel.encrypt_weights` makes and :class:`BlindEvaluator` evaluates: for one
        image, and activations of degree 2.
    multi_label : bool
        Whether each logit decides about a label of its own, of which several may hold (see
        :func:`decide_each`). Errors are then held against each logit's distance from zero.
    class_names : sequence of str or int, optional
        What the classes are called, in the order of the logits; of a single logit two names, the
        second for class 1. They are part of the public plan, and the data owner's answers bear
        them (:attr:`Answer.name`).
    feature_names : sequence of str or int, optional
        What the elements of an input are called, in their order, such as a table's columns. They
        are part of the public plan: whoever asks about a table has its columns found by name.

    Raises
    ------
    TypeError
        If ``model`` is not an ``nn.Module``.
    UnsupportedLayerError
        If an operation cannot be evaluated under encryption or traced, a module has a hook, or the
        model differs from PyTorch as compiled; the message offers an alternative.
    CannotPlanError
        If the model is too deep, too wide or too imprecise for 128-bit security.
    LayerInputError
        If layers do not go together, or the first does not take ``input_shape``.
    ValueError
        If an argument is out of its range.
    """
    shape = sizes("input_shape", input_shape, SHAPE)
    declared = written_range("input_range", input_range, shape)
    low, high = bounds_of(declared, shape)
    if tolerance is not None:
        tolerance = number("tolerance", tolerance, above=0, give="a positive error of a logit")
    # A plan is JSON, which knows no integers of NumPy.
    batch_size = whole("batch_size", batch_size, least=1, give="1 or more images a query")
    query_limits: tuple[int, ...] = (sys.maxsize,) if batch_size > 1 else _QUERY_BYTES
    if max_query_bytes is not None:
        give = "a positive number of bytes"
        query_limits = (whole("max_query_bytes", max_query_bytes, least=1, give=give),)
    if parties is not None:
        of_kind("parties", parties, ThreeParties, "ThreeParties(...), or leave it out")
        if batch_size > 1:
            raise ValueError(
                f"batch_size is {batch_size}; encrypted weights answer 1 image a query"
            )
    names = _names("class_names", class_names, "('cat', 'dog')")
    features = _names("feature_names", feature_names, "('age', 'weight')")
    if len(features) not in (0, math.prod(shape)):
        raise ValueError(
            f"feature_names has {len(features)} names; an input has {math.prod(shape)} elements"
        )
    encrypted, batch = parties is not None, batch_size > 1

    of_kind("multi_label", multi_label, bool, "True where several labels may hold, or False")

    predicts = getattr(model, "predicts", None)  # what from_sklearn knows of an estimator
    if predicts == "labels" and not multi_label:
        raise ValueError(
            "multi_label is False, and the estimator predicts several labels of one input; give "
            "multi_label=True"
        )
    itself = reference(model)
    network = lower(
        itself,
        shape,
        (low, high),
        widest=None if batch else LARGEST_SLOTS,
        max_query_bytes=None if batch else query_limits[-1],
    )
    if multi_label and network.outputs == 1:
        raise ValueError(
            "multi_label is True, and the model has one logit, which decides between two classes: "
            "leave multi_label out"
        )
    if encrypted:
        _check_activations(network)
    check_depth(network)
    original, (centre, radius) = network, to_unit(declared, shape)
    if by_feature(declared):
        # What is encrypted is in [-1, 1] then, and the first map takes it back.
        network = _from_unit(network, centre, radius)
        low, high = np.full(len(centre), -1.0), np.full(len(centre), 1.0)
    bounds = ranges(network, low.ravel(), high.ravel())
    check_size(network, bounds)
    samples = (
        drawn_inputs(bounds, shape)
        if sample is None
        else (_flat(sample, declared, shape) - centre) / radius
    )
    if not encrypted:
        # An evaluator of encrypted weights would see the constants.
        centred = network.centred(samples.T)
        if centred is not network:
            network, bounds = centred, ranges(centred, low.ravel(), high.ravel())
    check_agreement(original, itself, shape, centre + radius * _points(samples, bounds))

    spread = _spread(network(samples.T), multi_label=multi_label)
    tolerances = _tolerances(tolerance, spread)
    choice: Choice | ProductChoice
    if network.activations:
        choice = Planner(
            network,
            bounds,
            sensitivity(network, bounds, samples, batch=batch),
            batch_size=batch_size,
            encrypted=encrypted,
            spread=spread,
        ).choose(tolerances, query_limits)
    else:
        choice = choose_products(
            network,
            bounds,
            batch_size=batch_size,
            tolerance=tolerances[-1],
            spread=spread,
            encrypted=encrypted,
        )
    _warn_of_error(choice.error, spread)
    if predicts == "values":
        _log.warning(
            "compile_model: the estimator is a regressor; its values are released by "
            "DataOwner(plan, release=RoundedLogits(...)) or FloodedLogits(...), and by default "
            "only whether the value is above 0"
        )

    program, summary = pack(network, choice, batch=batch)
    plan = _plan(
        network,
        program,
        summary,
        choice,
        input_shape=shape,
        input_range=declared,
        batch_size=batch_size,
        logit_bits=logit_bits(bounds),
        parties=parties,
        multi_label=multi_label,
        class_names=names,
        feature_names=features,
    )
    if plan.query_bytes > query_limits[-1]:
        raise CannotPlanError(too_many_bytes(plan.query_bytes, query_limits[-1]))
    compiled = CompiledModel(plan, program, original, itself)
    if compiled.evaluator_bytes > _MUCH_MEMORY:
        _log.warning(
            "the encoded weights take %.1f GB of memory at the evaluator, for every process",
            compiled.evaluator_bytes / 1e9,
        )
    return compiled


def _from_unit(network: Network, centre: Vector, radius: Vector) -> Network:
    """The network of inputs that are (x - centre)/radius."""
    layers, copies = [], {}
    for index, layer in enumerate(network.layers):
        if layer.reads_input and layer.activation is None and layer is not network.layers[-1]:
            copies[index + 1] = layer.affines[0].structure.indices
            layers.append(layer)
            continue
        affines = []
        for source, affine in zip(layer.sources, layer.affines, strict=True):
            if source == 0 or source in copies:
                where = copies.get(source, slice(None))
                bias = affine.bias + affine.matrix @ centre[where]
                matrix = sparse.csr_array(affine.matrix * radius[where])
                affine = replace(affine, matrix=matrix, bias=bias, name=affine.name or "scaling")
            affines.append(affine)
        layers.append(replace(layer, affines=tuple(affines)))
    return Network(tuple(layers))


def _names(argument: str, given: Sequence[str | int] | None, example: str) -> tuple[str, ...]:
    if given is None:
        return ()
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        give = f"a sequence of names, such as {example}"
        raise TypeError(f"{argument} is {shown(given)}; give {give}")
    for name in given:
        if not isinstance(name, str | int | np.integer):
            raise TypeError(f"{argument} holds {shown(name)}; give texts or whole numbers")
    return tuple(map(str, given))


def _tolerances(tolerance: float | None, spread: float) -> tuple[float, ...]:
    if tolerance is not None:
        return (tolerance,)
    if spread == 0:
        return (_TOLERANCE_OF_ALIKE,)
    return tuple(share * spread for share in _TOLERANCES)


def _plan(
    network: Network,
    program: Program,
    summary: PackingSummary,
    choice: Choice | ProductChoice,
    *,
    input_shape: tuple[int, ...],
    input_range: InputRange,
    batch_size: int,
    logit_bits: int,
    parties: ThreeParties | None,
    multi_label: bool,
    class_names: tuple[str, ...],
    feature_names: tuple[str, ...],
) -> Plan:
    ring = Ring(summary.degree, summary.primes)
    error_bits = math.ceil(math.log2(choice.error))
    worst_bits = math.ceil(math.log2(choice.worst_error))
    largest = (2.0**logit_bits + 2.0**worst_bits) * 2.0**summary.answer_bits
    modulus = math.prod(ring.primes[: summary.answer_level])
    headroom = math.floor(10 * (math.log2(modulus) - 1 - math.log2(largest))) / 10
    taps = summary.taps
    layers = (
        ()
        if parties is None or isinstance(program, BatchProgram)
        else blind_layers(program, ring.levels)
    )
    plan = Plan(
        input_shape=input_shape,
        input_range=input_range,
        logits=network.outputs,
        degree=summary.degree,
        prime_bits=summary.primes,
        input_scale_bits=summary.input_bits,
        answer_scale_bits=summary.answer_bits,
        answer_level=summary.answer_level,
        logit_bits=logit_bits,
        headroom_bits=headroom,
        error_bits=error_bits,
        worst_error_bits=worst_bits,
        batch_size=batch_size,
        packing_kind=summary.kind,
        packing="" if taps is None else pack_taps(taps),
        packing_shape=(network.inputs,) if taps is None else tuple(taps.shape),
        answers=summary.answers,
        rotation_levels=tuple(
            sorted((ring.galois_element(step), level) for step, level in summary.rotations)
        ),
        relin_level=summary.relin_level,
        operations=_by_name(summary.operations),
        predicted_ms=0.0,
        # A digest would let the evaluator confirm a guess of weights that it must not know.
        model_version=_version(network) if parties is None else secrets.token_hex(16),
        parties=() if parties is None else parties.names,
        blind_layers=layers,
        blind_sources=network.layers[-1].sources if layers else (),
        multi_label=multi_label,
        class_names=class_names,
        feature_names=feature_names,
    )
    spent = milliseconds(summary.operations, plan.degree)
    spent += _HASHED_MS * (plan.query_bytes + plan.answer_bytes)
    return replace(plan, predicted_ms=round(spent, 2))


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


def _spread(logits: Vector, *, multi_label: bool) -> float:
    """How far the logits of typical inputs lie apart, of logits of shape (logits, inputs).

    Labels by themselves are as single logits: that counts which lies the least from zero.
    """
    least = _ALIKE * float(np.abs(logits).max())
    if len(logits) == 1:  # one logit stands for two, of which the other is zero
        logits = np.vstack([logits, np.zeros_like(logits)])
    if multi_label:
        spread = float(np.abs(logits).mean(axis=1).min()) / 2
    else:
        spread = float(logits.std(axis=0).mean())
    return spread if spread > least else 0.0


def _check_activations(network: Network) -> None:
    """Refuse activations whose coefficients the evaluator would see."""
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


def _flat(sample: ArrayLike, declared: InputRange, shape: tuple[int, ...]) -> Vector:
    """Typical inputs, shape (inputs, elements)."""
    values = inputs_of("sample", sample, shape)
    if len(values) == 0:
        raise ValueError("sample is empty; give some dozen typical inputs, or leave it out")
    flat = values.reshape(len(values), -1)
    low, high = bounds_of(declared, shape)
    if not bool(((flat >= low.ravel()) & (flat <= high.ravel())).all()):
        raise ValueError("sample has elements outside input_range; clip them or widen the range")
    return flat


def _by_name(operations: Operations) -> dict[str, int]:
    named: Counter[str] = Counter()
    for (name, _), count in operations.items():
        named[name] += count
    return {name: count for name, count in named.items() if count}


def _version(network: Network) -> str:
    digest = hashlib.sha256()
    for layer in network.layers:
        digest.update(np.array([*layer.sources, layer.centre]).tobytes())
        for affine in layer.affines:
            matrix = affine.matrix
            for part in (matrix.indptr, matrix.indices, matrix.data, affine.bias):
                digest.update(np.ascontiguousarray(part).tobytes())
    for activation in network.activations:
        digest.update(np.array(activation.coefficients).tobytes())
    return digest.hexdigest()[:32]
