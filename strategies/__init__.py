"""Server-side federated algorithms that drop into any Flower project.

What they raise is in ``strategies.errors``.
"""

# ruff: noqa: E402
from pathlib import Path
from typing import TYPE_CHECKING

import privacy

_OURS, _PATHS = Path(__file__).parents[1] / "privacy", getattr(privacy, "__path__", ())
if [Path(path).resolve() for path in _PATHS] != [_OURS.resolve()]:
    _theirs = privacy.__file__ or ", ".join(map(str, _PATHS))
    raise ImportError(
        f"'privacy' is {_theirs} and not bloomseal's package of that name, {_OURS}, on which "
        "'strategies' is built: a top-level module of your project has the same name and comes "
        "first on sys.path. Rename it, or move it into your app's own package",
        name="privacy",
        path=_theirs,
    )

# isort: off
import privacy.imports

# The strategies and their arguments
from privacy.accounting import Budget as Budget
from privacy.accounting import CyclicGroups as CyclicGroups
from privacy.accounting import FixedSize as FixedSize
from privacy.accounting import Full as Full
from privacy.accounting import Poisson as Poisson
from privacy.correlated_noise import BLT as BLT
from privacy.correlated_noise import BandedMF as BandedMF
from strategies.checkpoint import Checkpointing as Checkpointing
from strategies.clipping import AdaptiveClipping as AdaptiveClipping
from strategies.clipping import Clipping as Clipping
from strategies.clipping import FlatClipping as FlatClipping
from strategies.clipping import PerLayerClipping as PerLayerClipping
from strategies.distributed_dpsgd import DistributedDPSGD as DistributedDPSGD
from strategies.distributed_dpsgd import LocalEvaluation as LocalEvaluation
from strategies.dp_fedavg import DPFedAvg as DPFedAvg
from strategies.metrics import Metrics as Metrics
from strategies.metrics import NoisedMetrics as NoisedMetrics
from strategies.metrics import PublicMetrics as PublicMetrics
from strategies.population import Population as Population
from strategies.population import key_identity as key_identity
from strategies.population import node_identity as node_identity
from strategies.progress import OnRound as OnRound
from strategies.progress import RoundProgress as RoundProgress
from strategies.replies import RecordKeys as RecordKeys
from strategies.secure_aggregation import SecureAggregation as SecureAggregation
from strategies.server_optimizers import ServerAdam as ServerAdam
from strategies.server_optimizers import ServerOptimizer as ServerOptimizer
from strategies.server_optimizers import ServerSGD as ServerSGD
from strategies.server_optimizers import ServerYogi as ServerYogi
from strategies.weighting import CappedWeights as CappedWeights
from strategies.weighting import UniformWeights as UniformWeights

# Its result
from strategies.result import PrivacyReport as PrivacyReport
from strategies.result import PrivateResult as PrivateResult
from strategies.result import SecureAggregationReport as SecureAggregationReport

# Clients
from strategies.distributed_dpsgd import SiloTable as SiloTable
from strategies.distributed_dpsgd import SiloTask as SiloTask
from strategies.distributed_dpsgd import answer_silo as answer_silo
from strategies.replies import decline as decline
from strategies.secure_aggregation import ClientMemory as ClientMemory
from strategies.secure_aggregation import ContextMemory as ContextMemory
from strategies.secure_aggregation import FolderMemory as FolderMemory
from strategies.secure_aggregation import SecureAggregationMod as SecureAggregationMod

# Loaded when they are first asked for
if TYPE_CHECKING:
    from strategies.canary_audit import audit_strategy as audit_strategy
    from strategies.encrypted_round import ENCRYPTED_ROUND as ENCRYPTED_ROUND
    from strategies.encrypted_round import EncryptedRound as EncryptedRound
    from strategies.encrypted_round import EncryptedRoundResult as EncryptedRoundResult
    from strategies.encrypted_round import answer_encrypted_round as answer_encrypted_round
    from strategies.encrypted_round import noised_accuracy as noised_accuracy
    from strategies.in_process import InProcessGrid as InProcessGrid
    from strategies.in_process import run_in_process as run_in_process

# Some bring PyTorch, TenSEAL and SciPy's statistics, which take seconds: too long for a strategy
# over scikit-learn's models that needs none of them, and for a deployed client, who starts a
# process for every message. Others no node asks for; `flwr run` does not send them.
_LATER = {
    "audit_strategy": "strategies.canary_audit",
    "EncryptedRoundResult": "strategies.encrypted_round",
    "noised_accuracy": "strategies.encrypted_round",
    "ENCRYPTED_ROUND": "strategies.encrypted_round",
    "answer_encrypted_round": "strategies.encrypted_round",
    "EncryptedRound": "strategies.encrypted_round",
    "InProcessGrid": "strategies.in_process",
    "run_in_process": "strategies.in_process",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="inference")
    __all__ = privacy.imports.public_names(globals(), _LATER)
