"""Secure aggregation: the server learns the sum, and only when enough clients took part.

Both sides are state machines that exchange byte strings; what carries them is the caller's
choice. ``docs/secure-aggregation.md`` has the protocol, the proofs and what is not covered.
"""

from ._round_state import ClientStage as ClientStage
from .client import SecureClient as SecureClient
from .errors import AlreadyTookPart as AlreadyTookPart
from .errors import BothShares as BothShares
from .errors import CohortTooSmall as CohortTooSmall
from .errors import DifferentRequests as DifferentRequests
from .errors import ForgedSignature as ForgedSignature
from .errors import InconsistentRoster as InconsistentRoster
from .errors import Malformed as Malformed
from .errors import MalformedRequest as MalformedRequest
from .errors import MemoryFull as MemoryFull
from .errors import Refused as Refused
from .errors import RejectedMessage as RejectedMessage
from .errors import RoundAborted as RoundAborted
from .errors import SameModelAgain as SameModelAgain
from .errors import SecureAggregationError as SecureAggregationError
from .errors import SplitView as SplitView
from .errors import StaleMessage as StaleMessage
from .errors import TamperedShares as TamperedShares
from .errors import ThresholdTooLow as ThresholdTooLow
from .errors import TooFewClients as TooFewClients
from .errors import TooFewNeighbours as TooFewNeighbours
from .errors import UnacceptableTerms as UnacceptableTerms
from .errors import UnknownIdentity as UnknownIdentity
from .errors import UnreadableState as UnreadableState
from .errors import WeakKey as WeakKey
from .errors import WrongRound as WrongRound
from .errors import WrongStage as WrongStage
from .plan import RoundPlan as RoundPlan
from .plan import plan_round as plan_round
from .server import SecureServer as SecureServer
from .server import ServerStage as ServerStage
from .terms import Adversary as Adversary
from .terms import ClientPolicy as ClientPolicy
from .terms import Identity as Identity
from .terms import RoundTerms as RoundTerms
from .terms import ServerModel as ServerModel
