"""A silo's side of a run: the policy of its records' owner, and its answers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from flwr.app import Context, Message

from flower_app.errors import DeclinedError
from flower_app.settings import Settings
from flower_app.training.node_policy import OWN_PREFIX, simulated_place, wrong_key
from flower_app.training.silos import unit
from flower_app.training.work import check_same_task
from privacy.imports import needing
from privacy.training import DataPolicy
from strategies import SiloTask, answer_silo

POLICY = "policy"
# All that a silo's owner configures; the limits stand in the policy's file.
_KEYS = frozenset({POLICY, "task", "data-dir", "test-dir", "partition-id", "num-partitions"})


def check_mode(node: Mapping[str, Any], settings: Settings) -> None:
    """Hold a deployed node to the mode that its owner chose by ``policy``.

    Raises
    ------
    DeclinedError
        If the run is of the other mode.
    SettingError
        If a key of the other mode stands beside ``policy``, where nobody would enforce it.
    """
    if POLICY in node:
        for key, value in node.items():
            if key not in _KEYS and not key.startswith(OWN_PREFIX):
                raise wrong_key(
                    key, value, "left out beside policy, whose file has the limits of this node"
                )
    if (POLICY in node) is not settings.has_silos:
        mode = "silos" if POLICY in node else "clients"
        raise DeclinedError(f"this node takes part in runs with mode = {mode!r} alone")


def answer(message: Message, context: Context, settings: Settings) -> Message:
    """Answer a message of a run over silos.

    A deployed node's policy is its owner's file; a simulated silo, which protects nobody, allows
    what the run asks for.
    """
    check_same_task(message, settings)
    task = partial(_task, settings, context)
    if settings.deployed:
        return answer_silo(message, context, task=task, policy=str(context.node_config[POLICY]))
    _, silo = simulated_place(context)
    policy = DataPolicy(
        dataset=f"{settings.dataset}, partition {silo}",
        max_epsilon=settings.epsilon,
        max_delta=settings.delta,
        unit=unit(settings),
        colluders=settings.colluders,
        min_silos=max(3, 2 * settings.colluders),
    )
    return answer_silo(message, context, task=task, policy=policy)


def _task(settings: Settings, context: Context) -> SiloTask:
    """Asked for by messages that need records, and PyTorch: the others are most of them."""
    with needing("the app", extra="app"):
        from flower_app.training.silo_records import silo_task

    return silo_task(settings, context)
