"""The server's side of a run: settings, training, encrypted inference, results."""

import json
import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from logging import ERROR, INFO, WARNING
from math import isfinite
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

from flower_app.data import Inputs, load_inputs, load_partitions
from flower_app.encrypted.evaluation import (
    EncryptedTest,
    check_model_can_be_encrypted,
    run_encrypted_test,
)
from flower_app.encrypted.round import hold_encrypted_round, round_cost
from flower_app.errors import SettingError
from flower_app.models.build import build_model
from flower_app.models.specs import MODELS
from flower_app.report import plots
from flower_app.report.outcome import OutcomeFile
from flower_app.report.privacy_metrics import privacy_metrics
from flower_app.report.report import write_report
from flower_app.report.results_folder import ResultsFolder, closing_lines
from flower_app.report.software import software
from flower_app.settings import Settings, write_run_config
from flower_app.training.assembly import check_run, make_strategy, warn_of_few_clients
from flower_app.training.resumption import SOFTWARE, as_it_ended, can_go_on, software_of_run
from privacy.accounting import read_ledger
from strategies import DPFedAvg, PrivacyReport, PrivateResult
from strategies.errors import BudgetError, SpentBudgetError

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run everything, and print where the results lie."""
    outcome = OutcomeFile(context.run_id)
    # OpenBLAS ends its threads when a process forks, and what another thread then has under way
    # waits for ever: a simulation starts Ray in this process, beside this function.
    with threadpool_limits(1, user_api="blas"), outcome.told():
        _run(grid, context, outcome)


def _run(grid: Grid, context: Context, outcome: OutcomeFile) -> None:
    settings = Settings.from_config(context.run_config)
    started = time.perf_counter()
    connected = len(list(grid.get_node_ids()))
    assembled = check_run(settings, nodes=connected)
    population, size, dataset = assembled.population, assembled.size, assembled.dataset
    warn_of_few_clients(settings, population=size, connected=connected)
    if settings.noise_placement == "distributed" and round_cost(settings):
        log(
            WARNING,
            "The server adds the noise to the nodes' reports of the encrypted test-time round, and "
            "sees each without it: ε against the server is infinite once the round is paid, "
            "although clients add the noise of training. Leave encrypted-round-images out to keep "
            "it finite.",
        )
    inputs = load_inputs(dataset, MODELS[settings.model].kind, say=lambda line: log(INFO, line))
    model = build_model(settings.model)
    if settings.encrypted_test_images or settings.encrypted_round:
        check_model_can_be_encrypted(model, MODELS[settings.model])
    folder = folder_of_run(settings, context.run_id, population=size)
    outcome.tell(folder=str(folder.path))
    ledger = Path(settings.ledger or folder.ledger)
    with OperatorLog(folder.operator_log):
        if settings.deployed and not settings.ledger:
            log(
                WARNING,
                "ledger is not set: the ε of this run counts this run alone. Set it to one file "
                "for all runs on these clients, or add up what they spent.",
            )
        strategy = make_strategy(settings, population, ledger=ledger, checkpoint=folder.checkpoint)
        log(INFO, "Results: %s", folder.path)
        watch = Watch(settings, model, inputs, folder)
        with how_to_go_on(outcome, folder):
            training_started = time.perf_counter()
            try:
                result = strategy.start(
                    grid,
                    initial_arrays=ArrayRecord(model.state_dict()),
                    num_rounds=settings.rounds,
                    timeout=settings.round_timeout,
                    evaluate_fn=watch.bound_to(strategy),
                )
            except BudgetError as error:
                text = str(error).replace("budget.epsilon", "epsilon")
                text = text.replace("noise_multiplier", "noise-multiplier")
                if isinstance(error, SpentBudgetError):
                    text = f"epsilon = {settings.epsilon:g} is spent; {text}"
                raise SettingError(text) from error
            training_seconds = time.perf_counter() - training_started
            folder.write_model(result.arrays)
            nodes_tested = None
            if settings.encrypted_round and result.privacy is not None:
                nodes_tested = hold_encrypted_round(
                    grid,
                    settings,
                    folder,
                    population=population,
                    ledger=ledger,
                    run_id=context.run_id,
                )
                result.privacy = strategy.report()  # it may have been paid from the same ledger
            finish(
                settings,
                folder,
                inputs,
                model,
                result,
                watch,
                nodes_tested,
                ledger=ledger,
                started=started,
                training_seconds=training_seconds,
            )


def folder_of_run(settings: Settings, run_id: int, *, population: int) -> ResultsFolder:
    """The folder of the run to go on with, or a new one with its settings written down."""
    if settings.resume:
        folder = ResultsFolder(Path(settings.resume).resolve())
        if another_code(software_of_run(folder.path)):
            log(WARNING, "The run in %s was begun with another version of the code.", folder.path)
        return folder
    folder = ResultsFolder.create(settings, run_id)
    config = settings.as_config()
    if not settings.deployed:
        # As many as there were nodes: a run that goes on must have the same.
        config["population"] = population
    folder.write_json("config.json", config | {SOFTWARE: software()})
    write_run_config(config | {"resume": str(folder.path)}, folder.resumption)
    return folder


def another_code(begun_with: Mapping[str, Any]) -> bool:
    """Whether a run was begun with other code than this."""
    return bool(begun_with.get("source_sha256") != software()["source_sha256"])


@contextmanager
def how_to_go_on(outcome: OutcomeFile, folder: ResultsFolder) -> Iterator[None]:
    """Say how to go on with a run that breaks off in the block after its first checkpoint."""
    outcome.tell(begun=True)
    try:
        yield
    except BaseException:
        if can_go_on(folder.path):
            log(
                ERROR,
                "The run broke off. What was trained and paid so far is kept. To go on: %s, or: "
                "flwr run . --stream --run-config %s",
                folder.resume_command,
                shlex.quote(str(folder.resumption)),
            )
        raise


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
    folder: ResultsFolder
    accuracy: dict[int, float] = field(default_factory=dict)
    update_norms: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._images = torch.from_numpy(self.inputs.validation())
        self._labels = torch.tensor(self.inputs.dataset.validation.labels, device="cpu")
        self._pace = Pace(self.settings.rounds)
        self._latest = False
        self._before: npt.NDArray[np.float64] | None = None
        self._velocity: npt.NDArray[np.float64] | None = None
        if self.settings.resume:
            self._recall()

    def bound_to(self, strategy: DPFedAvg) -> Any:
        """An ``evaluate_fn`` that knows what the strategy has spent."""

        def evaluate(number: int, arrays: ArrayRecord) -> None:
            self._follow(number, arrays)
            self.model.load_state_dict(arrays.to_torch_state_dict())
            self.accuracy[number] = accuracy(self.model, self._images, self._labels)
            self._remember()
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

    def _remember(self) -> None:
        """Keep what a run that is taken up again could not find out any more."""
        self.folder.write_json(
            "progress.json", {"accuracy": self.accuracy, "update_norms": self.update_norms}
        )
        if not self._latest:
            self._latest = True
            point_latest(self.folder)

    def _recall(self) -> None:
        try:
            told = json.loads(self.folder.file("progress.json").read_text())
            self.accuracy = {int(number): float(v) for number, v in told["accuracy"].items()}
            norms = {int(number): float(v) for number, v in told["update_norms"].items()}
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            log(WARNING, "What the run's pictures showed of its first rounds is lost: %s", error)
            return
        self.update_norms = norms

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


def point_latest(folder: ResultsFolder) -> None:
    """Let ``latest`` point at a run; a run does not end because something else has that name."""
    try:
        folder.become_latest()
    except OSError as error:
        log(WARNING, "%s cannot point at this run: %s", folder.path.parent / "latest", error)


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
    ledger: Path,
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
    if settings.encrypted_test_images:
        count = min(settings.encrypted_test_images, len(dataset.test))
        log(INFO, "Asking %d encrypted questions ...", count)
        encrypted = run_encrypted_test(
            model,
            folder.file("model.safetensors"),
            MODELS[settings.model],
            test_inputs[:count],
            np.asarray(dataset.test.labels[:count]),
            notify=lambda line: log(INFO, line),
        )
    now = time.perf_counter()
    begun = software_of_run(folder.path)
    metrics = {
        SOFTWARE: software(),
        "resumed": bool(settings.resume),
        # Of a resumed run: with which code its first rounds were played, where that was another.
        "begun_with": begun if another_code(begun) else None,
        "dataset": settings.dataset,
        "model": settings.model,
        "deployed": settings.deployed,
        "accuracy": {
            "validation": list(watch.accuracy.values())[-1] if watch.accuracy else None,
            "test": test_accuracy,
            "validation_by_round": watch.accuracy,
        },
        "privacy": privacy_metrics(settings, report, read_ledger(ledger)),
        "encrypted": None if encrypted is None else encrypted.metrics,
        "encrypted_round": nodes_tested,
        # How long clients took is theirs, unless they are simulated. Since the resumption, if any.
        "seconds": {
            "total": None if settings.deployed else now - started,
            "training": None if settings.deployed else training_seconds,
            "encrypted": now - encrypted_started,
        },
    }
    pictures = draw(settings, folder, inputs, report, watch, encrypted)
    config = as_it_ended(settings, folder)
    folder.write_json("config.json", config | {SOFTWARE: begun})
    write_report(folder, metrics, config, pictures)
    folder.finish(metrics)
    point_latest(folder)
    for line in closing_lines(folder.path):
        log(INFO, line)


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
    whose = "the server holds" if settings.deployed else "belong to no client"
    if rounds:
        plots.plot_training(
            picture("training.png", f"Accuracy on images that {whose}, and ε"),
            accuracy=rounds,
            epsilon=report.epsilon_by_round,
            budget=settings.epsilon,
            delta=report.delta,
        )
    scale = report.sampling_rate * (settings.total_weight or report.population)
    released = {number: norm * scale for number, norm in watch.update_norms.items()}
    if not all(map(isfinite, released.values())):
        log(
            WARNING,
            "The model has grown beyond what its numbers can hold, and is of no use: lower "
            "server-learning-rate, or raise what an average is divided by (total-weight).",
        )
        released = {number: norm for number, norm in released.items() if isfinite(norm)}
    if released:
        parameters = sum(p.numel() for p in watch.model.parameters())
        plots.plot_noise(
            picture("noise.png", "What clients said, and the noise it was said in"),
            released=released,
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
        os.close(os.open(self._path, os.O_CREAT | os.O_WRONLY, 0o600))
        self._handler = logging.FileHandler(self._path)
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._logger.addHandler(self._handler)

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self._handler)
        self._handler.close()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
