"""Client training with Opacus: per-example clipping, optional noise, a ledger that never forgets.

A ``ClientApp`` needs ``train``, a ``ClipOnly`` or ``ClipAndNoise``, batches, and for noise a
``Ledger``.
"""

from ._capture import GradientError
from ._records import fingerprint
from ._store import Charge, LedgerError
from .calibration import calibrate_noise
from .check import ModelProblem, UnsupportedModelError, check_model, replace_unsupported
from .ledger import Accountant, Budget, Ledger, LocalBudgetSpent
from .plan import (
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    NoisyCount,
    NominalCount,
    PoissonBatches,
    PublicCount,
)
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
    "calibrate_noise",
    "Ledger",
    "Budget",
    "Charge",
    "Accountant",
    "LocalBudgetSpent",
    "LedgerError",
    "fingerprint",
    "check_model",
    "replace_unsupported",
    "ModelProblem",
    "UnsupportedModelError",
    "GradientError",
]
