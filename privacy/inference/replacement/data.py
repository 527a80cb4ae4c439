"""The data on which activations are replaced: public, or private with every use paid for."""

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from privacy.arguments import convert, number, of_kind, real_array
from privacy.training import ClientLedger, ClipAndNoise, FullBatch, Payment, PoissonBatches

_INPUTS = "numbers of shape (inputs, ...)"
_LABELS = "a class for each input, whole numbers of shape (inputs,)"


@dataclass(frozen=True, eq=False)
class PublicData:
    """Inputs, and labels if there are any, that everybody may learn.

    **Guarantee.** None. Ranges, polynomials, weights and report are functions of these data.

    **Assumptions.** Nobody minds who learns what is in them: a published data set, or drawn inputs.

    **Not covered.** The data on which the model was trained first.

    Parameters
    ----------
    inputs : array_like or Tensor
        Shape (inputs, ...), as the model takes them.
    labels : array_like or Tensor, optional
        The right classes, shape (inputs,). For a model with one logit 0 and 1.
    """

    inputs: ArrayLike | Tensor
    labels: ArrayLike | Tensor | None = None

    def __post_init__(self) -> None:
        convert(self, "inputs", _inputs)
        if self.labels is not None:
            convert(self, "labels", _labels, inputs=self.inputs)


@dataclass(frozen=True, eq=False, kw_only=True)
class PrivateData:
    """Records that nobody else may learn; reading them is paid for in their ledger.

    The records are read by :func:`privacy.training.train` alone, which clips each record's
    gradient and adds noise. Ranges, polynomials and the report's shares come from ``stand_ins``.

    **Guarantee.** The new model, its report and its ranges are (ε, δ)-differentially private for
    adding or removing one record; ε is the ledger's. The original model is used as it is given.

    **Assumptions.** Those of :class:`privacy.training.ClipAndNoise`; ``stand_ins`` are public; the
    original model's own training is accounted where it happened.

    **Not covered.** One person's several records; the choice of settings by looking at results on
    the records.

    Parameters
    ----------
    inputs, labels
        The records, as in :class:`PublicData`.
    stand_ins : array_like or Tensor
        Public inputs, shape (stand-ins, ...), as like the records as can be had: of a public data
        set, or drawn by rule. Ranges are observed on them.
    protection : ClipAndNoise
        As ``train`` takes it.
    batches : FullBatch or PoissonBatches
        How many steps, on which records.
    ledger : ClientLedger or Payment
        Charged before a record is looked at.
    learning_rate : float
        Of plain gradient descent on the clipped and noised gradient.
    """

    inputs: ArrayLike | Tensor
    labels: ArrayLike | Tensor | None = None
    stand_ins: ArrayLike | Tensor
    protection: ClipAndNoise
    batches: FullBatch | PoissonBatches
    ledger: ClientLedger | Payment
    learning_rate: float

    def __post_init__(self) -> None:
        convert(self, "inputs", _inputs)
        if self.labels is not None:
            convert(self, "labels", _labels, inputs=self.inputs)
        convert(self, "stand_ins", _inputs)
        give = "ClipAndNoise(...): without noise no record is protected"
        of_kind("protection", self.protection, ClipAndNoise, give)
        of_kind("batches", self.batches, (FullBatch, PoissonBatches), "FullBatch or PoissonBatches")
        of_kind("ledger", self.ledger, (ClientLedger, Payment), "ClientLedger(...), or pay(...)")
        convert(self, "learning_rate", number, above=0)


def _inputs(name: str, value: Any) -> Tensor:
    array = real_array(name, value, _INPUTS)
    if array.ndim < 2 or len(array) == 0:
        raise ValueError(f"{name} has shape {array.shape}; give {_INPUTS}")
    tensor = torch.tensor(array, device="cpu")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity; give finite numbers")
    return tensor


def _labels(name: str, value: Any, *, inputs: Tensor) -> Tensor:
    array = real_array(name, value, _LABELS)
    if array.shape != (len(inputs),):
        raise ValueError(
            f"{name} has shape {array.shape}, inputs {tuple(inputs.shape)}; give one each"
        )
    tensor = torch.tensor(array, device="cpu").long()
    if not bool((tensor == torch.tensor(array, device="cpu")).all()) or int(tensor.min()) < 0:
        raise ValueError(f"{name} holds something else than classes; give {_LABELS}, from 0")
    return tensor
