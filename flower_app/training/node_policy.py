"""A node's ``--node-config``, which its owner writes: its keys, and the limits that they set."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from flwr.app import Context

from flower_app.errors import DeclinedError, SettingError, wrong
from flower_app.setting_names import without_former_names
from flower_app.settings import SECURE_AGGREGATION, Settings
from flower_app.tasks import read_task
from flower_app.training.work import check_ranges
from privacy.accounting import Budget, Full, GaussianRelease, calibrate_noise_multiplier
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, NoisyCount, NominalCount

# All that Flower's simulation configures of a node.
_SIMULATED = frozenset({"partition-id", "num-partitions"})
_LEDGER = "record-ledger.jsonl"
_LEDGER_BEFORE = "record-ledger.json"  # of earlier versions; `ClientLedger` says what to do with it

_COUNT_NOISE = 10.0  # records; the noise on a count that is sent beside record-level noise
UNDONE = "this node could not do its part; its owner finds why in its log"
OWN_PREFIX = "x-"  # of the owner's keys for other programs


@dataclass(frozen=True)
class _Kind:
    """The values of a key: in words, and as a check."""

    words: str
    takes: Callable[[Any], bool]


def _number(words: str, takes: Callable[[float], bool]) -> _Kind:
    def good(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        try:
            return math.isfinite(value) and takes(value)
        except OverflowError:  # a whole number beyond all floating-point ones
            return False

    return _Kind(words, good)


def _whole(least: int) -> _Kind:
    return _Kind(f"a whole number of at least {least}", lambda v: type(v) is int and v >= least)


_TEXT = _Kind("a path in quotes", lambda value: isinstance(value, str))
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_POSITIVE = _number("a finite number above 0", lambda value: value > 0)
_AT_LEAST_ZERO = _number("a finite number of at least 0", lambda value: value >= 0)

NODE_KEYS: Mapping[str, _Kind] = {
    "policy": _TEXT,
    "task": _TEXT,
    "data-dir": _TEXT,
    "state-dir": _TEXT,
    "test-dir": _TEXT,
    "dataset-name": _Kind(
        "a name in quotes for where this node's data comes from",
        lambda value: isinstance(value, str) and bool(value.strip()),
    ),
    "max-record-epsilon": _POSITIVE,
    "max-record-delta": _number(
        "a number strictly between 0 and 1, such as 1e-5", lambda value: 1e-300 < value < 1
    ),
    "min-record-noise-multiplier": _AT_LEAST_ZERO,
    "allow-unnoised-training": _SWITCH,
    "report-epsilon": _POSITIVE,
    "report-total-epsilon": _POSITIVE,
    "publish-report": _SWITCH,
    "secure-aggregation": _Kind(
        f"one of {', '.join(SECURE_AGGREGATION)}",
        lambda value: isinstance(value, str) and value in SECURE_AGGREGATION,
    ),
    "min-clients": _whole(3),
    "max-corrupt-fraction": _number(
        "the fraction of a round's clients that may collude, of at least 0 and below 0.5",
        lambda value: 0 <= value < 0.5,
    ),
    "clipping-norm": _POSITIVE,
    "weight-cap": _AT_LEAST_ZERO,
    "signing-key": _TEXT,
    "client-public-keys": _TEXT,
    "partition-id": _whole(0),
    "num-partitions": _whole(1),
}
_FORMER_KEYS: Mapping[str, str] = {
    "minimum-cohort": "min-clients",
    "corrupt": "max-corrupt-fraction",
    "identity": "signing-key",
    "identities": "client-public-keys",
    "min-record-noise": "min-record-noise-multiplier",
}


def check_keys(config: Mapping[str, Any]) -> None:
    """Refuse an unknown key, whose limit nobody would enforce, or a value of the wrong kind.

    Keys that begin with ``x-`` are for other programs.

    Raises
    ------
    SettingError
        Naming the key, its value and the values it takes, or the nearest known key.
    """
    try:
        without_former_names(config, _FORMER_KEYS)
    except SettingError as error:
        raise SettingError(f"this node's --node-config is wrong; {error}") from error
    for key, value in config.items():
        if key.startswith(OWN_PREFIX):
            continue
        if key in NODE_KEYS:
            if not NODE_KEYS[key].takes(value):
                raise wrong_key(key, value, NODE_KEYS[key].words)
            continue
        written = key.strip().lower().replace("_", "-").replace(".", "-")
        (near,) = difflib.get_close_matches(written, NODE_KEYS, n=1, cutoff=0.0)
        raise wrong_key(
            key,
            value,
            f"written {near}, if that is meant (a key for other programs begins with {OWN_PREFIX})",
        )


def own_folder(config: Mapping[str, Any], key: str, purpose: str) -> Path:
    """A folder of ``--node-config``: absolute, or from ~.

    A relative one would be another folder, with a new ledger, for a SuperNode started elsewhere.

    Raises
    ------
    SettingError
        If it is not named, relative, or can be no path.
    """
    folder = config.get(key, "")
    if not folder:
        raise SettingError(
            f"{key} = '' is wrong; start this SuperNode with "
            f"--node-config '{key}=\"/path/to/{purpose.replace(' ', '-')}\"'"
        )
    try:
        path = Path(folder).expanduser()
        resolved = path.resolve()
    except (OSError, ValueError, RuntimeError) as error:  # such as "~" and a name of nobody
        raise wrong_key(key, folder, f"a path: {error}") from error
    if not path.is_absolute():
        raise wrong_key(key, folder, f"an absolute path, such as {str(resolved)!r}")
    return resolved


def wrong_key(key: str, value: object, expected: str) -> SettingError:
    """The error for a key's owner."""
    return SettingError(
        f"{key} = {value!r:.200} in this node's --node-config is wrong; it must be {expected}"
    )


def is_deployed(context: Context) -> bool:
    """Whether the node has an owner: its configuration is not a simulation's, or ``deployed``."""
    return bool(context.run_config.get("deployed")) or set(context.node_config) != _SIMULATED


def simulated_place(context: Context) -> tuple[int, int]:
    """The number of simulated clients, and which of them this one is."""
    node = context.node_config
    return int(node["num-partitions"]), int(node["partition-id"])


def run_settings(context: Context) -> Settings:
    """The run's settings, as a node takes them.

    Raises
    ------
    DeclinedError
        If they are wrong, or call a node that has data of its own a simulated one.
    """
    deployed = is_deployed(context)
    task = _own_task(context) if deployed else ""
    try:
        settings = Settings.of_client(context.run_config, deployed=deployed, task=task)
    except SettingError as error:
        if task:  # it names the node's own file
            raise DeclinedError(UNDONE, str(error)) from error
        raise DeclinedError(str(error)) from error
    if deployed and not settings.deployed:
        raise DeclinedError("deployed = False is wrong; this node is no simulated one")
    return settings


def _own_task(context: Context) -> str:
    """The file of a deployed node's task; "" where its data are of a data set.

    Raises
    ------
    DeclinedError
        If the run is of the other kind, or nobody confirmed that the task's ranges are public.
    """
    node = context.node_config
    if bool(context.run_config.get("task")) is not ("task" in node):
        own = "a task of its own" if "task" in node else "a data set"
        raise DeclinedError(f"this node takes part in runs of {own} alone")
    if "task" not in node:
        return ""
    try:
        path = own_folder(node, "task", "task.toml")
        check_ranges(read_task(path))
    except SettingError as error:
        raise DeclinedError(UNDONE, str(error)) from error
    return str(path)


@dataclass(frozen=True)
class NodePolicy:
    """The limits of ``--node-config`` for a node's records; a run may protect them better.

    Attributes
    ----------
    dataset : str
        ``dataset-name``: the data's name in the node's ledger. By default its folder.
    state : Path
        ``state-dir``: the ledger's folder.
    limit : Budget
        ``max-record-epsilon`` and ``max-record-delta``, of a record in all runs together.
    least_noise : float
        ``min-record-noise-multiplier``, of a training step and of a count.
    allow_unnoised : bool
        ``allow-unnoised-training``, without record-level noise at all.
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
        for name in ("epsilon", "delta"):
            asked, limit = getattr(settings, f"record_{name}"), getattr(self.limit, name)
            if asked > limit:
                raise _too_weak(f"record-{name} = {asked}", f"max-record-{name} = {limit}")
        noise = {"each step": protection.noise_multiplier}
        if isinstance(protection.count, NoisyCount):
            noise["the number of records"] = protection.count.noise_multiplier
        for name, multiplier in noise.items():
            if multiplier < self.least_noise:
                raise _too_weak(
                    f"a noise multiplier of {multiplier:.4g} for {name}",
                    f"min-record-noise-multiplier = {self.least_noise}",
                )

    def ledger(self, settings: Settings) -> ClientLedger:
        """The ledger of the node's data, with the run's budget, which lies within the owner's.

        It records training without noise too, which is infinite: no budget allows more.

        Raises
        ------
        LedgerError
            If it is damaged, of an earlier version, or another data set's.
        """
        before = self.state / _LEDGER_BEFORE
        return ClientLedger(
            dataset=self.dataset,
            budget=settings.record_budget,
            path=before if before.exists() else self.state / _LEDGER,
        )


def _too_weak(asked: str, limit: str) -> DeclinedError:
    return DeclinedError(
        f"the run asks for {asked}, which protects records less than the owner of this node allows",
        f"--node-config has {limit}",
    )


def record_protection(settings: Settings) -> ClipOnly | ClipAndNoise:
    """A client's protection of its records; without ``record_epsilon`` no noise.

    Raises
    ------
    SettingError
        If no noise keeps what the run asks, or none that can be accounted.
    """
    try:
        budget = settings.record_budget
    except ValueError as error:  # it begins with the name
        raise SettingError(f"record-{error}") from error
    if budget is None:
        return ClipOnly(clipping_norm=settings.example_clipping_norm)
    counts = settings.weight_cap > 0
    participations, steps = settings.planned_participations, settings.local_steps
    try:
        noise = _noise(budget, steps, participations, counts=counts)
    except ValueError as error:
        count = ", beside one noised count of its records," if counts else ""
        raise wrong(
            "record-epsilon",
            settings.record_epsilon,
            f"no noise keeps "
            f"{participations:,} participations with local-steps = {steps}{count} within it at "
            f"record-delta = {settings.record_delta:g}: raise one of them, or lower rounds, "
            "sampling-rate or local-steps",
        ) from error
    return ClipAndNoise(
        clipping_norm=settings.example_clipping_norm,
        noise_multiplier=noise,
        delta=settings.record_delta,
        count=NoisyCount(noise_multiplier=_COUNT_NOISE)
        if counts
        else NominalCount(records=settings.records_per_client),
    )


@cache
def _noise(budget: Budget, steps: int, participations: int, *, counts: bool) -> float:
    """The noise multiplier for all participations, beside one noised count."""
    return calibrate_noise_multiplier(
        sampling=Full(),
        rounds=steps * participations,
        budget=budget,
        spent=(GaussianRelease(_COUNT_NOISE, Full()),) if counts else (),
    )
