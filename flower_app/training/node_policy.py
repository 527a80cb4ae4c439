"""The limits of a node's owner, whatever a run asks for."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from flwr.app import Context

from flower_app.errors import DeclinedError, SettingError
from flower_app.settings import Settings
from flower_app.training.node_config import check_keys, own_folder
from privacy.accounting import Budget
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, NoisyCount

# All that Flower's simulation configures of a node.
_SIMULATED = frozenset({"partition-id", "num-partitions"})
_LEDGER = "record-ledger.jsonl"
_LEDGER_BEFORE = "record-ledger.json"  # of earlier versions; `ClientLedger` says what to do with it


def is_deployed(context: Context) -> bool:
    """Whether the node has an owner: its configuration is not a simulation's, or ``deployed``."""
    return bool(context.run_config.get("deployed")) or set(context.node_config) != _SIMULATED


def run_settings(context: Context) -> Settings:
    """The run's settings, as a node takes them.

    Raises
    ------
    DeclinedError
        If they are wrong, or call a node that has data of its own a simulated one.
    """
    deployed = is_deployed(context)
    try:
        settings = Settings.of_client(context.run_config, deployed=deployed)
    except SettingError as error:
        raise DeclinedError(str(error)) from error
    if deployed and not settings.deployed:
        raise DeclinedError("deployed = False is wrong; this node is no simulated one")
    return settings


@dataclass(frozen=True)
class NodePolicy:
    """The limits of ``--node-config`` for a node's records.

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
        ``min-record-noise-multiplier``: the least of a training step, and of a count.
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
            If something is missing, wrong, or not a key.
        """
        check_keys(config)
        data = own_folder(config, "data-dir", "this node's data")
        return cls(
            dataset=config.get("dataset-name", str(data)).strip(),
            state=own_folder(config, "state-dir", "the folder of this node's own ledgers"),
            limit=Budget(
                float(config.get("max-record-epsilon", 3.0)),
                float(config.get("max-record-delta", 1e-5)),
            ),
            least_noise=float(config.get("min-record-noise-multiplier", 0.0)),
            allow_unnoised=config.get("allow-unnoised-training", False),
        )

    def check(self, protection: ClipOnly | ClipAndNoise, settings: Settings) -> None:
        """Decline a run that protects records less than the owner wants.

        Raises
        ------
        DeclinedError
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
                raise _too_weak(asked, f"min-record-noise-multiplier = {self.least_noise}")

    def ledger(self, settings: Settings) -> ClientLedger:
        """The ledger of the node's data, with the run's budget, which lies within the owner's.

        It records training without noise too, which is infinite: no budget allows more.

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


def _too_weak(asked: str, limit: str) -> DeclinedError:
    return DeclinedError(
        f"the run asks for {asked}, which protects records less than the owner of this node allows",
        f"--node-config has {limit}",
    )
