"""A household: trains on its own days and replies with the model. It knows of no strategy."""

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from meters import task

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    loads, charged = task.days(1 + int(context.node_config["partition-id"]), 30)
    model = task.train(message.content["arrays"].to_numpy_ndarrays(), loads, charged)
    metrics = MetricRecord({"num-examples": len(charged)})
    return Message(RecordDict({"arrays": ArrayRecord(model), "metrics": metrics}), reply_to=message)
