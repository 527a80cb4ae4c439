"""Who watches a run: TensorBoard, MLflow or Weights & Biases, and Prometheus."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from logging import WARNING
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flwr.supercore import log

from flower_app.errors import wrong
from flower_app.report.results_folder import NOT_ABSOLUTE, ResultsFolder
from flower_app.settings import PATHS_OF_THE_SERVER, Settings
from strategies import OnRound, RoundProgress
from strategies.tracking import MLflowWriter, PrometheusExporter, TensorBoardWriter, WandbWriter


def check_tracking(settings: Settings) -> None:
    """Refuse a tracker that is not installed, and a folder that is relative."""
    name, uri = settings.tracking, settings.tracking_uri
    if name == "off":
        if uri:
            raise wrong("tracking-uri", uri, "tracking is off: leave it out, or say which tracker")
        return
    if find_spec(name) is None:
        raise wrong(
            "tracking",
            name,
            f"it is not installed in the environment of the run: pip install 'bloomseal[{name}]'",
        )
    password = _password(uri)
    if password:
        raise wrong(
            "tracking-uri",
            uri.replace(password, "..."),
            "it holds a password, which would stand in the run's files and its report: leave it "
            "out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (for a database "
            "what its client reads, such as PGPASSWORD) where the ServerApp runs",
        )
    is_path = name == "tensorboard" or (name == "mlflow" and ":" not in uri)
    if uri and is_path and not Path(uri).expanduser().is_absolute():
        raise wrong("tracking-uri", uri, NOT_ABSOLUTE)


def _password(uri: str) -> str | None:
    try:
        return urlsplit(uri).password
    except ValueError:  # brackets that are no address; the tracker says so
        return None


@contextmanager
def tracked(
    settings: Settings, folder: ResultsFolder, accuracy: Mapping[int, float]
) -> Iterator[OnRound | None]:
    """What a strategy is given as ``on_round``, begun here and ended with the block.

    A tracker that fails on the way does not end the run.

    Parameters
    ----------
    settings : Settings
    folder : ResultsFolder
    accuracy : mapping
        Validation accuracy by round, which the app measures itself.

    Raises
    ------
    SettingError
        If a tracker cannot be begun; nothing was spent.
    """
    with ExitStack() as stack:
        watchers: list[OnRound] = []
        for begin, name, value in (
            (_exporter, "metrics-port", settings.metrics_port),
            (_writer, "tracking", settings.tracking),
        ):
            try:
                watcher = begin(settings, folder)
            except Exception as error:  # of somebody else's client, or of the system
                raise wrong(name, value, f"it cannot begin: {error}") from error
            if watcher is not None:
                stack.push(partial(_ended, name, watcher))
                watchers.append(watcher)

        def on_round(progress: RoundProgress) -> None:
            metrics = dict(progress.metrics)
            if progress.round in accuracy:
                metrics["server/validation_accuracy"] = accuracy[progress.round]
            for watcher in watchers:
                watcher(replace(progress, metrics=metrics))

        yield on_round if watchers else None


def _exporter(settings: Settings, _: ResultsFolder) -> PrometheusExporter | None:
    return PrometheusExporter(settings.metrics_port) if settings.metrics_port else None


def _writer(
    settings: Settings, folder: ResultsFolder
) -> TensorBoardWriter | MLflowWriter | WandbWriter | None:
    uri, run = settings.tracking_uri, folder.path.name
    public: dict[str, Any] = {
        name: value
        for name, value in settings.as_config().items()
        if name not in (*PATHS_OF_THE_SERVER, "tracking-uri") and value != ""
    }
    timing = not settings.deployed  # how long clients took is theirs, unless they are simulated
    if settings.tracking == "tensorboard":
        where = Path(uri).expanduser() / run if uri else folder.file("tensorboard")
        return TensorBoardWriter(where, settings=public, timing=timing)
    if settings.tracking == "mlflow":
        store = uri or f"sqlite:///{folder.path.parent / 'mlflow.db'}"
        return MLflowWriter(store, run_name=run, settings=public, timing=timing)
    if settings.tracking == "wandb":
        return WandbWriter(uri or "bloomseal", folder=folder.path, run_name=run, settings=public)
    return None


def _ended(name: str, watcher: AbstractContextManager[Any], *raised: Any) -> None:
    """End a watcher, with what the run raised, if anything."""
    try:
        watcher.__exit__(*raised)
    except Exception as error:
        log(WARNING, "%s did not end as it should (%s); the run goes on.", name, error)
