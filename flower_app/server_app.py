"""The server's side of a run: settings, training, encrypted inference, results."""

import logging
import os
import time
from dataclasses import dataclass, field
from logging import INFO, WARNING
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log
from threadpoolctl import threadpool_limits
from torch import nn

from flower_app import plots
from flower_app.data import (
    Inputs,
    load_dataset,
    load_inputs,
    load_partitions,
)
from flower_app.encrypted import EncryptedTest, check_model_can_be_encrypted, run_encrypted_test
from flower_app.encrypted_round import hold_encrypted_round, round_cost, with_cost_of_round
from flower_app.model_specs import MODELS
from flower_app.models import build_model
from flower_app.report import write_report
from flower_app.results import ResultsFolder
from flower_app.secure import server_setting
from flower_app.settings import SettingError, Settings
from privacy.accounting import Budget, calibrate_noise_multiplier
from strategies import (
    CappedWeights,
    DPFedAvg,
    Poisson,
    Population,
    PrivacyReport,
    PrivateResult,
    ServerSGD,
    UniformWeights,
)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run everything, and print where the results lie."""
    # OpenBLAS ends its threads when a process forks, and what another thread then has under way
    # waits for ever: a simulation starts Ray in this process, beside this function.
    with threadpool_limits(1, user_api="blas"):
        _run(grid, context)


def _run(grid: Grid, context: Context) -> None:
    settings = Settings.from_config(context.run_config)
    started = time.perf_counter()
    size = population_size(settings, grid)
    dataset = load_dataset(
        settings.dataset, data_dir=Path(settings.data_dir) if settings.data_dir else None
    )
    inputs = load_inputs(dataset, MODELS[settings.model].kind, say=lambda line: log(INFO, line))
    model = build_model(settings.model)
    if settings.encrypted_images or settings.encrypted_round:
        check_model_can_be_encrypted(model, MODELS[settings.model])
    if not settings.deployed:
        load_partitions(settings.partition_spec(size), dataset)
    check_budget(settings)
    folder = ResultsFolder.create(settings, context.run_id)
    with OperatorLog(folder.operator_log):
        strategy = make_strategy(settings, size, folder)
        folder.write_json("config.json", settings.as_config())
        log(INFO, "Results: %s", folder.path)

        watch = Watch(settings, model, inputs)
        training_started = time.perf_counter()
        result = strategy.start(
            grid,
            initial_arrays=ArrayRecord(model.state_dict()),
            num_rounds=settings.rounds,
            timeout=settings.round_timeout,
            evaluate_fn=watch.bound_to(strategy),
        )
        training_seconds = time.perf_counter() - training_started
        folder.write_model(result.arrays)
        nodes_tested = None
        if settings.encrypted_round and result.privacy is not None:
            ledger = ledger_of(settings, folder)
            nodes_tested = hold_encrypted_round(
                grid,
                settings,
                population=size,
                weights=folder.file("model.safetensors"),
                ledger=ledger,
                run_id=context.run_id,
            )
            result.privacy = with_cost_of_round(result.privacy, ledger)
    finish(
        settings,
        folder,
        inputs,
        model,
        result,
        watch,
        nodes_tested,
        started=started,
        training_seconds=training_seconds,
    )


def population_size(settings: Settings, grid: Grid) -> int:
    """N: as set, or in a simulation the number of simulated nodes.

    Raises
    ------
    SettingError
        If it is not set for a deployment, is smaller than the number of nodes, or larger than
        that of a simulation.
    """
    connected = len(list(grid.get_node_ids()))
    if 0 < settings.population < connected and not settings.population_file:
        raise SettingError(
            f"population = {settings.population} is wrong; {connected} nodes are connected, and "
            "every client counts: give their number, or list those who may take part "
            "(population-file)"
        )
    if settings.deployed:
        size = len(listed_population(settings) or ()) or settings.population
        if not size:
            raise SettingError(
                "population = 0 is wrong; a deployment must declare how many clients there are, "
                "or who they are (population-file)"
            )
        if connected < size:
            log(
                WARNING,
                "%d nodes are connected, the population is %d. Absent clients add nothing.",
                connected,
                size,
            )
        return size
    if settings.population > connected:
        raise SettingError(
            f"population = {settings.population} is larger than the {connected} simulated nodes; "
            f"run with --federation-config 'num-supernodes={settings.population}'"
        )
    size = settings.population or connected
    if size < 100:
        log(
            WARNING,
            "Only %d simulated clients: the noise that hides one of so few drowns what they "
            "teach. For a useful model: --federation-config 'num-supernodes=1000'",
            size,
        )
    return size


def ledger_of(settings: Settings, folder: ResultsFolder) -> Path:
    """The population's ledger."""
    return Path(settings.ledger or folder.file("privacy-ledger.jsonl")).expanduser()


def listed_population(settings: Settings) -> Population | None:
    """The clients that ``population-file`` lists, or None where it is not set.

    Raises
    ------
    SettingError
        If it is no such file, or lists another number of clients than ``population`` says.
    """
    if not settings.population_file:
        return None
    try:
        listed = Population.load(Path(settings.population_file))
    except ValueError as error:
        raise SettingError(
            f"population-file = {settings.population_file!r} is wrong; {error}; "
            "make it with python -m flower_app population"
        ) from error
    if settings.population not in (0, len(listed)):
        raise SettingError(
            f"population = {settings.population} is wrong; population-file lists {len(listed)} "
            "clients: leave population out"
        )
    return listed


def check_budget(settings: Settings) -> None:
    """Refuse, before training, a budget that no noise reaches in that many rounds.

    Raises
    ------
    SettingError
        Naming the budget and what would fit.
    """
    if settings.noise_multiplier:
        return
    try:
        calibrate_noise_multiplier(
            sampling=Poisson(settings.sampling_rate),
            rounds=settings.rounds,
            budget=Budget(settings.epsilon, settings.delta),
            spent=round_cost(settings),
        )
    except ValueError as error:
        raise SettingError(f"epsilon = {settings.epsilon} is wrong; {error}") from error


def make_strategy(settings: Settings, size: int, folder: ResultsFolder) -> DPFedAvg:
    """The strategy that the settings describe."""
    if settings.deployed and not settings.ledger:
        log(
            WARNING,
            "ledger is not set: the ε of this run counts this run alone. Set it to one file for "
            "all runs on these clients, or add up what they spent.",
        )
    capped = settings.weighting == "capped"
    return DPFedAvg(
        population=listed_population(settings) or size,
        sampling=Poisson(settings.sampling_rate),
        clipping=settings.clipping_norm,
        noise_multiplier=settings.noise_multiplier or None,
        target_epsilon=settings.epsilon,
        target_delta=settings.delta,
        weighting=(
            CappedWeights(cap=settings.weight_cap, total_weight=settings.total_weight)
            if capped
            else UniformWeights()
        ),
        optimizer=ServerSGD(settings.server_learning_rate, settings.server_momentum),
        ledger=ledger_of(settings, folder),
        reserve=round_cost(settings),
        checkpoint=folder.file("checkpoint.safetensors"),
        resume=settings.resume or None,
        min_available_nodes=settings.min_available_nodes or (size + 1) // 2,
        secure_aggregation=server_setting(settings, size),
    )


@dataclass
class Pace:
    """Says how long a run will still take, judged by the rounds after its first.

    The first waits until the nodes' processes have started, and tells nothing of the others.
    """

    rounds: int
    _first: tuple[int, float] | None = None

    def left(self, number: int, now: float) -> str:
        """What to say after a round that ended ``now``, in seconds; nothing after the first."""
        if self._first is None:
            self._first = number, now
            return ""
        first, since = self._first
        rest = (now - since) / (number - first) * (self.rounds - number)
        return f"   {_duration(rest)} left"


@dataclass
class Watch:
    """Follows a run: validation accuracy by round, and one readable line a round."""

    settings: Settings
    model: nn.Sequential
    inputs: Inputs
    accuracy: dict[int, float] = field(default_factory=dict)
    update_norms: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images = torch.from_numpy(self.inputs.validation())
        self._labels = torch.tensor(self.inputs.dataset.validation.labels)
        self._pace = Pace(self.settings.rounds)
        self._before: npt.NDArray[np.float64] | None = None
        self._velocity: npt.NDArray[np.float64] | None = None

    def bound_to(self, strategy: DPFedAvg) -> Any:
        """An ``evaluate_fn`` that knows what the strategy has spent."""

        def evaluate(number: int, arrays: ArrayRecord) -> None:
            self._follow(number, arrays)
            self.model.load_state_dict(arrays.to_torch_state_dict())
            self.accuracy[number] = accuracy(self.model, self._images, self._labels)
            if number > 0:
                log(
                    INFO,
                    "round %3d/%d   validation accuracy %5.2f %%   ε %.3f of %g%s",
                    number,
                    self.settings.rounds,
                    100 * self.accuracy[number],
                    strategy.epsilon_by_round.get(number, float("nan")),
                    self.settings.epsilon,
                    self._pace.left(number, time.perf_counter()),
                )

        return evaluate

    def _follow(self, number: int, arrays: ArrayRecord) -> None:
        """Take the round's noisy average back out of two models and the known momentum."""
        flat = np.concatenate([a.numpy().ravel().astype(np.float64) for a in arrays.values()])
        if self._before is not None:
            velocity = (flat - self._before) / self.settings.server_learning_rate
            if number == 1:
                self.update_norms[number] = float(np.linalg.norm(velocity))
            elif self._velocity is not None:  # unknown for the first round after a resumption
                update = velocity - self.settings.server_momentum * self._velocity
                self.update_norms[number] = float(np.linalg.norm(update))
            self._velocity = velocity
        self._before = flat


def accuracy(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """The fraction of inputs that a model classifies rightly."""
    model.eval()
    with torch.no_grad():
        found = torch.cat([model(part).argmax(1) for part in inputs.split(2000)])
    return float((found == labels).double().mean())


def finish(
    settings: Settings,
    folder: ResultsFolder,
    inputs: Inputs,
    model: nn.Sequential,
    result: PrivateResult,
    watch: Watch,
    nodes_tested: dict[str, Any] | None,
    *,
    started: float,
    training_seconds: float,
) -> None:
    """Test once, ask the encrypted questions, and write everything down."""
    report = result.privacy
    if report is None:
        raise RuntimeError("the strategy gave no privacy report")
    model.load_state_dict(result.arrays.to_torch_state_dict())
    dataset = inputs.dataset
    test_inputs = inputs.test()
    test_accuracy = accuracy(
        model, torch.from_numpy(test_inputs), torch.tensor(dataset.test.labels)
    )
    encrypted = None
    encrypted_started = time.perf_counter()
    if settings.encrypted_images:
        count = min(settings.encrypted_images, len(dataset.test))
        log(INFO, "Asking %d encrypted questions ...", count)
        encrypted = run_encrypted_test(
            model,
            folder.file("model.safetensors"),
            MODELS[settings.model],
            test_inputs[:count],
            np.asarray(dataset.test.labels[:count]),
            say=lambda line: log(INFO, line),
        )
    now = time.perf_counter()
    metrics = {
        "dataset": settings.dataset,
        "model": settings.model,
        "deployed": settings.deployed,
        "accuracy": {
            "validation": list(watch.accuracy.values())[-1] if watch.accuracy else None,
            "test": test_accuracy,
            "validation_by_round": watch.accuracy,
        },
        "privacy": privacy_metrics(settings, report),
        "encrypted": None if encrypted is None else encrypted.metrics,
        "encrypted_round": nodes_tested,
        "seconds": {
            "total": now - started,
            "training": training_seconds,
            "encrypted": now - encrypted_started,
        },
    }
    folder.write_json("metrics.json", metrics)
    pictures = draw(settings, folder, inputs, report, watch, encrypted)
    write_report(folder, metrics, settings.as_config(), pictures)
    folder.become_latest()
    log(INFO, "Test accuracy %.2f %%", 100 * test_accuracy)
    log(INFO, "ε = %.4f at δ = %g, client-level", report.epsilon, report.delta)
    if encrypted is not None:
        log(INFO, encrypted.summary)
    log(INFO, "Results: %s", folder.path)
    log(INFO, "Open %s", folder.file("report.html"))


def _trust_in_server(report: PrivacyReport) -> str:
    if report.secure_aggregation is None:
        return "the server, to add the noise and keep raw updates to itself"
    if report.secure_aggregation.noise == "distributed":
        return (
            "the server, to bring each sum's noise to its full amount and keep the sums to itself; "
            "it sees no single update"
        )
    return (
        "the server, to add the noise and keep the rounds' sums to itself; it sees no single update"
    )


def privacy_metrics(settings: Settings, report: PrivacyReport) -> dict[str, Any]:
    """Both levels of privacy, side by side and never mixed, and what tuning cost."""
    client_level = report.as_dict() | {
        "covers": "all runs that share the ledger" if settings.ledger else "this run alone",
        "unit": "one client: everything it holds",
        "trusted": _trust_in_server(report),
    }
    if settings.record_epsilon:
        record_level: dict[str, Any] = {
            "epsilon_max": settings.record_epsilon,
            "delta": settings.record_delta,
            "unit": "one image of one client",
            "adjacency": "add-or-remove-one",
            "trusted": "nobody but the client itself",
            "planned_participations": settings.planned_participations,
            "note": "the public cap that every client enforces in its own ledger; "
            "clients' ledgers are not collected",
        }
    else:
        record_level = {
            "epsilon_max": None,
            "delta": None,
            "reason": "clients add no noise of their own (record-epsilon = 0); their examples are "
            "protected by the client-level guarantee only",
        }
    return {
        "client_level": client_level,
        "record_level": record_level,
        "tuning": {
            "epsilon": 0.0,
            "reason": "hyper-parameters were chosen on 10,000 images that belong to no client",
        },
    }


def draw(
    settings: Settings,
    folder: ResultsFolder,
    inputs: Inputs,
    report: PrivacyReport,
    watch: Watch,
    encrypted: EncryptedTest | None,
) -> dict[str, Path]:
    """Draw the run's pictures; their captions are the keys."""
    pictures: dict[str, Path] = {}

    def picture(name: str, caption: str) -> Path:
        pictures[caption] = folder.file(name)
        return pictures[caption]

    rounds = {number: value for number, value in watch.accuracy.items() if number > 0}
    if rounds:
        plots.plot_training(
            picture("training.png", "Accuracy on images that belong to no client, and ε"),
            accuracy=rounds,
            epsilon=report.epsilon_by_round,
            budget=settings.epsilon,
            delta=report.delta,
        )
    if watch.update_norms:
        scale = report.sampling_rate * (settings.total_weight or report.population)
        parameters = sum(p.numel() for p in watch.model.parameters())
        plots.plot_noise(
            picture("noise.png", "What clients said, and the noise it was said in"),
            released={number: norm * scale for number, norm in watch.update_norms.items()},
            noise=report.noise_multiplier * report.clipping_norm * parameters**0.5,
        )
    if encrypted is not None:
        plots.plot_encrypted(
            picture("encrypted.png", "Images the evaluator never saw, and the answers it gave"),
            images=inputs.dataset.test.images[: len(encrypted.answers)],
            labels=encrypted.labels,
            answers=encrypted.answers,
        )
    if not settings.deployed:
        partitions = load_partitions(settings.partition_spec(report.population), inputs.dataset)
        plots.plot_holdings(
            picture("holdings.png", "Simulation: not private. Who holds what"),
            counts=plots.label_counts(partitions, np.asarray(inputs.dataset.train.labels)),
        )
    return pictures


class OperatorLog:
    """Cohorts, node ids and reasons, in a file that only the operator reads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._logger = logging.getLogger("bloomseal.operator")

    def __enter__(self) -> None:
        os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
        self._handler = logging.FileHandler(self._path)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._handler.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
