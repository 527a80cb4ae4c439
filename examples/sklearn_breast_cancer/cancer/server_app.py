"""The server: averages privately, and tests on patients of its own."""

import numpy as np
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from cancer import task
from strategies import Budget, DPFedAvg, Poisson, Population, ServerSGD

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = DPFedAvg(
        population=Population.connected(grid),
        sampling=Poisson(0.5),
        clipping=float(config["clipping-norm"]),
        budget=Budget(epsilon=float(config["epsilon"]), delta=1e-3),
        ledger=str(config["ledger"]),
        optimizer=ServerSGD(learning_rate=2.0, momentum=0.5),
    )

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": task.accuracy(arrays)})

    result = strategy.start(
        grid,
        task.record(np.zeros((1, 30)), np.zeros(1)),
        num_rounds=int(config["rounds"]),
        evaluate_fn=evaluate,
    )
    last = result.evaluate_metrics_serverapp[int(config["rounds"])]
    print(f"accuracy {last['accuracy']:.3f} at ε = {strategy.epsilon():.2f}, δ = 1e-3")
