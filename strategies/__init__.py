"""Server-side federated algorithms that drop into any Flower project."""

from importlib import import_module
from typing import TYPE_CHECKING

from strategies import _neighbours as _neighbours  # isort: skip  # before what it checks
from strategies._spending import BudgetError as BudgetError
from strategies._spending import SpentBudgetError as SpentBudgetError
from strategies._watch import NoUsableReplyError as NoUsableReplyError
from strategies.checkpoint import Checkpoint as Checkpoint
from strategies.checkpoint import CheckpointError as CheckpointError
from strategies.checkpoint import Checkpointing as Checkpointing
from strategies.clipping import AdaptiveClipping as AdaptiveClipping
from strategies.clipping import Clipping as Clipping
from strategies.clipping import FlatClipping as FlatClipping
from strategies.clipping import PerLayerClipping as PerLayerClipping
from strategies.cohort import draw_cohort as draw_cohort
from strategies.declining import decline as decline
from strategies.dp_fedavg import DPFedAvg as DPFedAvg
from strategies.in_process import InProcessGrid as InProcessGrid
from strategies.in_process import run_in_process as run_in_process
from strategies.metrics import Metrics as Metrics
from strategies.metrics import NoisedMetrics as NoisedMetrics
from strategies.metrics import PublicMetrics as PublicMetrics
from strategies.population import Population as Population
from strategies.population import PopulationExceededError as PopulationExceededError
from strategies.population import key_identity as key_identity
from strategies.population import node_identity as node_identity
from strategies.record_keys import RecordKeys as RecordKeys
from strategies.result import PrivacyReport as PrivacyReport
from strategies.result import PrivateResult as PrivateResult
from strategies.result import SecureAggregationReport as SecureAggregationReport
from strategies.secure_aggregation import ClientMemory as ClientMemory
from strategies.secure_aggregation import ContextMemory as ContextMemory
from strategies.secure_aggregation import FolderMemory as FolderMemory
from strategies.secure_aggregation import SecureAggregation as SecureAggregation
from strategies.secure_aggregation import SecureAggregationMod as SecureAggregationMod
from strategies.server_optimizers import ServerAdam as ServerAdam
from strategies.server_optimizers import ServerOptimizer as ServerOptimizer
from strategies.server_optimizers import ServerSGD as ServerSGD
from strategies.server_optimizers import ServerYogi as ServerYogi
from strategies.streaming import stream_replies as stream_replies
from strategies.weighting import CappedWeights as CappedWeights
from strategies.weighting import UniformWeights as UniformWeights
from strategies.weighting import Weighting as Weighting

# The budget and the cohort rules that a strategy takes are accounting's own types.
from privacy.accounting import Budget as Budget  # isort: skip
from privacy.accounting import FixedSize as FixedSize  # isort: skip
from privacy.accounting import Full as Full  # isort: skip
from privacy.accounting import Poisson as Poisson  # isort: skip

if TYPE_CHECKING:
    from strategies.canary_audit import audit_strategy as audit_strategy
    from strategies.encrypted_round.node import ENCRYPTED_ROUND as ENCRYPTED_ROUND
    from strategies.encrypted_round.node import answer_encrypted_round as answer_encrypted_round
    from strategies.encrypted_round.result import EncryptedRoundResult as EncryptedRoundResult
    from strategies.encrypted_round.result import noised_accuracy as noised_accuracy
    from strategies.encrypted_round.server import EncryptedRound as EncryptedRound

# Loaded when they are first asked for. They bring PyTorch, TenSEAL and SciPy's statistics, which
# take seconds: too long for a strategy over scikit-learn's models that needs none of them, and
# for a deployed client, who starts a process for every message.
_LATER = {
    "audit_strategy": "strategies.canary_audit",
    "EncryptedRoundResult": "strategies.encrypted_round.result",
    "noised_accuracy": "strategies.encrypted_round.result",
    "ENCRYPTED_ROUND": "strategies.encrypted_round.node",
    "answer_encrypted_round": "strategies.encrypted_round.node",
    "EncryptedRound": "strategies.encrypted_round.server",
}

if not TYPE_CHECKING:  # a type checker would take it for leave to use any name

    def __getattr__(name):
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_LATER[name]), name)
