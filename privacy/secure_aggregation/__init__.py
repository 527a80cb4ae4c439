"""Secure aggregation: the server learns the sum, and only when enough clients took part.

Both sides are state machines that exchange byte strings; what carries them is the caller's
choice. Errors are in ``privacy.secure_aggregation.errors``. The protocol and what is not covered
are in ``docs/explanation/secure-aggregation.md``, the proofs in
``docs/explanation/proofs/secure-aggregation.md``.
"""

from privacy.secure_aggregation._server_state import ServerStage as ServerStage
from privacy.secure_aggregation.client import SecureClient as SecureClient
from privacy.secure_aggregation.neighbours import RoundPlan as RoundPlan
from privacy.secure_aggregation.neighbours import plan_round as plan_round
from privacy.secure_aggregation.server import SecureServer as SecureServer
from privacy.secure_aggregation.silos import FewSilos as FewSilos
from privacy.secure_aggregation.terms import Adversary as Adversary
from privacy.secure_aggregation.terms import ClientPolicy as ClientPolicy
from privacy.secure_aggregation.terms import Identity as Identity
from privacy.secure_aggregation.terms import RoundTerms as RoundTerms
from privacy.secure_aggregation.terms import ServerModel as ServerModel
