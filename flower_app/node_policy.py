"""What the owner of a node allows, whatever a run asks for."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flwr.app import Context

from flower_app.settings import SettingError, Settings
from privacy.accounting import Budget
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, NoisyCount

_LEDGER = "record-ledger.jsonl"
_LEDGER_BEFORE = "record-ledger.json"  # of earlier versions; `ClientLedger` says what to do with it

NODE_KEYS = (
    "data-dir",
    "state-dir",
    "test-dir",
    "dataset-name",
    "max-record-epsilon",
    "max-record-delta",
    "min-record-noise",
    "allow-unnoised-training",
    "report-epsilon",
    "report-total-epsilon",
    "publish-report",
    "secure-aggregation",
    "minimum-cohort",
    "corrupt",
    "clipping-norm",
    "weight-cap",
    "identity",
    "identities",
    "partition-id",
    "num-partitions",
)


class Declined(Exception):
    """The node does not do what the run asks. The message says why, and may travel to the server.

    It follows from the run's own settings and the owner's word alone, and holds no number of the
    owner's.

    Parameters
    ----------
    reason : str
        What the server is told.
    for_owner : str
        What the node's own log says beside it.
    """

    def __init__(self, reason: str, for_owner: str = "") -> None:
        super().__init__(reason)
        self.for_owner = f"{reason} ({for_owner})" if for_owner else reason


def is_deployed(context: Context) -> bool:
    """Whether this is a node with an owner: it, or the run, says so."""
    return "data-dir" in context.node_config or bool(context.run_config.get("deployed"))


def run_settings(context: Context) -> Settings:
    """The run's settings, as a node takes them.

    Raises
    ------
    Declined
        If they are wrong, or call a node that has data of its own a simulated one.
    """
    try:
        settings = Settings.of_client(context.run_config)
    except SettingError as error:
        raise Declined(str(error)) from error
    if is_deployed(context) and not settings.deployed:
        raise Declined("deployed = False is wrong; this node is no simulated one")
    return settings


@dataclass(frozen=True)
class NodePolicy:
    """What stands in a node's ``--node-config`` about its records.

    A run may ask for more protection than this, never for less.

    Attributes
    ----------
    dataset : str
        ``dataset-name``: the data's name in the node's ledger. By default its folder.
    state : Path
        ``state-dir``: where the ledger is.
    limit : Budget
        ``max-record-epsilon`` and ``max-record-delta``: what all runs together may spend of a
        record.
    least_noise : float
        ``min-record-noise``: the smallest noise multiplier of a training step, and of a count.
    allow_unnoised : bool
        ``allow-unnoised-training``: whether a run may train without record-level noise at all.
    """

    dataset: str
    state: Path
    limit: Budget
    least_noise: float
    allow_unnoised: bool

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """Read a node's configuration.

        Raises
        ------
        SettingError
            If something is missing, wrong, or almost the name of a key.
        """
        for key in config:
            near = difflib.get_close_matches(key.replace("_", "-"), NODE_KEYS, n=1, cutoff=0.8)
            if near and key not in NODE_KEYS:
                raise wrong_key(key, config[key], f"written {near[0]}")
        data = own_folder(config, "data-dir", "this node's data")
        state = own_folder(config, "state-dir", "the folder of this node's own ledgers")
        name = config.get("dataset-name", str(data))
        if not (isinstance(name, str) and name.strip()):
            raise wrong_key("dataset-name", name, "a name for where this node's data comes from")
        delta = _number(config, "max-record-delta", 1e-5)
        if not 0 < delta < 1:
            raise wrong_key("max-record-delta", delta, "a number strictly between 0 and 1")
        epsilon = _number(config, "max-record-epsilon", 3.0)
        if epsilon <= 0:
            raise wrong_key("max-record-epsilon", epsilon, "a positive number")
        noise = _number(config, "min-record-noise", 0.0)
        if noise < 0:
            raise wrong_key("min-record-noise", noise, "a number of at least 0")
        unnoised = config.get("allow-unnoised-training", False)
        if not isinstance(unnoised, bool):
            raise wrong_key("allow-unnoised-training", unnoised, "true or false")
        return cls(name.strip(), state, Budget(epsilon, delta), noise, unnoised)

    def check(self, protection: ClipOnly | ClipAndNoise, settings: Settings) -> None:
        """Decline a run that protects records less than the owner wants.

        Raises
        ------
        Declined
            Naming the run's setting.
        """
        if isinstance(protection, ClipOnly):
            if not self.allow_unnoised:
                raise _too_weak("record-epsilon = 0.0", "allow-unnoised-training = false")
            return
        if settings.record_epsilon > self.limit.epsilon:
            asked = f"record-epsilon = {settings.record_epsilon}"
            raise _too_weak(asked, f"max-record-epsilon = {self.limit.epsilon}")
        if settings.record_delta > self.limit.delta:
            asked = f"record-delta = {settings.record_delta}"
            raise _too_weak(asked, f"max-record-delta = {self.limit.delta}")
        noise = {"each step": protection.noise_multiplier}
        if isinstance(protection.count, NoisyCount):
            noise["the number of records"] = protection.count.noise_multiplier
        for name, multiplier in noise.items():
            if multiplier < self.least_noise:
                asked = f"a noise multiplier of {multiplier:.4g} for {name}"
                raise _too_weak(asked, f"min-record-noise = {self.least_noise}")

    def ledger(self, settings: Settings) -> ClientLedger:
        """The ledger of the node's data, with the run's budget, which the owner's contains.

        A use without noise is written there too: it is infinite, and no budget allows what
        follows.

        Raises
        ------
        LedgerError
            If it is damaged, of an earlier version, or another data set's.
        """
        before = self.state / _LEDGER_BEFORE
        budget = (
            Budget(settings.record_epsilon, settings.record_delta)
            if settings.record_epsilon
            else None
        )
        return ClientLedger(
            dataset=self.dataset,
            budget=budget,
            path=before if before.exists() else self.state / _LEDGER,
        )


def _too_weak(asked: str, limit: str) -> Declined:
    return Declined(
        f"the run asks for {asked}, which protects records less than the owner of this node allows",
        f"--node-config has {limit}",
    )


def own_folder(config: Mapping[str, Any], key: str, what: str) -> Path:
    """A folder that the owner names in ``--node-config``, which may begin with ~.

    Raises
    ------
    SettingError
        If it is not named.
    """
    folder = str(config.get(key, ""))
    if not folder:
        raise SettingError(
            f"{key} = '' is wrong; start this SuperNode with "
            f"--node-config '{key}=\"/path/to/{what.replace(' ', '-')}\"'"
        )
    return Path(folder).expanduser().resolve()


def _number(config: Mapping[str, Any], key: str, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise wrong_key(key, value, "a finite number")
    return float(value)


def wrong_key(key: str, value: object, what: str) -> SettingError:
    """What a node's owner is told of a key."""
    return SettingError(
        f"{key} = {value!r} in this node's --node-config is wrong; it must be {what}"
    )
