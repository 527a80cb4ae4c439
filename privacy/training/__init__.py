"""Client training: per-example clipping, optional noise, a ledger that never forgets.

A ``ClientApp`` needs ``train``, a ``ClipOnly`` or ``ClipAndNoise``, batches, and for noise a
``ClientLedger``; a silo of several ``silo_sum``. Its errors are in :mod:`privacy.training.errors`.
"""

from typing import TYPE_CHECKING

import privacy.imports
from privacy.training.data_policy import DataPolicy as DataPolicy
from privacy.training.ledger import ClientLedger as ClientLedger
from privacy.training.payment import Payment as Payment
from privacy.training.payment import check_payment as check_payment
from privacy.training.payment import pay as pay
from privacy.training.protection import ClipAndNoise as ClipAndNoise
from privacy.training.protection import ClipOnly as ClipOnly
from privacy.training.protection import FullBatch as FullBatch
from privacy.training.protection import NoisyCount as NoisyCount
from privacy.training.protection import NominalCount as NominalCount
from privacy.training.protection import PoissonBatches as PoissonBatches
from privacy.training.protection import PublicCount as PublicCount
from privacy.training.pseudonyms import in_earlier_silos as in_earlier_silos
from privacy.training.pseudonyms import keyed_person_ids as keyed_person_ids
from privacy.training.result import Guarantee as Guarantee
from privacy.training.result import TrainingResult as TrainingResult
from privacy.training.step_payments import StepPayments as StepPayments

# Loaded when they are first asked for: they bring PyTorch, which takes seconds, and most messages
# to a node need a ledger and a policy alone.
if TYPE_CHECKING:
    from privacy.training._train import train as train
    from privacy.training.model_checks.check import check_model as check_model
    from privacy.training.model_checks.replace import replace_unsupported as replace_unsupported
    from privacy.training.optimizer import GradientDescent as GradientDescent
    from privacy.training.persons import Persons as Persons
    from privacy.training.silo_step import SiloStep as SiloStep
    from privacy.training.silo_step import check_silo_sum as check_silo_sum
    from privacy.training.silo_step import silo_sum as silo_sum
    from privacy.training.silo_step import trained_parameters as trained_parameters

_LATER = {
    "train": "privacy.training._train",
    "check_model": "privacy.training.model_checks.check",
    "replace_unsupported": "privacy.training.model_checks.replace",
    "GradientDescent": "privacy.training.optimizer",
    "Persons": "privacy.training.persons",
    "SiloStep": "privacy.training.silo_step",
    "check_silo_sum": "privacy.training.silo_step",
    "silo_sum": "privacy.training.silo_step",
    "trained_parameters": "privacy.training.silo_step",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="training")
    __all__ = privacy.imports.public_names(globals(), _LATER)
