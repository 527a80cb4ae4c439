"""Client training with Opacus: per-example clipping, optional noise, a ledger that never forgets.

A ``ClientApp`` needs ``train``, a ``ClipOnly`` or ``ClipAndNoise``, batches, and for noise a
``ClientLedger``.
"""

from ._capture import GradientError
from ._optimizer import GradientDescent
from .calibration import calibrate_noise
from .charge import Charge
from .check import ModelProblem, UnsupportedModelError, check_model
from .ledger import ClientLedger, LocalBudgetSpent
from .payment import Payment, pay
from .plan import (
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
)
from .replace import replace_unsupported
from .result import Guarantee, TrainingResult
from .training import train

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
