"""A run of which nothing is seen but its noise: whether there is as much as the ledger claims."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid

from privacy.accounting import CyclicGroups
from privacy.audit import correlated_noise_p_values, little_noise_p_value, separation_p_value
from privacy.audit.correlated import SEPARATION
from privacy.audit.experiment import LESS_NOISE
from privacy.correlated_noise import CorrelatedMechanism
from privacy.mechanisms import DistributedGaussian
from privacy.secure_aggregation import Identity
from strategies.accounted_strategy import AccountedStrategy
from strategies.canary_clients import CountingGrid, protocol_mods
from strategies.clipping import AdaptiveClipping
from strategies.dp_fedavg import DPFedAvg
from strategies.secure_aggregation import SecureAggregationMod


def noise_alone(
    strategy: DPFedAvg,
    arrays: ArrayRecord,
    *,
    nodes: int,
    rounds: int,
    identities: Sequence[Identity] = (),
) -> dict[str, float]:
    """P-values of a run whose clients move nothing: of its noise, and with turns of these.

    Of an adaptive norm nothing is said: it moves before its round's noise is seen here.
    """
    mechanism, sampling = strategy.mechanism, strategy.sampling
    if isinstance(strategy.clipping, AdaptiveClipping):
        return {}
    mods = protocol_mods(strategy, identities, nodes=nodes)
    grid = CountingGrid(_still_clients(strategy, mods), nodes, strategy)
    rows = updates_of_rounds(strategy, grid, arrays, rounds=rounds)
    rows *= strategy.denominator / strategy.clipping.norm
    if isinstance(mechanism, CorrelatedMechanism) and isinstance(sampling, CyclicGroups):
        momentum = float(getattr(strategy.optimizer, "momentum", 0.0))
        factor = mechanism.factor(rounds=rounds, momentum=momentum, groups=sampling.groups)
        return {
            **correlated_noise_p_values(
                rows, factor.coefficients, sigma=strategy.noise_multiplier * factor.norm
            ),
            SEPARATION: separation_p_value(
                [grid.cohorts.get(number, set()) for number in range(1, rounds + 1)],
                separation=sampling.groups,
            ),
        }
    claimed = strategy.noise_multiplier * _shares(strategy, rows[0].size if len(rows) else 1)
    return {LESS_NOISE: little_noise_p_value(rows, sigma=claimed)} if len(rows) and claimed else {}


def _still_clients(strategy: DPFedAvg, mods: Sequence[SecureAggregationMod]) -> ClientApp:
    """Clients that send the model back as it came, so that a round is noise alone."""
    keys = strategy.record_keys

    def still(message: Message, context: Context) -> Message:
        arrays = message.content.array_records[keys.arrays]
        metrics = MetricRecord({keys.weighted_by: 1.0})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    def masked(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        return mods[int(context.node_config["partition-id"])](message, context, call_next)

    app = ClientApp(mods=[masked] if mods else [])
    app.train()(still)
    return app


def updates_of_rounds(
    strategy: AccountedStrategy, grid: Grid, arrays: ArrayRecord, *, rounds: int
) -> npt.NDArray[np.float64]:
    """The noisy averages that a run's optimizer steps along, (rounds that opened, parameters)."""
    steps: list[npt.NDArray[np.float64]] = []
    optimizer = strategy.optimizer
    inner = optimizer.step

    def step(model: Sequence[Any], update: Sequence[Any]) -> list[Any]:
        steps.append(np.concatenate([np.ravel(u).astype(np.float64) for u in update]))
        return inner(model, update)

    optimizer.step = step  # type: ignore[method-assign, assignment]
    strategy.start(grid, arrays, num_rounds=rounds)
    return np.array(steps)


def _shares(strategy: DPFedAvg, parameters: int) -> float:
    """How many times z the noise of a released sum is: with shares of clients more than once."""
    secure = strategy.secure_aggregation
    mechanism = None if secure is None else secure.mechanism(parameters)
    if not isinstance(mechanism, DistributedGaussian):
        return 1.0
    return math.sqrt(mechanism.max_clients / mechanism.honest)
