"""The server's side of a run: settings, training, encrypted inference, results."""

import time
from contextlib import ExitStack
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log

from privacy.imports import needing

with needing("the app", extra="app"):
    from threadpoolctl import threadpool_limits

    from flower_app.finish import finish

from flower_app.encrypted.evaluation import check_model_can_be_encrypted
from flower_app.encrypted.round import hold_encrypted_round
from flower_app.report.outcome import OutcomeFile
from flower_app.settings import Settings
from flower_app.shared.model import compile_shared
from flower_app.training.assembly import (
    check_run,
    make_strategy,
    refused_budget,
    round_cost,
    warn_of_few_clients,
)
from flower_app.training.devices import device_of
from flower_app.training.progress import ProgressLogger, operator_log
from flower_app.training.resumption import advice_on_failure, folder_of_run
from flower_app.training.tracking import tracked
from flower_app.training.work import TASK, inputs_of, model_of, spec_of, tell_of_servers_data
from strategies.errors import BudgetError

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
    if not settings.has_silos:
        warn_of_few_clients(settings, population=size, connected=connected)
    if settings.noise_placement == "distributed" and round_cost(settings):
        log(
            WARNING,
            "The server adds the noise to the nodes' reports of the encrypted test-time round, and "
            "sees each without it: ε against the server is infinite once the round is paid, "
            "although clients add the noise of training. Leave encrypted-round-images out to keep "
            "it finite.",
        )
    inputs = inputs_of(settings, dataset, notify=lambda line: log(INFO, line))
    model = model_of(settings)
    if not settings.deployed:
        device_of(settings)  # a simulation's clients are on this machine
    task = settings.own_task
    if task:
        log(
            INFO,
            "Task %s (%s): mode = %s, ε = %g at δ = %g",
            task.name,
            settings.task,
            task.mode,
            task.epsilon,
            task.delta,
        )
        tell_of_servers_data(settings)
    shared = settings.encrypted_backend == "shared"
    if settings.encrypted_round or (settings.encrypted_test_images and not shared):
        check_model_can_be_encrypted(model, spec_of(settings))
    if settings.encrypted_test_images and shared:
        check_model_can_be_encrypted(model, spec_of(settings), compile_shared)
    folder = folder_of_run(settings, context.run_id, population=size)
    outcome.tell(folder=str(folder.path))
    ledger = Path(settings.ledger or folder.ledger)
    with operator_log(folder.operator_log), ExitStack() as trackers:
        if settings.deployed and not settings.ledger:
            log(
                WARNING,
                "ledger is not set: the ε of this run counts this run alone. Set it to one file "
                "for all runs on these nodes, or add up what they spent.",
            )
        progress = ProgressLogger(settings, model, inputs, folder)
        strategy = make_strategy(
            settings,
            population,
            ledger=ledger,
            checkpoint=folder.checkpoint,
            on_round=trackers.enter_context(tracked(settings, folder, progress.accuracy)),
        )
        log(INFO, "Results: %s", folder.path)
        outcome.tell(begun=True)
        with advice_on_failure(folder):
            training_started = time.perf_counter()
            try:
                result = strategy.start(
                    grid,
                    initial_arrays=ArrayRecord(model.state_dict()),
                    num_rounds=settings.rounds,
                    timeout=settings.round_timeout,
                    train_config=ConfigRecord({TASK: task.digest} if task else {}),
                    evaluate_fn=progress.evaluate_fn(strategy),
                )
            except BudgetError as error:
                raise refused_budget(settings, error) from error
            training_seconds = time.perf_counter() - training_started
            trackers.close()
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
                progress,
                nodes_tested,
                ledger=ledger,
                started=started,
                training_seconds=training_seconds,
            )
