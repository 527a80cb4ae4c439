"""Attacks on the product's own privacy: a lower bound on ε from one run, against the claim.

A ledger proves an upper bound on ε, if the code does what the proof says. An audit attacks the
running code and proves a lower bound. A lower bound above the upper one shows that the code is
wrong; one below it proves nothing: the attack may have been too weak.
"""

from typing import TYPE_CHECKING

import privacy.imports
from privacy.audit.correlated import correlated_noise_p_values as correlated_noise_p_values
from privacy.audit.correlated import separation_p_value as separation_p_value
from privacy.audit.experiment import Attack as Attack
from privacy.audit.experiment import AuditResult as AuditResult
from privacy.audit.experiment import audit as audit
from privacy.audit.experiment import judge as judge
from privacy.audit.statistics import epsilon_lower_bound as epsilon_lower_bound
from privacy.audit.statistics import independent_cohorts_p_value as independent_cohorts_p_value
from privacy.audit.statistics import little_noise_p_value as little_noise_p_value
from privacy.audit.statistics import p_value as p_value
from privacy.audit.statistics import poisson_cohort_p_value as poisson_cohort_p_value
from privacy.audit.trade_off import PrivacyCurve as PrivacyCurve
from privacy.audit.trade_off import curve_p_value as curve_p_value
from privacy.audit.trade_off import mu_lower_bound as mu_lower_bound

# Loaded when they are first asked for: they bring PyTorch, without which a strategy is audited too.
if TYPE_CHECKING:
    from privacy.audit.inversion import invert_batch as invert_batch
    from privacy.audit.inversion import invert_first_linear_layer as invert_first_linear_layer
    from privacy.audit.inversion import match_gradient as match_gradient
    from privacy.audit.silos import audit_silo_steps as audit_silo_steps
    from privacy.audit.training import audit_training as audit_training
    from privacy.audit.training import one_hot_records as one_hot_records

_LATER = {
    "invert_batch": "privacy.audit.inversion",
    "invert_first_linear_layer": "privacy.audit.inversion",
    "match_gradient": "privacy.audit.inversion",
    "audit_silo_steps": "privacy.audit.silos",
    "audit_training": "privacy.audit.training",
    "one_hot_records": "privacy.audit.training",
}

if not TYPE_CHECKING:
    __getattr__ = privacy.imports.loaded_later(__name__, _LATER, extra="training")
    __all__ = privacy.imports.public_names(globals(), _LATER)
