"""Client training: per-example clipping, optional noise, a ledger that never forgets.

A ``ClientApp`` needs ``train``, a ``ClipOnly`` or ``ClipAndNoise``, batches, and for noise a
``ClientLedger``. Its errors are in :mod:`privacy.training.errors`.
"""

from privacy.training._train import train as train
from privacy.training.data_policy import DataPolicy as DataPolicy
from privacy.training.ledger import ClientLedger as ClientLedger
from privacy.training.model_checks.check import check_model as check_model
from privacy.training.model_checks.replace import replace_unsupported as replace_unsupported
from privacy.training.optimizer import GradientDescent as GradientDescent
from privacy.training.payment import Payment as Payment
from privacy.training.payment import pay as pay
from privacy.training.persons import Persons as Persons
from privacy.training.protection import ClipAndNoise as ClipAndNoise
from privacy.training.protection import ClipOnly as ClipOnly
from privacy.training.protection import FullBatch as FullBatch
from privacy.training.protection import NoisyCount as NoisyCount
from privacy.training.protection import NominalCount as NominalCount
from privacy.training.protection import PoissonBatches as PoissonBatches
from privacy.training.protection import PublicCount as PublicCount
from privacy.training.result import Guarantee as Guarantee
from privacy.training.result import TrainingResult as TrainingResult
from privacy.training.silo_step import SiloStep as SiloStep
from privacy.training.silo_step import silo_sum as silo_sum
from privacy.training.silo_step import trained_parameters as trained_parameters
