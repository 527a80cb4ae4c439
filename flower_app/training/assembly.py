"""The strategy of a run, and the checks before it begins: by its command, then by the run."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from logging import WARNING
from pathlib import Path

from flwr.supercore import log

from flower_app.data import Dataset
from flower_app.errors import SettingError, counted, wrong
from flower_app.paths import is_folder
from flower_app.report.compared import compared_run
from flower_app.report.results_folder import NOT_ABSOLUTE, ResultsFolder, results_root
from flower_app.setting_names import kebab
from flower_app.settings import Settings
from flower_app.training.node_policy import record_protection
from flower_app.training.resumption import check_resumed
from flower_app.training.secure_aggregation import server_setting
from flower_app.training.silos import check_silos, silo_strategy
from flower_app.training.tracking import check_tracking
from flower_app.training.work import check_ranges, dataset_of, parameter_count, partitions_of
from privacy.accounting import Budget, Event, Full
from privacy.accounting.errors import LedgerError
from privacy.mechanisms import LatticeGaussian, SumMechanism
from strategies import (
    BLT,
    BandedMF,
    CappedWeights,
    Checkpointing,
    CyclicGroups,
    DistributedDPSGD,
    DPFedAvg,
    OnRound,
    Poisson,
    Population,
    ServerSGD,
    UniformWeights,
)
from strategies.errors import BudgetError, SpentBudgetError

# The libraries' names of settings.
_NAMES = {
    "budget.epsilon": "epsilon",
    "budget.delta": "delta",
    "secure_aggregation.dropout_probability": "dropout-probability",
    "secure_aggregation.max_dropout_fraction": "max-dropout-fraction",
    "secure_aggregation.max_clients": "max-clients",
    "secure_aggregation.min_clients": "min-clients",
    "partition seed": "partition-seed",
    "the clipping norm": "clipping-norm",
    **{field.name: kebab(field.name) for field in fields(Settings) if "_" in field.name},
}
# Likewise, where the name is also an English word: at the start of a message only.
_NAMES_AT_THE_START = {
    "clients": "population",
    "alpha": "dirichlet-alpha",
    "sigma": "lognormal-sigma",
    "cap": "weight-cap",
    "sampling": "sampling-rate",
    "rate": "sampling-rate",
    "clipping": "clipping-norm",
}


@dataclass(frozen=True)
class Assembled:
    """A checked run's population, listed or a number of nodes, and its data set."""

    population: Population | int
    dataset: Dataset

    @property
    def size(self) -> int:
        """How many nodes it has."""
        return _size(self.population)


def check_run(settings: Settings, *, nodes: int) -> Assembled:
    """Refuse a run that cannot finish with so many SuperNodes, as far as that is known before it.

    Raises
    ------
    SettingError
        Naming the setting, what is wrong with it, and the remedy.
    DataError
        If the data set cannot be had.
    """
    check_ranges(settings.own_task)
    population = silos_of(settings, nodes) if settings.has_silos else population_of(settings, nodes)
    size = _size(population)
    if settings.min_available_nodes > size:
        raise wrong(
            "min-available-nodes",
            settings.min_available_nodes,
            f"it must be at most the population, {size}",
        )
    check_tracking(settings)
    compared_run(settings)
    if settings.resume:
        check_resumed(settings, population=size)
    else:
        results_root(settings)
    with tempfile.TemporaryDirectory() as scratch:
        # On a copy: a check writes nothing into the population's ledger.
        copy = Path(scratch) / "ledger.jsonl"
        ledger = Path(settings.ledger or ResultsFolder(Path(settings.resume or scratch)).ledger)
        if settings.ledger:
            _check_place(ledger)
        if ledger.exists():
            try:
                shutil.copyfile(ledger, copy)
            except OSError as error:
                raise wrong(
                    "ledger", str(ledger), f"it cannot be read: {error.strerror}"
                ) from error
        strategy = make_strategy(settings, population, ledger=copy, checkpoint=None, shown=ledger)
        with _in_the_settings_words(copy, ledger):
            try:
                strategy.check_budget(settings.rounds, parameter_count(settings))
            except BudgetError as error:
                raise refused_budget(settings, error, used=copy, shown=ledger) from error
    if settings.record_epsilon:
        record_protection(settings)  # every client works it out again, and would decline the run
    dataset = dataset_of(settings)
    if not settings.deployed:
        with _in_the_settings_words():
            partitions_of(settings, dataset, size)
    return Assembled(population, dataset)


def population_of(settings: Settings, connected: int) -> Population | int:
    """Who is listed, or N: as set, or in a simulation the number of simulated nodes.

    Raises
    ------
    SettingError
        If it is not set for a deployment, is smaller than the number of connected nodes, or
        larger than a simulation's.
    """
    if 0 < settings.population < connected and not settings.population_file:
        raise wrong(
            "population",
            settings.population,
            f"{connected} nodes are connected, and "
            "every client counts: give their number, or list those who may take part "
            "(population-file)",
        )
    if settings.deployed:
        population = listed_population(settings) or settings.population
        if not population:
            raise wrong(
                "population",
                0,
                "a deployment must declare how many clients there are, "
                "or who they are (population-file)",
            )
        return population
    if settings.population > connected:
        raise SettingError(
            f"population = {settings.population} is larger than the "
            f"{counted(connected, 'simulated node')}; {_with_nodes(settings.population)}"
        )
    return settings.population or connected


def silos_of(settings: Settings, connected: int) -> Population | int:
    """Which nodes are the silos, or how many.

    Raises
    ------
    SettingError
        If the connected nodes or ``population-file`` are not as many, or a deployment declares no
        number of records.
    """
    listed = listed_population(settings)
    check_silos(settings, connected=connected, population=listed)
    return listed or settings.silos


def _size(population: Population | int) -> int:
    return population if isinstance(population, int) else len(population)


def _with_nodes(number: int) -> str:
    """How to have so many simulated nodes, whichever command was given."""
    return (
        f"run with --nodes {number}, or under flwr run with --federation-config "
        f"'num-supernodes={number}'"
    )


def warn_of_few_clients(settings: Settings, *, population: int, connected: int) -> None:
    """Warn of a population that is small, or not all connected."""
    if settings.deployed:
        if connected < population:
            log(
                WARNING,
                "Connected: %s, of a population of %d. Absent clients add nothing.",
                counted(connected, "node"),
                population,
            )
    elif population < 100:
        log(
            WARNING,
            "Only %s: the noise that hides one of so few drowns what they "
            "teach. For a useful model, %s",
            counted(population, "simulated client"),
            _with_nodes(1000),
        )


def listed_population(settings: Settings) -> Population | None:
    """The clients that ``population-file`` lists; None where it is not set.

    Raises
    ------
    SettingError
        If it is no such file, or lists another number of clients than ``population``.
    """
    if not settings.population_file:
        return None
    try:
        listed = Population.load(Path(settings.population_file))
    except (OSError, ValueError) as error:
        raise wrong(
            "population-file",
            settings.population_file,
            f"{error}; make it with python -m flower_app population",
        ) from error
    if settings.population not in (0, len(listed)):
        raise wrong(
            "population",
            settings.population,
            f"population-file lists {len(listed)} clients: leave population out",
        )
    return listed


def refused_budget(
    settings: Settings, error: BudgetError, *, used: Path = Path(), shown: Path = Path()
) -> SettingError:
    """A strategy's refusal of a run for its budget, in the settings' names.

    ``shown`` is the ledger's name where the strategy ``used`` a copy.
    """
    noise = settings.encrypted_round_noise_multiplier
    text = str(error).replace(str(used), str(shown))
    text = text.replace(
        "what is reserved for after training",
        f"the encrypted test-time round (encrypted-round-noise-multiplier = {noise:g})",
    )
    text = text.replace("reserve less", "raise encrypted-round-noise-multiplier")
    text = _in_settings_names(text)
    if isinstance(error, SpentBudgetError):
        return SettingError(f"epsilon = {settings.epsilon:g} is spent; {text}")
    if z := settings.noise_multiplier:
        text = text.replace(f"noise-multiplier is {z:.6g}, with which ", "")
        return SettingError(f"noise-multiplier = {z:g} is wrong; {text}")
    return SettingError(f"epsilon = {settings.epsilon:g} is wrong; {text}")


def round_cost(settings: Settings) -> list[Event]:
    """The releases for which training must reserve budget.

    Raises
    ------
    SettingError
        If the round's noise cannot be accounted.
    """
    if not settings.encrypted_round or settings.encrypted_round_release != "noised":
        return []
    noise = settings.encrypted_round_noise_multiplier
    try:
        return [LatticeGaussian().account(noise_multiplier=noise, sampling=Full())]
    except ValueError as error:
        raise SettingError(
            str(error).replace("noise_multiplier is", "encrypted-round-noise-multiplier is")
        ) from error


def make_strategy(
    settings: Settings,
    population: Population | int,
    *,
    ledger: Path,
    checkpoint: Path | None,
    shown: Path | None = None,
    on_round: OnRound | None = None,
) -> DPFedAvg | DistributedDPSGD:
    """The strategy that the settings describe.

    ``ledger`` is the population's, or a copy of the one that errors call ``shown``; ``checkpoint``
    the file for the state after each round; ``on_round`` is told of each.

    Raises
    ------
    SettingError
        If the strategy refuses them, in the settings' names.
    """
    size = _size(population)
    resumed = ResultsFolder(Path(settings.resume).resolve()).checkpoint if settings.resume else None
    checkpointing = Checkpointing(checkpoint, resume=resumed)
    with _in_the_settings_words(ledger, shown or ledger, given=bool(settings.ledger)):
        if settings.has_silos:
            listed = None if isinstance(population, int) else population
            return silo_strategy(
                settings, listed, ledger=ledger, checkpointing=checkpointing, on_round=on_round
            )
        return DPFedAvg(
            population=population,
            sampling=(
                CyclicGroups(settings.groups)
                if settings.groups
                else Poisson(settings.sampling_rate)
            ),
            mechanism=_mechanism(settings),
            clipping=settings.clipping_norm,
            noise_multiplier=settings.noise_multiplier or None,
            budget=Budget(settings.epsilon, settings.delta),
            weighting=(
                CappedWeights(cap=settings.weight_cap, total_weight=settings.total_weight)
                if settings.weight_cap
                else UniformWeights()
            ),
            optimizer=ServerSGD(settings.server_learning_rate, settings.server_momentum),
            ledger=ledger,
            reserve=round_cost(settings),
            checkpointing=checkpointing,
            min_available_nodes=settings.min_available_nodes or (size + 1) // 2,
            secure_aggregation=server_setting(settings, size),
            on_round=on_round,
        )


def _mechanism(settings: Settings) -> SumMechanism:
    if settings.mechanism == "blt":
        return BLT()
    return BandedMF(settings.groups) if settings.groups else LatticeGaussian()


def _check_place(ledger: Path) -> None:
    fault = ""
    if not ledger.is_absolute():
        fault = NOT_ABSOLUTE
    elif not is_folder(ledger.parent):
        fault = "its folder does not exist: create it first"
    elif is_folder(ledger):
        fault = "it is a folder: name a file in it"
    if fault:
        raise wrong("ledger", str(ledger), fault)


@contextmanager
def _in_the_settings_words(
    used: Path = Path(), shown: Path = Path(), *, given: bool = False
) -> Iterator[None]:
    """Translate a library's errors into the settings' names."""
    try:
        yield
    except SettingError:
        raise
    except LedgerError as error:
        fault = f"ledger = {str(shown)!r} is wrong" if given else "the run's ledger cannot be used"
        text = str(error).replace(str(used), str(shown))
        raise SettingError(f"{fault}; {text}") from error
    except ValueError as error:
        raise SettingError(_in_settings_names(str(error))) from error


def _in_settings_names(text: str) -> str:
    for theirs, ours in _NAMES_AT_THE_START.items():
        text = re.sub(rf"^{theirs}\b", ours, text)
    for theirs, ours in _NAMES.items():
        text = re.sub(rf"\b{re.escape(theirs)}\b", ours, text)
    return text
