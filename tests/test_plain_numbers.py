"""Settings hold Python's own numbers, whatever library the ones given are of."""

import copy
import dataclasses
import importlib
import inspect
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    Budget,
    CyclicGroups,
    DiscreteGaussianSum,
    FixedSize,
    Full,
    GaussianRelease,
    GroupRelease,
    LedgerText,
    Poisson,
    Repeated,
    SiloSum,
    attack_advantage,
    attack_success,
    calibrate_noise_multiplier,
    calibrate_rounds,
    calibrate_sampling_rate,
    epsilon,
    gaussian_dp,
    joint_noise_multiplier,
    large_delta,
    presence_delta,
    privacy_curve,
)
from privacy.audit import (
    PrivacyCurve,
    audit,
    correlated_noise_p_values,
    curve_p_value,
    epsilon_lower_bound,
    independent_cohorts_p_value,
    invert_batch,
    judge,
    little_noise_p_value,
    match_gradient,
    mu_lower_bound,
    one_hot_records,
    p_value,
    poisson_cohort_p_value,
    separation_p_value,
)
from privacy.correlated_noise import (
    BLT,
    BandedFactor,
    BandedMF,
    BLTFactor,
    MinSeparation,
    banded_coefficients,
    blt_factor,
    relative_error,
    sensitivity,
    square_root,
    workload,
)
from privacy.inference import (
    ClassOnly,
    EachLabel,
    FloodedLogits,
    InputContract,
    Polynomial,
    RoundedLogits,
    TopClasses,
)
from privacy.inference_service import Caller, ServiceLimits
from privacy.mechanisms import (
    ClippingGeometry,
    DistributedGaussian,
    LatticeGaussian,
    MaskedGaussian,
    SeededRandomness,
    SiloGaussian,
    add_discrete_gaussian,
    add_gaussian,
    add_rounded_gaussian,
    centred_binomial,
    lattice_radius,
    round_with_gaussian,
    ternary,
)
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    FewSilos,
    RoundPlan,
    RoundTerms,
    plan_round,
)
from privacy.shared_inference import Address, WorkerLimits
from privacy.statistics import TableQuery, silo_statistics
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    DataPolicy,
    FullBatch,
    GradientDescent,
    NoisyCount,
    NominalCount,
    Persons,
    PoissonBatches,
    SiloStep,
    silo_sum,
    train,
)
from privacy.training.errors import LocalBudgetError
from strategies import (
    AdaptiveClipping,
    CappedWeights,
    DPFedAvg,
    FlatClipping,
    LocalEvaluation,
    Metrics,
    NoisedMetrics,
    PerLayerClipping,
    PublicMetrics,
    SecureAggregation,
    ServerAdam,
    ServerSGD,
    ServerYogi,
    run_in_process,
)
from strategies.encrypted_round import NoisedAccuracy, noised_accuracy
from tests.strategies.federation import client_app, model

Box = Callable[[Any], Any]
Named = Mapping[str, Any]

PACKAGES = (
    *(f"privacy.{name}" for name in ("accounting", "audit", "inference", "inference_service")),
    *(f"privacy.{name}" for name in ("mechanisms", "secure_aggregation", "shared_inference")),
    *("privacy.correlated_noise", "privacy.statistics", "privacy.training"),
    *("strategies", "strategies.encrypted_round", "strategies.secure_aggregation"),
)

RELEASE = GaussianRelease(1.0, Full())
POLICY = {"statistical_bits": 30, "queries": 4, "threshold": 0.5}
POLICY_OF_DATA = {
    **{"dataset": "ward-7", "max_epsilon": 2.0, "max_delta": 0.25, "max_clipping_norm": 0.5},
    **{"max_sampling_rate": 0.5, "min_silos": 4, "colluders": 2, "answer_seconds": 1.5},
}
ADAPTIVE = {"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.25, "tau": 0.5, "iterate_average": 0.5}
RANGES = {"loss": (0.0, 2.0)}
CLIPPED = {"clipping_norm": 1.0, "noise_multiplier": 2.0, "delta": 0.25}
LIMITS = {"queue": 4, "requests_per_minute": 5, "owners": 6, "key_sets": 7}
SECONDS = {"key_hours": 1.5, "head_seconds": 2.5, "body_seconds": 3.5}
SUM = {"variance": 4.0, "sensitivity": 8, "dimension": 3, "shares": 5, "honest": 4}
SILO_SUM = {"variance": 4.0, "sensitivity": 8, "dimension": 3, "silos": 5, "colluders": 1}
STEP = {"clipping_norm": 0.5, "noise_multiplier": 2.0, "sampling_rate": 0.25}
SECURE = {"min_clients": 3, "max_dropout_fraction": 0.25, "max_clients": 9}
ADAPTED = {"initial_norm": 0.5, "quantile": 0.5, "learning_rate": 0.25, "count_noise": 2.0}
TERMS = {"run": bytes(16), "number": 1, "size": 4, "bound": 8, "min_clients": 3}
PLANNED = {"clients": 5, "neighbours": 4, "threshold": 3, "min_survivors": 4, "cohort": 6}
SHARED = {"radius": 64, "min_clients": 5, "colluders": 1, "max_clients": 9}

# The settings that users make, with Python's numbers of binary fractions: all libraries hold them.
SETTINGS: dict[type, dict[str, Any]] = {
    Budget: {"epsilon": 3.0, "delta": 0.25},
    AdditiveDelta: {"delta": 0.25},
    DiscreteGaussianSum: {**SUM, "sampling": Full()},
    BandedMF: {"bands": 4, "radius": 64},
    BLT: {"buffers": 3, "radius": 64},
    CyclicGroups: {"groups": 4, "rate": 0.5},
    BandedFactor: {"numerators": (1 << 16, 5, 3)},
    BLTFactor: {"decays": (5, 3), "weights": (9, 8), "rows": 9, "separation": 3},
    GroupRelease: {"release": RELEASE, "instance": "a", "row": 3, "groups": 2},
    MinSeparation: {"rounds": 4, "at_most": 2},
    FixedSize: {"cohort": 5, "population": 10},
    GaussianRelease: {"noise_multiplier": 2.0, "sampling": Full()},
    Poisson: {"rate": 0.5},
    PrivacyCurve: {"points": ((1.0, 0.25), (0.5, 0.5))},
    Repeated: {"release": RELEASE, "times": 3},
    SiloSum: {**SILO_SUM, "sampling": Full()},
    ClassOnly: {"threshold": 0.5},
    EachLabel: {"threshold": 0.5},
    FloodedLogits: POLICY,
    RoundedLogits: {"decimals": 2, "threshold": 0.5},
    TopClasses: {"count": 2, "threshold": 0.5},
    InputContract: {
        "input_shape": (1, 4),
        "input_range": (0.0, 1.0),
        "classes": 3,
        "max_bytes": 99,
    },
    Caller: {"name": "ward-7", "role": "owner", "questions": 3},
    ServiceLimits: LIMITS | SECONDS,
    Address: {"host": "localhost", "port": 7441},
    WorkerLimits: {"connections": 4, "idle_seconds": 1.5, "patience": 2.5, "exchange_seconds": 3.5},
    ClippingGeometry: {"norms": (0.5, 2.0), "group_of": (0, 1, 1)},
    LatticeGaussian: {"radius": 64},
    MaskedGaussian: {"radius": 64},
    DistributedGaussian: SHARED,
    SiloGaussian: {"min_silos": 5, "colluders": 2, "radius": 64},
    RoundPlan: PLANNED,
    FewSilos: {"silos": 10, "colluders": 2, "absent": 1},
    Adversary: {"max_corrupt_fraction": 0.25},
    ClientPolicy: {"min_clients": 3, "clipping_norm": 0.5, "weight_cap": 2.0},
    RoundTerms: TERMS,
    ClipAndNoise: {**CLIPPED, "count": NominalCount(records=5)},
    ClipOnly: {"clipping_norm": 0.5},
    DataPolicy: POLICY_OF_DATA,
    FullBatch: {"steps": 3},
    NoisyCount: {"noise_multiplier": 2.0},
    NominalCount: {"records": 5},
    PoissonBatches: {"sampling_rate": 0.5, "steps": 3},
    TableQuery: {"bounds": ((0.0, 1.0), (-0.5, 2.0)), "classes": 3, "bins": 4},
    SiloStep: {**STEP, "mechanism": SiloGaussian(3), "persons": 20},
    AdaptiveClipping: ADAPTED,
    FlatClipping: {"norm": 0.5},
    PerLayerClipping: {"norms": {"a": 0.5, "b": 2.0}},
    LocalEvaluation: {"every": 3, "noise_multiplier": 2.0, "persons": 20},
    Metrics: {"fraction_evaluate": 0.5, "evaluate": PublicMetrics()},
    NoisedMetrics: {"ranges": RANGES, "noise_multiplier": 5.0},
    SecureAggregation: {**SECURE, "dropout_probability": 0.125, "stage_timeout": 2.5},
    ServerAdam: ADAPTIVE,
    ServerYogi: ADAPTIVE,
    ServerSGD: {"learning_rate": 0.5, "momentum": 0.5, "iterate_average": 0.5},
    CappedWeights: {"cap": 4.0, "total_weight": 8.0},
    NoisedAccuracy: {"epsilon": 1.0, "total_epsilon": 2.0, "delta": 0.25},
}
# Made by the library, from numbers that are its own.
RESULTS = {
    "RoundProgress",
    *("Position", "Record", "Attack", "AuditResult", "Certificate", "Answer", "Plan"),
    *("NoiseInstance", "Guarantee", "TrainingResult", "PrivacyReport", "PrivateResult"),
    *("SecureAggregationReport", "EncryptedRoundResult", "MaskedMechanism"),
    *("ReplacementReport", "SharedModel", "Provision", "Question", "Statistics"),
}


def noise(add: Callable[..., None], dtype: Any) -> Callable[..., Any]:
    """The noise that a function adds, from a fixed seed."""

    def added(**given: Any) -> Any:
        out = np.zeros(3, dtype)
        add(out, randomness=SeededRandomness(1), **given)
        return out.tolist()

    return added


def appended(**given: Any) -> Any:
    """A record, of a ledger's text."""
    text = LedgerText.start("p", Adjacency.ADD_OR_REMOVE_ONE).plus(RELEASE, run="r", **given)
    return text.contents.records[0].released, text.contents.records[0].round


IDLE_SERVER = ServerApp()


@IDLE_SERVER.main()
def rest(grid: Grid, context: Context) -> None:
    """Nobody is asked."""


LINEAR = torch.nn.Linear(4, 2)
UPDATE = [weights.detach().clone() for weights in LINEAR.parameters()]


def trained(**given: Any) -> Any:
    model = copy.deepcopy(LINEAR)
    train(
        model,
        (torch.ones(4, 4), torch.tensor([0, 1, 0, 1])),
        loss=torch.nn.functional.cross_entropy,
        optimizer=GradientDescent(model.parameters(), learning_rate=0.1),
        protection=ClipOnly(clipping_norm=1.0),
        batches=FullBatch(),
        ledger=None,
        **given,
    )
    return model.weight.tolist()


def summed_over_persons(**given: Any) -> Any:
    return silo_sum(
        LINEAR,
        Persons((torch.ones(4, 4), torch.tensor([0, 1, 0, 1]))),
        loss=torch.nn.functional.cross_entropy,
        step=SiloStep(mechanism=SiloGaussian(3), persons=20, **STEP),
        ledger=None,
        randomness=SeededRandomness(1),
        **given,
    ).tolist()


FLIPPED = np.arange(10) % 2 == 0
EVENTS = [GaussianRelease(2.0, Poisson(0.25))]
AUDITED = {"claimed_epsilon": 1.0, "delta": 0.25, "confidence": 0.5, "guesses": 4}
COUNTED = {"canaries": 20, "guesses": 10, "correct": 9}
GUESSED = {**COUNTED, "delta": 0.25}
SEARCH = {"label": 1, "steps": 2, "restarts": 1, "smoothness": 0.5, "seed": 3}
PLAN = {"clients": 20, "max_dropout_fraction": 0.25, "min_clients": 3, "cohort": 22}

# What takes numbers and is no setting: how it is called, and with which.
FUNCTIONS: dict[str, tuple[Callable[..., Any], Named]] = {
    "calibrate_noise_multiplier": (
        partial(calibrate_noise_multiplier, sampling=Full(), budget=Budget(3.0, 0.25)),
        {"rounds": 3},
    ),
    "calibrate_rounds": (
        partial(calibrate_rounds, sampling=Full(), budget=Budget(3.0, 0.25)),
        {"noise_multiplier": 4.0},
    ),
    "calibrate_sampling_rate": (
        partial(calibrate_sampling_rate, budget=Budget(3.0, 0.25)),
        {"noise_multiplier": 4.0, "rounds": 5},
    ),
    "epsilon": (partial(epsilon, EVENTS), {"delta": 0.25}),
    "gaussian_dp": (partial(gaussian_dp, EVENTS), {"delta": 0.25}),
    "joint_noise_multiplier": (
        lambda noise_multiplier: joint_noise_multiplier(noise_multiplier, 4.0),
        {"noise_multiplier": 2.0},
    ),
    "large_delta": (large_delta, {"delta": 0.25, "population": 10}),
    "plan_round": (partial(plan_round, adversary=Adversary()), PLAN),
    "lattice_radius": (lattice_radius, {"parameters": 10}),
    "round_with_gaussian": (noise(round_with_gaussian, np.int64), {"bits": 4, "sigma": 2.0}),
    "workload": (lambda **given: workload(**given).tolist(), {"rounds": 4, "momentum": 0.5}),
    "square_root": (lambda terms: square_root([1.0, 2.0], terms).tolist(), {"terms": 3}),
    "blt_factor": (
        lambda **given: blt_factor(**given).norm,
        {"buffers": 2, "rounds": 9, "momentum": 0.5, "separation": 3},
    ),
    "banded_coefficients": (
        lambda **given: banded_coefficients(**given).tolist(),
        {"bands": 2, "rounds": 5, "momentum": 0.5},
    ),
    "relative_error": (
        partial(relative_error, [1.0, 0.5], participation=MinSeparation(2)),
        {"rounds": 6, "momentum": 0.5},
    ),
    "sensitivity": (
        partial(sensitivity, [1.0, 0.5], participation=MinSeparation(2)),
        {"rounds": 6},
    ),
    "correlated_noise_p_values": (
        partial(correlated_noise_p_values, np.eye(3), [1.0, 0.5]),
        {"sigma": 2.0},
    ),
    "separation_p_value": (partial(separation_p_value, [{1}, {2}]), {"separation": 2}),
    "add_gaussian": (noise(add_gaussian, np.float64), {"sigma": 2.0}),
    "add_rounded_gaussian": (noise(add_rounded_gaussian, np.int64), {"sigma": 2.0}),
    "add_discrete_gaussian": (noise(add_discrete_gaussian, np.int64), {"variance": 4.0}),
    "centred_binomial": (
        lambda size: centred_binomial(size, SeededRandomness(1)).tolist(),
        {"size": 3},
    ),
    "ternary": (lambda size: ternary(size, SeededRandomness(1)).tolist(), {"size": 3}),
    "judge": (
        lambda **given: judge({"a": np.arange(10.0)}, FLIPPED, **given),
        {**AUDITED, "cohort_p_value": 0.5, "noise_p_value": 0.5},
    ),
    "audit": (
        lambda **given: audit(
            lambda coins: {"a": np.arange(10.0)}, randomness=SeededRandomness(1), **given
        ),
        {**AUDITED, "canaries": 10},
    ),
    "epsilon_lower_bound": (epsilon_lower_bound, {**GUESSED, "confidence": 0.5}),
    "mu_lower_bound": (mu_lower_bound, {**COUNTED, "confidence": 0.5}),
    "curve_p_value": (partial(curve_p_value, PrivacyCurve(((1.0, 1e-5),))), COUNTED),
    "privacy_curve": (partial(privacy_curve, EVENTS), {"delta": 0.25}),
    "p_value": (p_value, {**GUESSED, "epsilon": 1.0}),
    "independent_cohorts_p_value": (  # of one round, for otherwise it is simulated
        partial(independent_cohorts_p_value, [{1, 2}]),
        {"population": 10, "rate": 0.5},
    ),
    "poisson_cohort_p_value": (
        lambda sizes, **given: poisson_cohort_p_value([sizes, 4], **given),
        {"sizes": 3, "population": 10, "rate": 0.5},
    ),
    "little_noise_p_value": (partial(little_noise_p_value, [1.0, -2.0]), {"sigma": 2.0}),
    "one_hot_records": (
        lambda **given: one_hot_records(shape=(2, 2), **given).tolist(),
        {"count": 2, "height": 0.5},
    ),
    "invert_batch": (
        lambda **given: invert_batch(torch.eye(3), torch.ones(3), **given).tolist(),
        {"examples": 1, "tries": 4, "seed": 5},
    ),
    "match_gradient": (
        lambda **given: match_gradient(LINEAR, UPDATE, shape=(4,), **given).tolist(),
        SEARCH,
    ),
    "Ledger.append": (appended, {"round": 3, "released": 4}),
    "Polynomial": (
        lambda coefficients: Polynomial([0.5, coefficients]).coefficients.tolist(),
        {"coefficients": 0.25},
    ),
    "Polynomial.fitted": (
        lambda **given: Polynomial.fitted(torch.nn.ReLU(), **given).coefficients.tolist(),
        {"low": -1.0, "high": 2.0, "degree": 3},
    ),
    "run_in_process": (
        lambda **given: len(list(run_in_process(IDLE_SERVER, ClientApp(), **given).get_nodes())),
        {"num_nodes": 3},
    ),
    "train": (trained, {"physical_batch_size": 2}),
    "silo_statistics": (
        lambda noise_multiplier, persons: silo_statistics(
            TableQuery(bounds=[(0, 1)]),
            np.ones((3, 1)),
            mechanism=SiloGaussian(3),
            noise_multiplier=noise_multiplier,
            ledger=None,
            persons=persons,
            randomness=SeededRandomness(1),
        ).tolist(),
        {"noise_multiplier": 2.0, "persons": 20},
    ),
    "silo_sum": (summed_over_persons, {"physical_batch_size": 2}),
    "noised_accuracy": (noised_accuracy, {"noise_multiplier": 2.0}),
    "attack_advantage": (partial(attack_advantage, EVENTS), {"delta": 0.25}),
    "attack_success": (partial(attack_success, EVENTS), {"delta": 0.25, "false_alarm_rate": 0.125}),
    "presence_delta": (
        partial(presence_delta, sampling=Full(), opening=lambda *_: RoundPlan(5, 4, 3, 4, 6)),
        {"population": 10, "dropout_probability": 0.125, "max_clients": 12},
    ),
}
# Of what is listed in these folders only functions of numbers belong above; these need a model, a
# message or a whole run, and are tried beside it.
TRIED_ELSEWHERE = {
    "logit_bound",
    "from_sklearn",
    "from_onnx",
    "replace_activations",
    "PrivateData",
    "audit_training",
    "audit_silo_steps",
    "audit_strategy",
    "compile_model",
    "certify",
    "decide",
    "decide_each",
} | {
    "answer_encrypted_round",
}
UNHASHABLE = (AdaptiveClipping, ServerAdam, ServerYogi, ServerSGD, PerLayerClipping, NoisedMetrics)

BOXES: dict[str, Box] = {
    "NumPy scalar": lambda value: np.asarray(value)[()],
    "array": np.array,
    "tensor": lambda value: torch.tensor(value, dtype=_precise(value)),
}


def _precise(value: Any) -> torch.dtype:
    return torch.int64 if isinstance(value, int) else torch.float64


def boxed(value: Any, box: Box) -> Any:
    """Every number in a setting's value as ``box`` gives it."""
    if isinstance(value, bool) or not isinstance(value, int | float | tuple | dict):
        return value
    if isinstance(value, tuple):
        return tuple(boxed(entry, box) for entry in value)
    if isinstance(value, dict):
        return {name: boxed(entry, box) for name, entry in value.items()}
    return box(value)


def public_settings() -> set[type]:
    """The dataclasses with numbers that the packages list."""
    classes = {
        member
        for package in PACKAGES
        for member in vars(importlib.import_module(package)).values()
        if isinstance(member, type) and dataclasses.is_dataclass(member)
    }
    return {c for c in classes if any(_is_number(field) for field in dataclasses.fields(c))}


def _is_number(field: dataclasses.Field[Any]) -> bool:
    words = str(field.type)
    return field.init and ("int" in words or "float" in words)


def numbers_in(setting: Any) -> dict[str, Any]:
    return {field.name: getattr(setting, field.name) for field in dataclasses.fields(setting)}


def test_every_public_setting_is_listed() -> None:
    known = {kind.__name__ for kind in SETTINGS} | RESULTS | TRIED_ELSEWHERE
    assert {kind.__name__ for kind in public_settings()} <= known


@pytest.mark.parametrize("name", BOXES)
@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_hold_plain_numbers(kind: type, name: str) -> None:
    """Equal to those made of Python's numbers, to the last letter of their text."""
    given = SETTINGS[kind]
    plain, made = kind(**given), kind(**boxed(given, BOXES[name]))
    assert made == plain
    assert repr(numbers_in(made)) == repr(numbers_in(plain))  # np.float64(1.0) is not 1.0
    json.dumps(numbers_in(made), default=lambda other: type(other).__name__)
    if kind not in UNHASHABLE:
        assert hash(made) == hash(plain)


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_do_not_follow_the_arrays_they_were_given(kind: type) -> None:
    arrays: list[Any] = []

    def watched(value: Any) -> Any:
        arrays.append(np.array(value))
        return arrays[-1]

    made = kind(**boxed(SETTINGS[kind], watched))
    for array in arrays:
        array[...] = 77
    assert made == kind(**SETTINGS[kind])


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.__name__)
def test_settings_take_fractions_and_refuse_decimals(kind: type) -> None:
    """``Decimal`` is no ``numbers.Real``."""
    given = SETTINGS[kind]
    reals = boxed(given, lambda value: Fraction(value) if isinstance(value, float) else value)
    assert repr(numbers_in(kind(**reals))) == repr(numbers_in(kind(**given)))
    with pytest.raises(TypeError):
        kind(**boxed(given, lambda value: Decimal(value)))


@pytest.mark.parametrize("box", [*BOXES.values(), float], ids=[*BOXES, "float"])
def test_no_limit_is_infinity_of_any_library(box: Box) -> None:
    assert repr(Budget(box(math.inf), 0.25)) == "Budget(epsilon=inf, delta=0.25)"


def is_number(parameter: inspect.Parameter) -> bool:
    """Whether a parameter may be a number, as of ``float | None``."""
    kind = parameter.annotation
    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    return any(each in (int, float) for each in kinds)


def test_every_public_function_of_numbers_is_listed() -> None:
    functions = {
        name: member
        for package in PACKAGES
        for name, member in vars(importlib.import_module(package)).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }
    of_numbers = {
        name
        for name, function in functions.items()
        if any(map(is_number, inspect.signature(function).parameters.values()))
    }
    assert of_numbers <= set(FUNCTIONS) | TRIED_ELSEWHERE


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", BOXES)
def test_functions_take_numbers_of_any_library(name: str, function: str) -> None:
    call, given = FUNCTIONS[function]
    assert repr(call(**boxed(given, BOXES[name]))) == repr(call(**given))


NONE_OF_THEM = (True, np.array(True), "3", b"3", Decimal(3), [3], math.nan, 1j, 10**400)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_refuse_what_is_no_number_by_its_name(function: str) -> None:
    call, given = FUNCTIONS[function]
    for name in given:
        for wrong in NONE_OF_THEM:
            with pytest.raises((TypeError, ValueError), match=f"^{name} "):
                call(**{**given, name: wrong})


def test_a_budget_cannot_be_raised_afterwards() -> None:
    epsilon = np.array(0.5)
    ledger = ClientLedger(dataset="d", budget=Budget(epsilon, 1e-5))  # type: ignore[arg-type]
    epsilon[...] = 1e6
    with pytest.raises(LocalBudgetError):
        ledger.charge(GaussianRelease(1.0, Full()))


@pytest.mark.parametrize("name", BOXES)
def test_a_run_takes_numbers_of_any_library(name: str, tmp_path: Path) -> None:
    box, plain = BOXES[name], client_app(lambda *_: [np.float32(0.1)])
    reports = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        strategy = DPFedAvg(
            population=box(4),
            sampling=Poisson(box(0.5)),
            clipping=box(0.5),
            noise_multiplier=box(2.0),
            budget=Budget(box(50.0), box(0.001)),
            weighting=CappedWeights(cap=box(4.0), total_weight=box(3.0)),
            mechanism=LatticeGaussian(box(64)),
            optimizer=ServerAdam(box(0.5), beta1=box(0.5), iterate_average=box(0.5)),
            metrics=Metrics(
                train=NoisedMetrics(**boxed(SETTINGS[NoisedMetrics], box)),
                evaluate=NoisedMetrics(**boxed(SETTINGS[NoisedMetrics], box)),
                fraction_evaluate=box(0.5),
            ),
            ledger=tmp_path / "ledger",
            min_available_nodes=box(2),
        )
        result = strategy.start(grid, model(), num_rounds=box(1), timeout=box(60.0))
        reports.append(result.privacy)

    run_in_process(server, plain, num_nodes=4)
    assert reports[0].rounds == 1
    json.dumps(dataclasses.asdict(reports[0]), default=str)
