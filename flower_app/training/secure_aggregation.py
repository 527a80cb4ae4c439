"""Secure aggregation in this app: the server's request, and a client's conditions."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.clientapp.typing import ClientAppCallable

from flower_app.errors import wrong
from flower_app.settings import SECURE_AGGREGATION, Settings
from flower_app.training.node_policy import check_keys, own_folder, run_settings
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    ServerModel,
)
from strategies import (
    ClientMemory,
    ContextMemory,
    FolderMemory,
    SecureAggregation,
    SecureAggregationMod,
)

_KEY_BYTES = 32
# Keys that serve secure aggregation only: the first that is there asks for it.
_CURIOUS_KEYS = ("min-clients", "clipping-norm", "weight-cap", "max-corrupt-fraction")
_MALICIOUS_KEYS = ("client-public-keys", "signing-key")


def server_setting(settings: Settings, size: int) -> SecureAggregation | None:
    """The strategy's argument; None where secure aggregation is off."""
    if settings.secure_aggregation == "off":
        return None
    adversary = _adversary(settings.secure_aggregation, settings.max_corrupt_fraction)
    client_public_keys: tuple[bytes, ...] = ()
    if adversary.server is ServerModel.MALICIOUS:
        client_public_keys = (
            _read_keys("client-public-keys", settings.client_public_keys)
            if settings.deployed
            else simulated_public_keys(size)
        )
    return SecureAggregation(
        min_clients=settings.min_clients,
        adversary=adversary,
        max_dropout_fraction=settings.max_dropout_fraction,
        dropout_probability=settings.dropout_probability,
        noise_placement="distributed" if settings.noise_placement == "distributed" else "central",
        max_clients=settings.max_clients or None,
        client_public_keys=client_public_keys,
        stage_timeout=settings.round_timeout,
    )


def secagg_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The app's mod: secure aggregation as this client wants it, or the app alone."""
    settings = run_settings(context)
    # A silo's answers are under secure aggregation already, as its owner's policy wants it.
    own = None if settings.has_silos else _own(settings, context)
    if own is None:
        return call_next(message, context)
    return SecureAggregationMod(own.policy, identity=own.identity, memory=own.memory)(
        message, context, call_next
    )


@dataclass(frozen=True)
class _Own:
    policy: ClientPolicy
    identity: Identity | None
    memory: ClientMemory


def _own(settings: Settings, context: Context) -> _Own | None:
    """The client's conditions: its node's, or in a simulation, which protects nobody, the run's.

    Raises
    ------
    SettingError
        If a key of a deployed node is missing or wrong.
    """
    node: Mapping[str, Any] = context.node_config
    check_keys(node)
    mode = _own_mode(node, settings)
    if mode == "off":
        return None
    if not settings.deployed:
        adversary = _adversary(mode, settings.max_corrupt_fraction)
        identity: Identity | None = None
        pinned: tuple[bytes, ...] = ()
        if adversary.server is ServerModel.MALICIOUS:
            identity = simulated_identity(int(node["partition-id"]))
            pinned = simulated_public_keys(int(node["num-partitions"]))
        policy = ClientPolicy(settings.min_clients, adversary, pinned)
        return _Own(policy, identity, ContextMemory())
    minimum = _needed(
        node, "min-clients", "the fewest clients in whose sum it takes part", _asking_key(node)
    )
    # Without the owner's key: the run's fraction, but at least the default.
    usual = max(Adversary().max_corrupt_fraction, settings.max_corrupt_fraction)
    adversary = _adversary(mode, float(node.get("max-corrupt-fraction", usual)))
    memory = FolderMemory(own_folder(node, "state-dir", "a folder of its own for its secrets"))
    # Without these keys: as the round asks of all clients.
    norm, cap = (
        float(node[name]) if name in node else None for name in ("clipping-norm", "weight-cap")
    )
    if adversary.server is ServerModel.HONEST_BUT_CURIOUS:
        policy = ClientPolicy(minimum, adversary, clipping_norm=norm, weight_cap=cap)
        return _Own(policy, None, memory)
    file = _needed(node, "signing-key", "the file of its private key")
    private, *more = _read_keys("signing-key", file)
    if more:
        raise wrong(
            "signing-key",
            file,
            f"it must hold this node's private key alone, and holds {1 + len(more)} keys",
        )
    listed = _needed(node, "client-public-keys", "the file of all clients' public keys")
    pinned = _read_keys("client-public-keys", listed)
    policy = ClientPolicy(minimum, adversary, pinned, clipping_norm=norm, weight_cap=cap)
    return _Own(policy, Identity(private), memory)


def _own_mode(node: Mapping[str, Any], settings: Settings) -> str:
    """The run's mode, but never weaker than the owner's, or than the owner's other keys imply.

    A node with ``min-clients`` has its update hidden among so many, one that pins how updates are
    bounded or says how many collude can be kept to that nowhere else, and one with pinned
    ``client-public-keys`` wants all of it against a malicious server.
    """
    least = "off"
    asking = _asking_key(node)
    if asking in _CURIOUS_KEYS:
        least = ServerModel.HONEST_BUT_CURIOUS.value
    if asking in _MALICIOUS_KEYS:
        least = ServerModel.MALICIOUS.value
    least = node.get("secure-aggregation", least)
    return max(str(least), settings.secure_aggregation, key=SECURE_AGGREGATION.index)


def _asking_key(node: Mapping[str, Any]) -> str | None:
    """The owner's key that asks for the strongest mode."""
    return next((key for key in _MALICIOUS_KEYS + _CURIOUS_KEYS if key in node), None)


def simulated_identity(partition: int) -> Identity:
    """A key that everybody can derive: a simulation has nobody to protect."""
    seed = f"a simulated client's identity, not secret: {partition}"
    return Identity(hashlib.sha256(seed.encode()).digest())


@cache
def simulated_public_keys(clients: int) -> tuple[bytes, ...]:
    """The public keys of all simulated clients."""
    return tuple(simulated_identity(partition).public for partition in range(clients))


def _adversary(mode: str, corrupt: float) -> Adversary:
    return Adversary(ServerModel(mode), corrupt)


def _needed(node: Mapping[str, Any], name: str, purpose: str, asking: str | None = None) -> Any:
    value = node.get(name, "")
    if value == "":
        why = f", which its {asking} asks for," if asking else ""
        raise wrong(
            name,
            "",
            f"for secure aggregation{why} a node needs {purpose}: start this "
            f"SuperNode with --node-config '{name}=...'",
        )
    return value


def _read_keys(name: str, file: str) -> tuple[bytes, ...]:
    """Ed25519 keys from a file, each on a line of its own, in hexadecimal."""
    if not file:
        raise wrong(
            name, "", "it must be the file of all clients' public keys, in hexadecimal, one a line"
        )
    try:
        lines = Path(file).expanduser().read_text().split()
        keys = tuple(bytes.fromhex(line) for line in lines)
    except (OSError, ValueError, RuntimeError) as error:
        raise wrong(name, file, str(error)) from error
    if not keys or any(len(key) != _KEY_BYTES for key in keys):
        raise wrong(
            name, file, f"it must hold keys of {_KEY_BYTES} bytes in hexadecimal, one a line"
        )
    return keys
