"""A practice: trains on its own patients and replies with the model. It knows of no strategy."""

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cancer import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    config = context.node_config
    x, y = task.practice(int(config["partition-id"]), int(config["num-partitions"]))
    arrays = task.train(message.content["arrays"], x, y)
    metrics = MetricRecord({"num-examples": len(y)})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
