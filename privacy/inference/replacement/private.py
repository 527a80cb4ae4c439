"""Fine-tuning on private records: by the accounted trainer alone."""

from functools import partial
from typing import cast

from torch import Tensor, nn

from privacy.inference.replacement.data import PrivateData
from privacy.inference.replacement.tuning import (
    Imitation,
    Ranges,
    WithExcess,
    targets_of,
    watched,
)
from privacy.training import ClientLedger, GradientDescent, TrainingResult, pay, train


def tune_privately(
    model: nn.Module,
    teacher: nn.Module,
    data: PrivateData,
    *,
    spread: float,
    ranges: Ranges,
    batch_size: int,
) -> TrainingResult:
    """Train a model in place with clipped and noised gradients, as ``data`` says.

    The ledger is charged before a record is looked at. A record's target is the teacher's answer to
    it, so that a record reaches the model by its own clipped gradient alone. Batch normalisation is
    frozen meanwhile. ``spread`` must be public.
    """
    like = next(teacher.parameters())
    inputs, labels = cast(Tensor, data.inputs), cast("Tensor | None", data.labels)
    payment = data.ledger
    if isinstance(payment, ClientLedger):
        payment = pay(data.protection, data.batches, ledger=payment, records=partial(len, inputs))
    targets = targets_of(teacher, inputs, labels, batch_size)
    learning = {each: each.requires_grad for each in model.parameters()}
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.requires_grad_(False)
    try:
        with watched(model, ranges) as outside:
            wide = WithExcess(model, outside).eval()
            trained = [each for each in wide.parameters() if each.requires_grad]
            return train(
                wide,
                (inputs.to(like), targets),
                loss=Imitation(spread, labels is not None),
                optimizer=GradientDescent(trained, learning_rate=data.learning_rate),
                protection=data.protection,
                batches=data.batches,
                ledger=payment,
                physical_batch_size=batch_size,
            )
    finally:
        for parameter, learns in learning.items():
            parameter.requires_grad_(learns)
