"""The run configuration as one frozen, validated object."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, inf, isclose, isfinite, sqrt
from pathlib import Path
from typing import Any

from flower_app.data import DATASETS, PARTITIONS, PartitionSpec
from flower_app.errors import SettingError, wrong
from flower_app.models.specs import MODELS, OWN_RECIPES, OWN_SILO_RECIPES, RECIPES, SILO_RECIPES
from flower_app.paths import is_file, is_folder
from flower_app.setting_names import kebab, nearest, refusals, without_former_names
from flower_app.tasks import Task, read_task
from privacy.accounting import Budget
from privacy.arguments import MOST_SECONDS

SECURE_AGGREGATION = ("off", "honest-but-curious", "malicious")
MODES = ("clients", "silos")
MECHANISMS = ("lattice", "banded", "blt")
_CHOICES: Mapping[str, Iterable[str]] = {
    "mode": MODES,
    "dataset": DATASETS,
    "partition": PARTITIONS,
    "model": tuple(MODELS),
    "secure_aggregation": SECURE_AGGREGATION,
    "noise_placement": ("central", "distributed"),
    "mechanism": MECHANISMS,
    "encrypted_round_release": ("noised", "public"),
    "tracking": ("off", "tensorboard", "mlflow", "wandb"),
    "encrypted_backend": ("ckks", "shared"),
    "device": ("cpu", "auto", "cuda"),
}
PATHS_OF_THE_SERVER = (
    "task",
    "data-dir",
    "population-file",
    "ledger",
    "client-public-keys",
    "resume",
    "results-dir",
    "compare-with",
)

_RANGES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("partition_seed", lambda v: v >= 0, "a whole number of at least 0"),
    ("sampling_rate", lambda v: 0 < v <= 1, "a number in (0, 1]"),
    ("delta record_delta", lambda v: 0 < v < 1, "a number strictly between 0 and 1"),
    ("server_momentum", lambda v: v < 1, "a number below 1"),
    (
        "population min_available_nodes local_learning_rate local_steps example_clipping_norm "
        "clipping_norm noise_multiplier weight_cap total_weight rounds server_learning_rate "
        "max_clients record_epsilon encrypted_test_images encrypted_round_images",
        lambda v: v >= 0,
        "a number of at least 0",
    ),
    (
        "epsilon records_per_client round_timeout dirichlet_alpha lognormal_sigma "
        "encrypted_round_noise_multiplier",
        lambda v: v > 0,
        "a positive number",
    ),
    ("round_timeout", lambda v: v <= MOST_SECONDS, f"at most {MOST_SECONDS:,} seconds, 24 days"),
    ("min_clients", lambda v: v >= 3, "at least 3"),
    ("silos", lambda v: v >= 3, "at least 3: of two, each learns the other's sum by subtraction"),
    ("colluders", lambda v: v >= 1, "at least 1: a silo knows its own part, and sees the sum"),
    ("record_sampling_rate", lambda v: 0 <= v < 1, "a number above 0 and below 1"),
    ("records test_records evaluate_every", lambda v: v >= 0, "a whole number of at least 0"),
    ("records test_records", lambda v: v <= 10**10, "at most 10^10"),
    ("evaluation_noise_multiplier", lambda v: v > 0, "a positive number"),
    ("max_corrupt_fraction", lambda v: 0 <= v < 0.5, "a fraction of clients in [0, 0.5)"),
    ("max_dropout_fraction", lambda v: 0 <= v < 1, "a fraction of clients in [0, 1)"),
    ("dropout_probability", lambda v: 0 <= v < 1, "a probability in [0, 1)"),
    # Beyond these, arithmetic in single precision loses what is trained.
    ("records_per_client", lambda v: v <= 10**12, "at most 10^12"),
    ("rounds local_steps", lambda v: v <= 10**9, "at most 10^9"),
    ("metrics_port", lambda v: 0 <= v < 2**16, "a port, or 0 for none"),
    (
        "tracking_uri controller contact purpose",
        lambda v: len(v) <= 2000 and v.isprintable(),
        "one line of at most 2,000 characters",
    ),
    (
        "example_clipping_norm local_learning_rate",
        lambda v: v == 0 or 1e-12 <= v <= 1e12,
        "from 1e-12 to 1e12, or 0 for the model's own recipe",
    ),
)
"""Settings, a check of their values, and the values in words; the first that fails is named."""


@dataclass(frozen=True)
class Settings:
    """Every setting of a run. In the configuration the names are written with dashes.

    A zero in a setting that a ``Recipe`` has too (below zero for the momentum) stands for the
    model's recipe, and is filled in by ``from_config``. ``docs/reference/settings.md`` has
    them all.
    """

    # Data and clients. The partition is a simulation's.
    task: str = ""
    dataset: str = "mnist"
    data_dir: str = ""
    partition: str = "shards"
    partition_seed: int = 0
    dirichlet_alpha: float = 0.3
    lognormal_sigma: float = 1.0
    population: int = 0
    population_file: str = ""
    min_available_nodes: int = 0

    # Model and local training.
    model: str = "hog-linear"
    local_learning_rate: float = 0.0
    local_steps: int = 0
    device: str = "cpu"
    example_clipping_norm: float = 0.0

    # Sampling, budget and noise of the client-level guarantee.
    sampling_rate: float = 0.1
    mechanism: str = "lattice"
    epsilon: float = 3.0
    delta: float = 1e-5
    clipping_norm: float = 0.0
    noise_multiplier: float = 0.0
    weight_cap: float = 0.0
    total_weight: float = 0.0
    ledger: str = ""

    # Whom the run protects: clients, or every record of a few silos, all of them in every step.
    mode: str = "clients"
    silos: int = 10
    colluders: int = 1
    records: int = 0
    record_sampling_rate: float = 0.0
    evaluate_every: int = 25
    evaluation_noise_multiplier: float = 25.0
    test_records: int = 0

    # Server.
    rounds: int = 0
    server_learning_rate: float = 0.0
    server_momentum: float = -1.0
    round_timeout: float = 600.0

    # Secure aggregation: the server opens only the sum of a round's updates.
    secure_aggregation: str = "off"
    min_clients: int = 40
    max_clients: int = 0
    max_corrupt_fraction: float = 0.1
    max_dropout_fraction: float = 0.2
    dropout_probability: float = 0.02
    noise_placement: str = "central"
    client_public_keys: str = ""

    # Record-level guarantee, on top.
    record_epsilon: float = 0.0
    record_delta: float = 1e-5
    records_per_client: int = 50

    # Encrypted inference on the finished model: by the server, and by the nodes.
    encrypted_test_images: int = 200
    encrypted_backend: str = "ckks"
    encrypted_round_images: int = 0
    encrypted_round_release: str = "noised"
    encrypted_round_noise_multiplier: float = 5.0

    # Run and results.
    deployed: bool = False
    resume: str = ""
    results_dir: str = ""

    # Who watches the run's progress, and who runs it and why, for its report.
    tracking: str = "off"
    tracking_uri: str = ""
    metrics_port: int = 0
    compare_with: str = ""
    controller: str = ""
    contact: str = ""
    purpose: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Read a run's configuration, kebab-case names to values, and fill in the model's recipe.

        Raises
        ------
        SettingError
            Naming the first setting that is unknown or wrong.
        """
        return cls._of(config)._with_paths_checked()._with_recipe()

    @classmethod
    def of_client(cls, config: Mapping[str, Any], *, deployed: bool, task: str = "") -> "Settings":
        """As ``from_config`` for a client, whose disk is not looked at.

        If it is ``deployed``, the server's paths are left out, and ``task`` is the node's own; a
        simulated client reads the server's data.
        """
        left_out = set(PATHS_OF_THE_SERVER) - (set() if deployed else {"data-dir", "task"})
        own = {name: value for name, value in config.items() if name not in left_out}
        return cls._of(own | ({"task": task} if task else {}))._with_recipe()

    @classmethod
    def from_given(cls, given: Mapping[str, Any]) -> "Settings":
        """As ``from_config``, of a configuration that holds only what somebody typed.

        There a value that is the app's default was meant too.
        """
        settings = cls.from_config(given)
        task = settings.own_task
        for name, value in (task.settings if task else {}).items():
            if kebab(name) in given and given[kebab(name)] != value:
                raise _other_than_task(name, given[kebab(name)], value, settings.task)
        return settings

    @classmethod
    def _of(cls, config: Mapping[str, Any]) -> "Settings":
        known = {kebab(field.name): field for field in fields(cls)}
        values: dict[str, Any] = {}
        refused = _refused(config)
        for name, value in without_former_names(config, refused=refused).items():
            if name not in known:
                hint = nearest(name, known, refused)
                raise SettingError(f"{name} = {value!r} is not a setting; {hint}")
            typed = _typed(name, value, type(known[name].default))
            if name in PATHS_OF_THE_SERVER and typed:
                typed = str(Path(typed).expanduser())
            values[known[name].name] = typed
        return cls(**values)._with_task()._checked()

    def as_config(self) -> dict[str, Any]:
        """The settings as they would stand in a configuration."""
        return {kebab(name): value for name, value in asdict(self).items()}

    @property
    def data_folder(self) -> Path | None:
        """The folder of ``data-dir``; None where it is not set."""
        return Path(self.data_dir) if self.data_dir else None

    @property
    def record_budget(self) -> Budget | None:
        """What a run may spend of a record; None without record-level noise."""
        if not self.record_epsilon:
            return None
        return Budget(self.record_epsilon, self.record_delta)

    @property
    def encrypted_round(self) -> bool:
        """Whether the nodes test the finished model on images of their own, under encryption."""
        return self.encrypted_round_images > 0

    @property
    def has_silos(self) -> bool:
        """Whether the nodes are silos, each record of which is protected."""
        return self.mode == "silos"

    @property
    def planned_participations(self) -> int:
        """Participations that a client budgets for: the mean, three standard deviations, and one.

        The last is for a round that a resumed run repeats: a client that had trained for it before
        the run broke off pays twice.
        """
        if self.groups:
            return 1 - (-self.rounds // self.groups)
        mean = self.rounds * self.sampling_rate
        return 1 + max(1, ceil(mean + 3 * sqrt(mean * (1 - self.sampling_rate))))

    @property
    def own_task(self) -> Task | None:
        """The task of a user's own data; None where a data set is named.

        Raises
        ------
        SettingError
            If its file cannot be used.
        """
        return read_task(Path(self.task)) if self.task else None

    @property
    def recipe(self) -> dict[str, Any]:
        """The hyper-parameters that suit the model, by the fields' names."""
        if self.task:
            own = OWN_SILO_RECIPES if self.has_silos else OWN_RECIPES
            return asdict(own[self.model if self.model in own else "mlp"])
        return asdict((SILO_RECIPES if self.has_silos else RECIPES)[self.model])

    @property
    def groups(self) -> int:
        """Of clients that take turns, under correlated noise; 0 where everybody may be drawn."""
        return 0 if self.mechanism == "lattice" else round(1 / self.sampling_rate)

    def partition_spec(self, clients: int) -> PartitionSpec:
        """How a simulation divides the images among this many clients."""
        return PartitionSpec(
            kind=self.partition,
            clients=clients,
            seed=self.partition_seed,
            alpha=self.dirichlet_alpha,
            sigma=self.lognormal_sigma,
        )

    def _with_task(self) -> "Settings":
        """The settings that stand in the task; another value than those is refused."""
        task = self.own_task
        if task is None:
            return self
        for name, value in task.settings.items():
            given = getattr(self, name)
            if given not in (value, _DEFAULTS[name]):
                raise _other_than_task(name, given, value, self.task)
        return replace(self, **task.settings)

    def _checked(self) -> "Settings":
        for name, choices in _CHOICES.items():
            if self.task and name in ("dataset", "model"):
                continue
            value = getattr(self, name)
            if value not in choices:
                raise SettingError(
                    f"{kebab(name)} = {value!r} is unknown; choose {' or '.join(choices)}"
                )
        for names, good, expected in _RANGES:
            for name in names.split():
                self._need(name, good(getattr(self, name)), expected)
        why = refusals(mode=self.mode, task=bool(self.task), deployed=self.deployed)
        for name, reason in why.items():
            if (value := getattr(self, name)) != _DEFAULTS[name]:
                raise SettingError(f"{kebab(name)} = {value!r} is refused; {reason}")
        if self.population:
            self._need(
                "min_available_nodes",
                self.min_available_nodes <= self.population,
                f"at most the population, {self.population}",
            )
        if self.noise_placement == "distributed":
            self._need(
                "noise_placement",
                self.secure_aggregation == "honest-but-curious",
                "'central' unless secure-aggregation = honest-but-curious",
            )
        if self.groups:
            whole = isclose(self.groups * self.sampling_rate, 1, rel_tol=1e-3)
            expected = "one over the number of groups that take turns, as 0.1 or 0.25"
            self._need(
                "sampling_rate",
                whole and self.groups > 1,
                f"{expected}, with mechanism = {self.mechanism}",
            )
            central = self.noise_placement == "central"
            self._need("noise_placement", central, f"'central' with mechanism = {self.mechanism}")
        if self.weight_cap or self.total_weight:
            for name in ("weight_cap", "total_weight"):
                self._need(name, getattr(self, name) > 0, "positive: capped weights need both")
        return self

    def _with_paths_checked(self) -> "Settings":
        for name, is_there, expected in (
            ("data_dir", is_folder, "a folder that exists"),
            ("population_file", is_file, "a file that exists"),
            ("resume", is_folder, "the results folder of a run that broke off (not a file in it)"),
            ("compare_with", is_folder, "the results folder of a finished run"),
        ):
            if path := getattr(self, name):
                self._need(name, is_there(Path(path)), expected)
        return self

    def _need(self, name: str, good: bool, expected: str) -> None:
        if not good:
            value = getattr(self, name)
            raise wrong(kebab(name), value, f"it must be {expected}")

    def _with_recipe(self) -> "Settings":
        task = self.own_task
        recipe = self.recipe | (dict(task.training) if task else {})
        unset = {
            name: value
            for name, value in recipe.items()
            if getattr(self, name) < 0 or (getattr(self, name) == 0 and name != "server_momentum")
        }
        return replace(self, **unset)


_DEFAULTS = asdict(Settings())


def _refused(config: Mapping[str, Any]) -> dict[str, str]:
    """What the run of a configuration does not take, which may be wrong in other ways."""
    mode, task = config.get("mode", _DEFAULTS["mode"]), config.get("task")
    if task and isinstance(task, str):
        mode = read_task(Path(task).expanduser()).mode
    deployed = config.get("deployed") is True
    return refusals(mode=str(mode), task=bool(task), deployed=deployed)


def _other_than_task(name: str, given: object, value: object, task: str) -> SettingError:
    return SettingError(
        f"{kebab(name)} = {given!r} is refused; {task} says {value!r}: change it there"
    )


def write_run_config(settings: Mapping[str, Any], path: Path) -> Path:
    """Write settings as a file for ``flwr run --run-config``; returns its path."""
    # JSON's strings, numbers and booleans are TOML's, but for one control character.
    lines = [f"{name} = {json.dumps(v, ensure_ascii=False)}\n" for name, v in settings.items()]
    path.write_text("".join(lines).replace("\x7f", "\\u007f"), encoding="utf-8")
    return path


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = inf if value > 0 else -inf
    expected = ""
    if type(value) is not kind:
        words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        expected = words[kind]
    elif isinstance(value, int) and abs(value) >= 2**63:  # Flower sends no longer ones
        expected = "below 2^63"
    elif isinstance(value, float) and not isfinite(value):
        expected = "finite"
    if expected:
        raise wrong(name, value, f"it must be {expected}")
    return value
