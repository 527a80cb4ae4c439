"""The server: averages privately, and tests on days of its own."""

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from meters import task
from strategies import Budget, DPFedAvg, Poisson, Population, ServerSGD

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    rounds = int(context.run_config["rounds"])
    loads, charged = task.days(0, 1000)
    strategy = DPFedAvg(
        population=Population.connected(grid),
        sampling=Poisson(0.1),
        clipping=0.05,
        budget=Budget(epsilon=3.0, delta=1e-5),
        ledger=str(context.run_config["ledger"]),
        optimizer=ServerSGD(learning_rate=8.0, momentum=0.9),
    )

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        model = arrays.to_numpy_ndarrays()
        return MetricRecord({"accuracy": task.accuracy(model, loads, charged)})

    result = strategy.start(
        grid, ArrayRecord(task.start()), num_rounds=rounds, evaluate_fn=evaluate
    )
    accuracy = result.evaluate_metrics_serverapp[rounds]["accuracy"]
    print(f"accuracy {accuracy:.3f}")
