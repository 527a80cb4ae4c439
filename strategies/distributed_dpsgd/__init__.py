"""Distributed DP-SGD: gradients of silos' persons, summed under secure aggregation and noise."""

from strategies.distributed_dpsgd.accuracy import LocalEvaluation as LocalEvaluation
from strategies.distributed_dpsgd.silo import answer_silo as answer_silo
from strategies.distributed_dpsgd.silo_task import SiloTable as SiloTable
from strategies.distributed_dpsgd.silo_task import SiloTask as SiloTask
from strategies.distributed_dpsgd.strategy import DistributedDPSGD as DistributedDPSGD
