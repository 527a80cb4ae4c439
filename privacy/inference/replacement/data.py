"""The data on which activations are replaced: public, or private with every use paid for."""

from dataclasses import dataclass
from typing import Any, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from privacy.arguments import convert, number, of_kind, real_array
from privacy.training import ClientLedger, ClipAndNoise, FullBatch, Payment, PoissonBatches

_INPUTS = "numbers of shape (inputs, ...)"
_HELD_OUT = 10
"""One input of so many is kept apart."""
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
        # By shape and precision alone: whether an error is raised must not depend on a record.
        convert(self, "inputs", _tensor, dimensions=2)
        if self.labels is not None:
            convert(self, "labels", _tensor, dimensions=1)
            _check_alike(self.inputs, self.labels)
            if cast(Tensor, self.labels).is_floating_point():
                raise TypeError(f"labels are {cast(Tensor, self.labels).dtype}; give integers")
        convert(self, "stand_ins", _inputs)
        if cast(Tensor, self.stand_ins).shape[1:] != cast(Tensor, self.inputs).shape[1:]:
            raise ValueError(
                f"stand_ins have shape {tuple(cast(Tensor, self.stand_ins).shape)}, inputs "
                f"{tuple(cast(Tensor, self.inputs).shape)}; they must be alike but for their number"
            )
        give = "ClipAndNoise(...): without noise no record is protected"
        of_kind("protection", self.protection, ClipAndNoise, give)
        of_kind("batches", self.batches, (FullBatch, PoissonBatches), "FullBatch or PoissonBatches")
        of_kind("ledger", self.ledger, (ClientLedger, Payment), "ClientLedger(...), or pay(...)")
        convert(self, "learning_rate", number, above=0)


@dataclass(frozen=True, eq=False)
class PublicInputs:
    """Public inputs, some of them kept out of fitting and training for the report.

    Attributes
    ----------
    training, held_out : Tensor
        Shape (inputs, ...).
    labels, held_out_labels : Tensor or None
        Of :class:`PublicData` that has some.
    """

    training: Tensor
    labels: Tensor | None
    held_out: Tensor
    held_out_labels: Tensor | None

    @classmethod
    def of(cls, data: PublicData | PrivateData, *, seed: int) -> "PublicInputs":
        """Keep a tenth apart, drawn by the seed."""
        private = isinstance(data, PrivateData)
        inputs = cast(Tensor, data.stand_ins if isinstance(data, PrivateData) else data.inputs)
        labels = None if private else cast("Tensor | None", data.labels)
        if len(inputs) < _HELD_OUT:
            name = "stand_ins" if private else "inputs"
            raise ValueError(f"{name} has {len(inputs)} entries; give {_HELD_OUT} or more")
        generator = torch.Generator("cpu").manual_seed(seed)
        order = torch.randperm(len(inputs), generator=generator, device="cpu")
        held, rest = order[: len(inputs) // _HELD_OUT], order[len(inputs) // _HELD_OUT :]
        if labels is None:
            return cls(inputs[rest], None, inputs[held], None)
        return cls(inputs[rest], labels[rest], inputs[held], labels[held])


def _inputs(name: str, value: Any) -> Tensor:
    tensor = _tensor(name, value, dimensions=2)
    if len(tensor) == 0:
        raise ValueError(f"{name} is empty; give {_INPUTS}")
    if not bool(torch.isfinite(tensor).all()):
        raise ValueError(f"{name} holds NaN or infinity; give finite numbers")
    return tensor


def _labels(name: str, value: Any, *, inputs: Tensor) -> Tensor:
    tensor = _tensor(name, value, dimensions=1)
    _check_alike(inputs, tensor)
    classes = tensor.long()
    if not bool((classes == tensor).all()) or int(classes.min()) < 0:
        raise ValueError(
            f"{name} holds something else than classes; give {_LABELS}, from 0, or leave {name} "
            "out: the new model learns to answer as the old one (a regressor from that alone)"
        )
    return classes


def _tensor(name: str, value: Any, *, dimensions: int) -> Tensor:
    shape = _LABELS if dimensions == 1 else _INPUTS
    array = real_array(name, value, shape)
    if array.ndim < dimensions or (dimensions == 1 and array.ndim > 1):
        raise ValueError(f"{name} has shape {array.shape}; give {shape}")
    return torch.tensor(array, device="cpu")


def _check_alike(inputs: Any, labels: Any) -> None:
    if len(labels) != len(inputs):
        raise ValueError(
            f"labels has shape {tuple(labels.shape)}, inputs {tuple(inputs.shape)}; give one each"
        )
