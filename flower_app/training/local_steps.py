"""A client's local steps from the model that was sent, and what it replies."""

import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from torch import nn

from flower_app.data import ClientData
from flower_app.settings import Settings
from flower_app.training.devices import device_of
from flower_app.training.work import model_of
from privacy.training import ClipOnly, GradientDescent, Payment, train


def model_with(settings: Settings, arrays: ArrayRecord) -> nn.Module:
    """The run's model with these weights, where the steps are computed.

    Raises
    ------
    RuntimeError
        If the weights are another model's.
    SettingError
        If this machine has not the run's ``device``.
    """
    model = model_of(settings).to(device_of(settings))
    model.load_state_dict(arrays.to_torch_state_dict())
    return model


def reply_with(
    settings: Settings, arrays: ArrayRecord, data: ClientData, payment: Payment
) -> RecordDict:
    """The reply of a client with this data; without data, noise or the model as it was sent."""
    if not len(data) and isinstance(payment.protection, ClipOnly):
        # As of a skewed partition. The weight does not show it.
        return _reply(settings, arrays, settings.weight_cap)
    model = model_with(settings, arrays)
    result = train(
        model,
        (torch.from_numpy(data.inputs), torch.from_numpy(data.labels)),
        loss=nn.functional.cross_entropy,
        optimizer=GradientDescent(model.parameters(), learning_rate=settings.local_learning_rate),
        protection=payment.protection,
        batches=payment.batches,
        ledger=payment,
    )
    return _reply(settings, ArrayRecord(model.state_dict()), result.weight)


def _reply(settings: Settings, arrays: ArrayRecord, weight: float) -> RecordDict:
    reply = RecordDict({"arrays": arrays})
    if settings.weight_cap:  # uniform weights need no count
        reply["metrics"] = MetricRecord({"num-examples": weight})
    return reply
