"""The server: averages, and tests on pictures of its own."""

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp

from digits.task import Net, accuracy, pictures
from strategies import Budget, DPFedAvg, Poisson, Population

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    torch.manual_seed(0)
    net = Net()
    images, labels = pictures(0, 1000)
    strategy = DPFedAvg(
        population=Population.connected(grid),
        sampling=Poisson(0.5),
        clipping=0.5,
        budget=Budget(epsilon=8.0, delta=1e-3),
        ledger="~/digits-ledger.jsonl",
    )

    def evaluate(number: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": accuracy(net, images, labels)})

    result = strategy.start(
        grid,
        initial_arrays=ArrayRecord(net.state_dict()),
        num_rounds=int(context.run_config["rounds"]),
        evaluate_fn=evaluate,
    )
    for number, metrics in result.evaluate_metrics_serverapp.items():
        print(f"round {number}: accuracy {metrics['accuracy']:.3f}")
