"""The run configuration as one frozen, validated object."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from math import ceil, inf, isfinite, sqrt
from pathlib import Path
from typing import Any

from flower_app.data import DATASETS, PARTITIONS, PartitionSpec
from flower_app.models.specs import MODELS


class SettingError(ValueError):
    """A setting that is wrong; the message names it, its value and the remedy."""


@dataclass(frozen=True)
class Recipe:
    """What suits a model, chosen on the validation split, which belongs to no client.

    Attributes
    ----------
    rounds : int
        How many rounds.
    clipping_norm : float
        S, of a client's update.
    server_learning_rate, server_momentum : float
        Of the server's optimizer.
    local_learning_rate : float
        Of the client's SGD.
    local_steps : int
        Full-batch steps a round.
    example_clipping_norm : float
        C, of one example's gradient.
    """

    rounds: int
    clipping_norm: float
    server_learning_rate: float
    server_momentum: float
    local_learning_rate: float
    local_steps: int
    example_clipping_norm: float


RECIPES: Mapping[str, Recipe] = {
    "hog-linear": Recipe(
        rounds=75,
        clipping_norm=0.02,
        server_learning_rate=40.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=1.0,
    ),
    "mlp": Recipe(
        rounds=100,
        clipping_norm=0.005,
        server_learning_rate=12.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=10.0,
    ),
    "cnn": Recipe(
        rounds=100,
        clipping_norm=0.005,
        server_learning_rate=6.0,
        server_momentum=0.9,
        local_learning_rate=1.0,
        local_steps=1,
        example_clipping_norm=0.2,
    ),
}

WEIGHTINGS = ("uniform", "capped")
RELEASES = ("noised", "public")
NOISES = ("central", "distributed")
SECURE_AGGREGATION = ("off", "honest-but-curious", "malicious")
PATHS_OF_THE_SERVER = (
    "data-dir",
    "identities",
    "ledger",
    "population-file",
    "resume",
    "results-dir",
)


@dataclass(frozen=True)
class Settings:
    """Every setting of a run. In the configuration the names are written with dashes.

    A zero in one of the recipe's settings (``rounds`` … ``example_clipping_norm``) stands for
    the model's own recipe, and is filled in by ``from_config``.
    """

    # What is learned, and from what.
    dataset: str = "mnist"
    data_dir: str = ""
    model: str = "hog-linear"
    deployed: bool = False

    # Who has what (simulation only).
    partition: str = "shards"
    partition_seed: int = 0
    dirichlet_alpha: float = 0.3
    lognormal_sigma: float = 1.0

    # Client-level privacy.
    population: int = 0
    population_file: str = ""
    min_available_nodes: int = 0
    sampling_rate: float = 0.1
    epsilon: float = 3.0
    delta: float = 1e-5
    noise_multiplier: float = 0.0
    ledger: str = ""
    resume: str = ""

    # Training.
    rounds: int = 0
    clipping_norm: float = 0.0
    weighting: str = "uniform"
    weight_cap: float = 0.0
    total_weight: float = 0.0
    server_learning_rate: float = 0.0
    server_momentum: float = -1.0
    local_learning_rate: float = 0.0
    local_steps: int = 0
    example_clipping_norm: float = 0.0
    round_timeout: float = 600.0

    # What the server sees of a round: each update, or only the sum of enough.
    secure_aggregation: str = "off"
    minimum_cohort: int = 40
    corrupt: float = 0.1
    dropout: float = 0.2
    client_dropout: float = 0.02
    noise: str = "central"
    largest_cohort: int = 0
    identities: str = ""

    # Record-level privacy, on top.
    record_epsilon: float = 0.0
    record_delta: float = 1e-5
    nominal_records: int = 50

    # Encrypted inference on the finished model.
    encrypted_images: int = 200
    encrypted_round: bool = False
    encrypted_round_images: int = 100
    encrypted_round_release: str = "noised"
    encrypted_round_noise: float = 5.0

    # Where results go.
    results_dir: str = ""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "Settings":
        """Read a run configuration.

        Parameters
        ----------
        config : mapping
            Kebab-case names to values, as Flower hands them over.

        Returns
        -------
        Settings
            With the model's recipe filled in.

        Raises
        ------
        SettingError
            Naming the first setting that is unknown or wrong.
        """
        return cls._of(config)._with_paths_checked()._with_recipe()

    @classmethod
    def of_client(cls, config: Mapping[str, Any], *, deployed: bool) -> "Settings":
        """A run's settings as a client needs them, of which none is looked up on its disk.

        Parameters
        ----------
        config : mapping
            The run's configuration.
        deployed : bool
            Whether the client has an owner. The paths are the server's own then, and left out; a
            simulated client is on the server's machine, and reads the same data.

        Raises
        ------
        SettingError
            As ``from_config``, but for paths.
        """
        left_out = set(PATHS_OF_THE_SERVER) - (set() if deployed else {"data-dir"})
        own = {name: value for name, value in config.items() if name not in left_out}
        return cls._of(own)._with_recipe()

    @classmethod
    def _of(cls, config: Mapping[str, Any]) -> "Settings":
        known = {field.name.replace("_", "-"): field for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in config.items():
            if name not in known:
                raise SettingError(f"{name} = {value!r} is not a setting; {_nearest(name, known)}")
            typed = _typed(name, value, type(known[name].default))
            if name in PATHS_OF_THE_SERVER and typed:
                typed = str(Path(typed).expanduser())
            values[known[name].name] = typed
        return cls(**values)._checked()

    def as_config(self) -> dict[str, Any]:
        """The settings as they would stand in a configuration."""
        return {name.replace("_", "-"): value for name, value in asdict(self).items()}

    @property
    def planned_participations(self) -> int:
        """How often a client is prepared to take part: its mean and three standard deviations.

        And once more: a round that is cut off, because the server died, is played again when the
        run is resumed, and a client that had already trained for it pays twice.
        """
        mean = self.rounds * self.sampling_rate
        return 1 + max(1, ceil(mean + 3 * sqrt(mean * (1 - self.sampling_rate))))

    def partition_spec(self, clients: int) -> PartitionSpec:
        """How a simulation divides the images among this many clients."""
        return PartitionSpec(
            kind=self.partition,
            clients=clients,
            seed=self.partition_seed,
            alpha=self.dirichlet_alpha,
            sigma=self.lognormal_sigma,
        )

    def _checked(self) -> "Settings":
        for name, choices in (
            ("dataset", DATASETS),
            ("model", tuple(MODELS)),
            ("partition", PARTITIONS),
            ("weighting", WEIGHTINGS),
            ("encrypted_round_release", RELEASES),
            ("secure_aggregation", SECURE_AGGREGATION),
            ("noise", NOISES),
        ):
            value = getattr(self, name)
            if value not in choices:
                kebab = name.replace("_", "-")
                raise SettingError(f"{kebab} = {value!r} is unknown; choose {' or '.join(choices)}")
        self._need("partition_seed", self.partition_seed >= 0, "a whole number of at least 0")
        self._need("sampling_rate", 0 < self.sampling_rate <= 1, "a number in (0, 1]")
        self._need("epsilon", self.epsilon > 0, "a positive number")
        self._need("delta", 0 < self.delta < 1, "a number strictly between 0 and 1")
        self._need("record_delta", 0 < self.record_delta < 1, "strictly between 0 and 1")
        self._need("server_momentum", self.server_momentum < 1, "a number below 1")
        for name in (
            "population",
            "min_available_nodes",
            "noise_multiplier",
            "rounds",
            "clipping_norm",
            "server_learning_rate",
            "local_learning_rate",
            "local_steps",
            "example_clipping_norm",
            "largest_cohort",
            "record_epsilon",
            "encrypted_images",
            "weight_cap",
            "total_weight",
        ):
            self._need(name, getattr(self, name) >= 0, "a number of at least 0")
        if self.population:
            self._need(
                "min_available_nodes",
                self.min_available_nodes <= self.population,
                f"at most the population, {self.population}",
            )
        self._need("minimum_cohort", self.minimum_cohort >= 3, "at least 3")
        self._need("corrupt", 0 <= self.corrupt < 0.5, "a share of clients in [0, 0.5)")
        self._need("dropout", 0 <= self.dropout < 1, "a share of clients in [0, 1)")
        self._need("client_dropout", 0 <= self.client_dropout < 1, "a probability in [0, 1)")
        if self.noise == "distributed":
            curious = self.secure_aggregation == "honest-but-curious"
            self._need("noise", curious, "'central' unless secure-aggregation = honest-but-curious")
        for name in (
            "nominal_records",
            "round_timeout",
            "dirichlet_alpha",
            "lognormal_sigma",
            "encrypted_round_images",
            "encrypted_round_noise",
        ):
            self._need(name, getattr(self, name) > 0, "a positive number")
        # Beyond these, arithmetic in single precision loses what is trained.
        self._need("nominal_records", self.nominal_records <= 10**12, "at most 10^12")
        for name in ("rounds", "local_steps"):
            self._need(name, getattr(self, name) <= 10**9, "at most 10^9")
        for name in ("example_clipping_norm", "local_learning_rate"):
            value = getattr(self, name)
            held = value == 0 or 1e-12 <= value <= 1e12
            self._need(name, held, "from 1e-12 to 1e12, or 0 for the model's own recipe")
        if self.weighting == "capped":
            for name in ("weight_cap", "total_weight"):
                self._need(name, getattr(self, name) > 0, "positive where weighting = 'capped'")
        for name in ("identities", "population_file"):
            if getattr(self, name):
                self._need(name, self.deployed, "left out in a simulation")
        return self

    def _with_paths_checked(self) -> "Settings":
        if self.data_dir:
            self._need("data_dir", is_folder(Path(self.data_dir)), "a folder that exists")
        if self.population_file:
            self._need("population_file", is_file(Path(self.population_file)), "a file that exists")
        if self.resume:
            self._need(
                "resume",
                is_folder(Path(self.resume)),
                "the results folder of a run that broke off (not a file in it)",
            )
        return self

    def _need(self, name: str, good: bool, what: str) -> None:
        if not good:
            kebab = name.replace("_", "-")
            raise SettingError(f"{kebab} = {getattr(self, name)!r} is wrong; it must be {what}")

    def _with_recipe(self) -> "Settings":
        recipe = asdict(RECIPES[self.model])
        unset = {
            name: value
            for name, value in recipe.items()
            if getattr(self, name) < 0 or (getattr(self, name) == 0 and name != "server_momentum")
        }
        return replace(self, **unset)


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a name that no file system takes is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether there is such a file; a name that no file system takes is none."""
    try:
        return path.is_file()
    except OSError:
        return False


def _nearest(name: str, known: Iterable[str]) -> str:
    near = get_close_matches(name.replace("_", "-"), known, n=2, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"the settings are {', '.join(known)}"


def _typed(name: str, value: Any, kind: type) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            value = float(value)
        except OverflowError:
            value = inf if value > 0 else -inf
    if type(value) is not kind:
        expected = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
        raise SettingError(f"{name} = {value!r} is wrong; it must be {expected[kind]}")
    if isinstance(value, int) and abs(value) >= 2**63:  # Flower sends no longer ones
        raise SettingError(f"{name} = {value!r} is wrong; it must be below 2^63")
    if isinstance(value, float) and not isfinite(value):
        raise SettingError(f"{name} = {value!r} is wrong; it must be finite")
    return value
