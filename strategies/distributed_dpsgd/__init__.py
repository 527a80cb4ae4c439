"""Distributed DP-SGD: gradients of silos' persons, summed under secure aggregation and noise."""

from typing import TYPE_CHECKING

import privacy.imports
from strategies.distributed_dpsgd.accuracy import LocalEvaluation as LocalEvaluation
from strategies.distributed_dpsgd.silo import answer_silo as answer_silo
from strategies.distributed_dpsgd.silo_task import SiloTable as SiloTable
from strategies.distributed_dpsgd.silo_task import SiloTask as SiloTask
from strategies.distributed_dpsgd.strategy import DistributedDPSGD as DistributedDPSGD

# Loaded when it is first asked for: it brings PyTorch, and no node asks for it.
if TYPE_CHECKING:
    from strategies.distributed_dpsgd.run_audit import audit_silo_strategy as audit_silo_strategy

_LATER = {"audit_silo_strategy": "strategies.distributed_dpsgd.run_audit"}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="training")
    __all__ = privacy.imports.public_names(globals(), _LATER)
