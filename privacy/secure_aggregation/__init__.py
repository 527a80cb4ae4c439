"""Secure aggregation: the server learns the sum, and only when enough clients took part.

Both sides are state machines that exchange byte strings; what carries them is the caller's
choice. ``docs/secure-aggregation.md`` has the protocol, the proofs and what is not covered.
"""

from privacy.secure_aggregation._client_state import ClientStage as ClientStage
from privacy.secure_aggregation.client import SecureClient as SecureClient
from privacy.secure_aggregation.errors import BothSharesError as BothSharesError
from privacy.secure_aggregation.errors import CohortTooSmallError as CohortTooSmallError
from privacy.secure_aggregation.errors import DifferentRequestsError as DifferentRequestsError
from privacy.secure_aggregation.errors import ForgedSignatureError as ForgedSignatureError
from privacy.secure_aggregation.errors import InconsistentRosterError as InconsistentRosterError
from privacy.secure_aggregation.errors import MalformedMessageError as MalformedMessageError
from privacy.secure_aggregation.errors import MalformedRequestError as MalformedRequestError
from privacy.secure_aggregation.errors import MemoryFullError as MemoryFullError
from privacy.secure_aggregation.errors import RefusedError as RefusedError
from privacy.secure_aggregation.errors import RejectedMessageError as RejectedMessageError
from privacy.secure_aggregation.errors import RepeatedModelError as RepeatedModelError
from privacy.secure_aggregation.errors import RepeatedRoundError as RepeatedRoundError
from privacy.secure_aggregation.errors import RoundAbortedError as RoundAbortedError
from privacy.secure_aggregation.errors import SecureAggregationError as SecureAggregationError
from privacy.secure_aggregation.errors import SplitViewError as SplitViewError
from privacy.secure_aggregation.errors import StaleMessageError as StaleMessageError
from privacy.secure_aggregation.errors import TamperedSharesError as TamperedSharesError
from privacy.secure_aggregation.errors import ThresholdTooLowError as ThresholdTooLowError
from privacy.secure_aggregation.errors import TooFewClientsError as TooFewClientsError
from privacy.secure_aggregation.errors import TooFewNeighboursError as TooFewNeighboursError
from privacy.secure_aggregation.errors import UnacceptableTermsError as UnacceptableTermsError
from privacy.secure_aggregation.errors import UnknownIdentityError as UnknownIdentityError
from privacy.secure_aggregation.errors import UnreadableStateError as UnreadableStateError
from privacy.secure_aggregation.errors import WeakKeyError as WeakKeyError
from privacy.secure_aggregation.errors import WrongRoundError as WrongRoundError
from privacy.secure_aggregation.errors import WrongStageError as WrongStageError
from privacy.secure_aggregation.neighbours import RoundPlan as RoundPlan
from privacy.secure_aggregation.neighbours import plan_round as plan_round
from privacy.secure_aggregation.server import SecureServer as SecureServer
from privacy.secure_aggregation.server import ServerStage as ServerStage
from privacy.secure_aggregation.terms import Adversary as Adversary
from privacy.secure_aggregation.terms import ClientPolicy as ClientPolicy
from privacy.secure_aggregation.terms import Identity as Identity
from privacy.secure_aggregation.terms import RoundTerms as RoundTerms
from privacy.secure_aggregation.terms import ServerModel as ServerModel
