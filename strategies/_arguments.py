"""Checks of a strategy's arguments: their kinds, and their combinations."""

import math
from typing import cast, get_args

from privacy import arguments
from privacy.accounting import (
    Accountant,
    Adjacency,
    Budget,
    CyclicGroups,
    Event,
    FixedSize,
    Sampling,
)
from privacy.correlated_noise import CorrelatedMechanism
from privacy.mechanisms import LatticeGaussian, Randomness
from strategies.checkpoint import Checkpointing
from strategies.clipping import AdaptiveClipping, Clipping, FlatClipping
from strategies.metrics import Metrics, NoisedMetrics
from strategies.replies import RecordKeys
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.train_round import RoundSetup
from strategies.weighting import CappedWeights, UniformWeights

_BUDGET = "budget=Budget(epsilon=…, delta=…)"
_METRICS = "metrics=Metrics(evaluate=…, fraction_evaluate=…)"
_CHECKPOINTING = "checkpointing=Checkpointing(path, resume=…)"
_CLIPPING = "clipping=…, the norm S"
_SAMPLING = "sampling=Poisson(q), or FixedSize(m, N)"
_NOISE = "noise_multiplier=z, or nothing: it follows from the budget"
_NO_MINIMUM = "min_available_nodes, for which the whole round waits"
# Arguments of another name: here before, in Flower's strategies and wrappers, or in Opacus.
OLD_NAMES = {
    "target_epsilon": _BUDGET,
    "target_delta": _BUDGET,
    "accountant": "nothing: it follows from the sampling",
    "iterate_average": "optimizer=ServerSGD(iterate_average=…)",
    "train_metrics": "metrics=Metrics(train=…)",
    "evaluate_metrics": _METRICS,
    "fraction_evaluate": _METRICS,
    "checkpoint": _CHECKPOINTING,
    "resume": _CHECKPOINTING,
    "arrayrecord_key": "record_keys=RecordKeys(arrays=…)",
    "configrecord_key": "record_keys=RecordKeys(config=…)",
    "weighted_by_key": "record_keys=RecordKeys(weighted_by=…)",
    "fraction_train": "sampling=Poisson(q)",
    "fraction_fit": "sampling=Poisson(q)",
    "sampling_rate": _SAMPLING,
    "sample_rate": _SAMPLING,
    "num_sampled_clients": _SAMPLING,
    "num_clients": "population=…",
    "num_nodes": "population=…",
    "clipping_norm": _CLIPPING,
    "max_grad_norm": _CLIPPING,
    "l2_norm_clip": _CLIPPING,
    "noise_scale": _NOISE,
    "sigma": _NOISE,
    "epsilon": _BUDGET,
    "delta": _BUDGET,
    "server_learning_rate": "optimizer=ServerSGD(…)",
    "server_momentum": "optimizer=ServerSGD(momentum=…)",
    "min_train_nodes": _NO_MINIMUM,
    "min_evaluate_nodes": _NO_MINIMUM,
    "train_metrics_aggr_fn": "metrics=Metrics(train=PublicMetrics(…) or NoisedMetrics(…))",
    "evaluate_metrics_aggr_fn": "metrics=Metrics(evaluate=PublicMetrics(…) or NoisedMetrics(…))",
}
_OPTIMIZERS = "ServerSGD(...), ServerAdam(...) or ServerYogi(...), not an optimizer of PyTorch"


def check_kinds(
    *, sampling: object, clipping: object, budget: object, reserve: object, **given: object
) -> None:
    """Refuse arguments of the wrong kind by name, before anything is opened or spent."""
    rules = (
        "Poisson(q), where FedAvg has fraction_train=q, FixedSize(m, N), Full() or CyclicGroups(b)"
    )
    arguments.of_kind("sampling", sampling, (*get_args(Sampling), CyclicGroups), rules)
    clipping_rule(clipping)
    limit = "Budget(epsilon=3.0, delta=1e-5), with epsilon=math.inf for no limit"
    arguments.of_kind("budget", budget, (Budget,), limit)
    events = "a sequence of events of privacy.accounting, as EncryptedRound.event in a list"
    arguments.of_kind("reserve", reserve, (list, tuple), events)
    for event in reserve:  # type: ignore[attr-defined]
        arguments.of_kind("reserve", event, get_args(Event), events)
    kind: type
    for name, kind, give in (
        ("metrics", Metrics, "Metrics(train=..., evaluate=...), or leave it out"),
        ("checkpointing", Checkpointing, "Checkpointing(path, resume=...), or leave it out"),
        ("record_keys", RecordKeys, "RecordKeys(arrays=...), or leave it out"),
        ("secure_aggregation", SecureAggregation, "SecureAggregation(min_clients=...) or nothing"),
        ("randomness", Randomness, "a Randomness of privacy.mechanisms, or leave it out"),
    ):
        arguments.of_kind(name, given[name], (kind, type(None)), give)
    for name, members, give in (
        ("weighting", ("weight", "total"), "UniformWeights() or CappedWeights(...)"),
        (
            "mechanism",
            ("name", "open", "account"),
            "LatticeGaussian(), ContinuousGaussian(), BandedMF(bands) or BLT()",
        ),
    ):
        if given[name] is not None:
            arguments.has(name, given[name], members, give)
    if given["optimizer"] is not None:
        check_optimizer(given["optimizer"])


def check_optimizer(optimizer: object) -> None:
    """Refuse what is no server optimizer."""
    arguments.has("optimizer", optimizer, ("step", "state_dict", "load_state_dict"), _OPTIMIZERS)
    arguments.called_with("optimizer", optimizer.step, 2, _OPTIMIZERS)  # type: ignore[attr-defined]


def check_on_round(on_round: object) -> None:
    """Refuse what cannot be told of a round."""
    if on_round is not None:
        give = "a function of a RoundProgress, TensorBoardWriter(folder) for one, or leave it out"
        arguments.called_with("on_round", on_round, 1, give)


def clipping_rule(clipping: object) -> Clipping:
    """The rule; a number is the norm of a flat one."""
    norms = "the norm S as a number, PerLayerClipping({...}) or AdaptiveClipping(...)"
    if not hasattr(clipping, "geometry"):
        return FlatClipping(arguments.number("clipping", clipping, give=norms))
    arguments.has("clipping", clipping, ("norm", "geometry"), norms)
    return cast("Clipping", clipping)


def guarantee(sampling: Sampling | CyclicGroups) -> tuple[Adjacency, Accountant]:
    """The adjacency of the guarantee, and the tightest accountant that can express the sampling."""
    if isinstance(sampling, FixedSize):
        return Adjacency.REPLACE_ONE, "rdp"
    return Adjacency.ADD_OR_REMOVE_ONE, "pld"


def noise_multiplier(z: float | None, budget: Budget) -> float | None:
    """Z where it is given; it or an ε to calibrate it from is needed."""
    if z is None and budget.epsilon == math.inf:
        raise ValueError(
            "noise_multiplier is not set and budget.epsilon is inf; give the noise, or the ε from "
            "which start() calibrates it"
        )
    return None if z is None else arguments.number("noise_multiplier", z)


def available_nodes(wanted: int, size: int) -> int:
    """The number of nodes for which a round waits, at most the population."""
    wanted = arguments.whole("min_available_nodes", wanted, least=0)
    if wanted > max(size, 2):
        raise ValueError(
            f"min_available_nodes is {wanted}, more than the population of {size}; no round "
            "would ever begin"
        )
    return min(wanted, size)


def check_accounted_by_replacement(clipping: Clipping, metrics: Metrics) -> None:
    """Refuse settings that are accounted under add or remove one client only."""
    if isinstance(clipping, AdaptiveClipping):
        raise ValueError(
            "adaptive clipping is not accounted for a cohort of fixed size; use Poisson "
            "sampling or a fixed norm"
        )
    if metrics.sampling and isinstance(metrics.evaluate, NoisedMetrics):
        raise ValueError(
            "noised evaluation metrics are not accounted beside a cohort of fixed size; use "
            "Poisson sampling, or set metrics.fraction_evaluate to 0"
        )


def check_needs_no_single_reply(
    secure: SecureAggregation, clipping: Clipping, setup: RoundSetup
) -> None:
    """Refuse settings under which the server would need a single client's reply."""
    mechanism, weighting, metrics = setup.mechanism, setup.weighting, setup.metrics
    if not isinstance(mechanism, LatticeGaussian | CorrelatedMechanism):
        raise ValueError(
            f"mechanism is {mechanism.name!r}; secure aggregation adds up integers: "
            "leave it at LatticeGaussian()"
        )
    if not isinstance(weighting, UniformWeights | CappedWeights):
        raise ValueError(
            f"weighting is {type(weighting).__name__}; under secure aggregation clients "
            "weigh themselves by UniformWeights() or CappedWeights(...)"
        )
    if isinstance(clipping, AdaptiveClipping):
        raise ValueError(
            "clipping is adaptive, which counts who was clipped; secure aggregation opens "
            "nothing but the sum: give a fixed norm"
        )
    if metrics.train is not None:
        raise ValueError(
            "metrics.train is set; under secure aggregation clients send no metrics: leave it unset"
        )
    if metrics.fraction_evaluate:
        raise ValueError(
            f"metrics.fraction_evaluate is {metrics.fraction_evaluate}; evaluation would send "
            "metrics in the clear beside secure aggregation: set it to 0 and use evaluate_fn"
        )
    if setup.expected_cohort < secure.min_clients:
        raise ValueError(
            f"secure_aggregation.min_clients is {secure.min_clients}, but a round draws "
            f"{setup.expected_cohort:g} clients on average: lower it, or draw more"
        )
    secure.check_opens(setup.expected_cohort)
