"""Attacks on our own privacy: a lower bound on ε from one run, held against what is claimed.

A ledger proves an upper bound of ε, if the code does what the proof says. An audit attacks the
running code and proves a lower bound. If the lower lies above the upper, the code is wrong. If it
does not, nothing is proved: the attack may have been too weak.
"""

from .cohorts import poisson_cohort_p_value as poisson_cohort_p_value
from .experiment import Attack as Attack
from .experiment import AuditResult as AuditResult
from .experiment import audit as audit
from .experiment import count_correct as count_correct
from .experiment import default_guesses as default_guesses
from .experiment import judge as judge
from .inversion import invert_first_linear_layer as invert_first_linear_layer
from .inversion import match_gradient as match_gradient
from .one_run import epsilon_lower_bound as epsilon_lower_bound
from .one_run import p_value as p_value
from .records import audit_training as audit_training
from .records import one_hot_records as one_hot_records
