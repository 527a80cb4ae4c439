"""Client training with Opacus: per-example clipping, optional noise, a ledger that never forgets.

A ``ClientApp`` needs ``train``, a ``ClipOnly`` or ``ClipAndNoise``, batches, and for noise a
``ClientLedger``.
"""

from privacy.training._train import train
from privacy.training.calibration import calibrate_noise
from privacy.training.charge import Charge
from privacy.training.ledger import ClientLedger, LocalBudgetSpent
from privacy.training.model_checks.check import ModelProblem, UnsupportedModelError, check_model
from privacy.training.model_checks.replace import replace_unsupported
from privacy.training.optimizer import GradientDescent
from privacy.training.payment import Payment, pay
from privacy.training.per_example.capture import GradientError
from privacy.training.protection import (
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
)
from privacy.training.result import Guarantee, TrainingResult

__all__ = [
    "train",
    "TrainingResult",
    "Guarantee",
    "ClipOnly",
    "ClipAndNoise",
    "PublicCount",
    "NominalCount",
    "NoisyCount",
    "FullBatch",
    "PoissonBatches",
    "GradientDescent",
    "calibrate_noise",
    "ClientLedger",
    "Charge",
    "LocalBudgetSpent",
    "pay",
    "Payment",
    "check_model",
    "replace_unsupported",
    "ModelProblem",
    "UnsupportedModelError",
    "GradientError",
]
