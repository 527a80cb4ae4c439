"""Secure aggregation: the server learns the sum, and only when enough clients took part.

Both sides are state machines that exchange byte strings; what carries them is the caller's
choice. ``docs/secure-aggregation.md`` has the protocol, the proofs and what is not covered.
"""

from privacy.secure_aggregation._client_state import ClientStage as ClientStage
from privacy.secure_aggregation.client import SecureClient as SecureClient
from privacy.secure_aggregation.errors import AlreadyTookPart as AlreadyTookPart
from privacy.secure_aggregation.errors import BothShares as BothShares
from privacy.secure_aggregation.errors import CohortTooSmall as CohortTooSmall
from privacy.secure_aggregation.errors import DifferentRequests as DifferentRequests
from privacy.secure_aggregation.errors import ForgedSignature as ForgedSignature
from privacy.secure_aggregation.errors import InconsistentRoster as InconsistentRoster
from privacy.secure_aggregation.errors import Malformed as Malformed
from privacy.secure_aggregation.errors import MalformedRequest as MalformedRequest
from privacy.secure_aggregation.errors import MemoryFull as MemoryFull
from privacy.secure_aggregation.errors import Refused as Refused
from privacy.secure_aggregation.errors import RejectedMessage as RejectedMessage
from privacy.secure_aggregation.errors import RoundAborted as RoundAborted
from privacy.secure_aggregation.errors import SameModelAgain as SameModelAgain
from privacy.secure_aggregation.errors import SecureAggregationError as SecureAggregationError
from privacy.secure_aggregation.errors import SplitView as SplitView
from privacy.secure_aggregation.errors import StaleMessage as StaleMessage
from privacy.secure_aggregation.errors import TamperedShares as TamperedShares
from privacy.secure_aggregation.errors import ThresholdTooLow as ThresholdTooLow
from privacy.secure_aggregation.errors import TooFewClients as TooFewClients
from privacy.secure_aggregation.errors import TooFewNeighbours as TooFewNeighbours
from privacy.secure_aggregation.errors import UnacceptableTerms as UnacceptableTerms
from privacy.secure_aggregation.errors import UnknownIdentity as UnknownIdentity
from privacy.secure_aggregation.errors import UnreadableState as UnreadableState
from privacy.secure_aggregation.errors import WeakKey as WeakKey
from privacy.secure_aggregation.errors import WrongRound as WrongRound
from privacy.secure_aggregation.errors import WrongStage as WrongStage
from privacy.secure_aggregation.neighbours import RoundPlan as RoundPlan
from privacy.secure_aggregation.neighbours import plan_round as plan_round
from privacy.secure_aggregation.server import SecureServer as SecureServer
from privacy.secure_aggregation.server import ServerStage as ServerStage
from privacy.secure_aggregation.terms import Adversary as Adversary
from privacy.secure_aggregation.terms import ClientPolicy as ClientPolicy
from privacy.secure_aggregation.terms import Identity as Identity
from privacy.secure_aggregation.terms import RoundTerms as RoundTerms
from privacy.secure_aggregation.terms import ServerModel as ServerModel
