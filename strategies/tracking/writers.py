"""Writers of a run's progress for TensorBoard, MLflow, Weights & Biases and Prometheus.

Each is an ``on_round`` of a strategy, made before the run, so that what it lacks shows before
anything is spent, and closed after it::

    with TensorBoardWriter("runs/one") as writer:
        strategy = DPFedAvg(..., on_round=writer)
        result = strategy.start(grid, arrays, num_rounds=100)

They write :meth:`RoundProgress.figures` alone: what was released anyway. How long rounds took
depends on clients and is not covered by ε. TensorBoard's and MLflow's files have it only with
``timing=True``; otherwise each of their time stamps is that of the writer's beginning.
"""

import os
import time
from collections.abc import Mapping
from importlib import import_module
from types import TracebackType
from typing import Any, Self

from privacy import arguments
from privacy.imports import needing
from strategies.progress import RoundProgress

Settings = Mapping[str, object]
_SECONDS = "run/seconds"


class TensorBoardWriter:
    """Writes scalars as TensorBoard's event files; needs ``bloomseal[tensorboard]``, no PyTorch.

    Parameters
    ----------
    folder : path-like
        The log directory; made if it is missing.
    settings : mapping, optional
        Public settings of the run, shown as text.
    timing : bool
        Whether the files show how long rounds took. Default: they do not.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
        timing: bool = False,
    ) -> None:
        with needing("TensorBoardWriter", extra="tensorboard"):
            import_module("tensorboard")
        module = import_module("tensorboard.summary.writer.event_file_writer")
        self._protos = import_module("tensorboard.compat.proto")
        for name in ("event_pb2", "summary_pb2", "tensor_pb2", "types_pb2"):
            import_module(f"tensorboard.compat.proto.{name}")
        self._timing, self._begun = timing, time.time()
        self._writer = module.EventFileWriter(os.fspath(folder))
        if settings:
            self._write(0, [self._text("settings", settings)])

    def __call__(self, progress: RoundProgress, /) -> None:
        """Write a round's figures."""
        figures = progress.figures()
        if self._timing:
            figures[_SECONDS] = progress.seconds
        summary = self._protos.summary_pb2.Summary
        values = [summary.Value(tag=name, simple_value=v) for name, v in figures.items()]
        self._write(progress.round, values)

    def _write(self, step: int, values: list[Any]) -> None:
        event = self._protos.event_pb2.Event(
            wall_time=time.time() if self._timing else self._begun,
            step=step,
            summary=self._protos.summary_pb2.Summary(value=values),
        )
        self._writer.add_event(event)
        self._writer.flush()

    def _text(self, tag: str, settings: Settings) -> Any:
        summary, rows = self._protos.summary_pb2, ["setting | value", "--- | ---"]
        rows += [f"{name} | {value}" for name, value in settings.items()]
        text = self._protos.tensor_pb2.TensorProto(
            dtype=self._protos.types_pb2.DT_STRING, string_val=["\n".join(rows).encode()]
        )
        text.tensor_shape.dim.add(size=1)
        plugin = summary.SummaryMetadata.PluginData(plugin_name="text")
        metadata = summary.SummaryMetadata(plugin_data=plugin)
        return summary.Summary.Value(tag=tag, metadata=metadata, tensor=text)

    def close(self) -> None:
        """End the file."""
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class MLflowWriter:
    """Writes a run of MLflow's, into a database or to a server; needs ``bloomseal[mlflow]``.

    MLflow reports usage to its makers unless ``MLFLOW_DISABLE_TELEMETRY=true`` stands in the
    environment.

    Parameters
    ----------
    uri : path-like
        MLflow's tracking URI: ``sqlite:////srv/mlflow.db``, or ``http://…`` of a server. (MLflow 3
        refuses folders unless ``MLFLOW_ALLOW_FILE_STORE=true`` stands in the environment.)
    experiment : str
        The experiment's name; made if there is none.
    run_name : str, optional
        Default: one of MLflow's own making.
    settings : mapping, optional
        Public settings of the run: MLflow's parameters.
    timing : bool
        Whether metrics and time stamps show how long rounds took. Default: they do not. (A server
        can still see when it is called.)
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        experiment: str = "bloomseal",
        run_name: str | None = None,
        settings: Settings | None = None,
        timing: bool = False,
    ) -> None:
        with needing("MLflowWriter", extra="mlflow"):
            mlflow = import_module("mlflow")
        arguments.text("experiment", experiment)
        self._entities = import_module("mlflow.entities")
        self._timing, self._begun = timing, _milliseconds()
        self._client = mlflow.MlflowClient(tracking_uri=os.fspath(uri))
        known = self._client.get_experiment_by_name(experiment)
        where = known.experiment_id if known else self._client.create_experiment(experiment)
        run = self._client.create_run(where, start_time=self._begun, run_name=run_name)
        self.run_id: str = run.info.run_id
        if settings:
            named = [self._entities.Param(name, str(v)) for name, v in settings.items()]
            self._client.log_batch(self.run_id, params=named)

    def __call__(self, progress: RoundProgress, /) -> None:
        """Write a round's figures."""
        figures = progress.figures()
        if self._timing:
            figures[_SECONDS] = progress.seconds
        now, step = self._now(), progress.round
        metrics = [self._entities.Metric(name, v, now, step) for name, v in figures.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def _now(self) -> int:
        return _milliseconds() if self._timing else self._begun

    def close(self, status: str = "FINISHED") -> None:
        """End MLflow's run, as ``FINISHED`` or ``FAILED``."""
        self._client.set_terminated(self.run_id, status=status, end_time=self._now())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close("FINISHED" if kind is None else "FAILED")


class WandbWriter:
    """Writes a run of Weights & Biases'; needs ``bloomseal[wandb]``.

    Everything is sent to the service of Weights & Biases, under the account of whoever is logged
    in, unless ``mode="offline"`` or ``WANDB_MODE`` says otherwise. The console, the code, git, the
    installed packages and the machine's load are not recorded; the machine's name is. Its records
    have the time of each call, and so show how long rounds took, which ε does not cover.

    Parameters
    ----------
    project : str
        "project" or "entity/project".
    folder : path-like, optional
        Where its files lie. Default: the working directory.
    mode : str, optional
        "online" or "offline".
    run_name : str, optional
    settings : mapping, optional
        Public settings of the run: its configuration.
    """

    def __init__(
        self,
        project: str = "bloomseal",
        *,
        folder: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        run_name: str | None = None,
        settings: Settings | None = None,
    ) -> None:
        with needing("WandbWriter", extra="wandb"):
            wandb = import_module("wandb")
        entity, _, name = arguments.text("project", project).rpartition("/")
        self._run = wandb.init(
            project=name,
            entity=entity or None,
            dir=None if folder is None else os.fspath(folder),
            mode=mode,
            name=run_name,
            config=dict(settings or {}),
            settings=wandb.Settings(
                console="off",
                disable_code=True,
                disable_git=True,
                save_code=False,
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )

    def __call__(self, progress: RoundProgress, /) -> None:
        """Write a round's figures."""
        self._run.log(progress.figures(), step=progress.round)

    def close(self, exit_code: int = 0) -> None:
        """End the run."""
        self._run.finish(exit_code=exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.close(0 if kind is None else 1)


class PrometheusExporter:
    """Serves a long run's figures at ``http://ADDRESS:PORT/metrics``, for Prometheus to scrape.

    Needs ``bloomseal[prometheus]``. For the operator: it asks for no password, and whoever reads it
    again and again sees how long rounds take, which ε does not cover.

    Parameters
    ----------
    port : int
        0: any that is free; ``port`` says which.
    address : str
        Default: reachable from this machine alone.
    """

    def __init__(self, port: int = 9464, *, address: str = "127.0.0.1") -> None:
        with needing("PrometheusExporter", extra="prometheus"):
            prometheus = import_module("prometheus_client")
        number = arguments.whole("port", port, least=0, most=65535)
        registry = prometheus.CollectorRegistry()
        self._gauges = {
            name: prometheus.Gauge(f"bloomseal_{name}", text, registry=registry)
            for name, text in _GAUGES.items()
        }
        self._metrics = prometheus.Gauge(
            "bloomseal_metric", "Released metrics of the last round.", ["name"], registry=registry
        )
        self._unopened = prometheus.Counter(
            "bloomseal_unopened_rounds", "Rounds whose sum was not opened.", registry=registry
        )
        self._server, self._thread = prometheus.start_http_server(number, address, registry)
        self.port: int = self._server.server_port

    def __call__(self, progress: RoundProgress, /) -> None:
        """Take a round's figures over."""
        for name, gauge in self._gauges.items():
            gauge.set(getattr(progress, name))
        for name, value in progress.metrics.items():
            self._metrics.labels(name).set(value)
        if not progress.opened:
            self._unopened.inc()

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_GAUGES = {
    "round": "The last round that was paid.",
    "rounds": "The number of the run's last round.",
    "epsilon": "ε of everything that the population has paid.",
    "epsilon_limit": "The budget's ε.",
    "delta": "δ.",
    "noise_multiplier": "z.",
    "clipping_norm": "S.",
    "expected_cohort": "How many a round draws on average.",
    "model_bytes": "Bytes of the model's arrays, as each client is sent them.",
    "seconds": "Seconds that the last round took.",
}


def _milliseconds() -> int:
    return int(1000 * time.time())
