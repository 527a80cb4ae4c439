"""Client-level privacy accounting: what has been spent, what may be, and the ledger of it."""

from .calibration import calibrate_noise_multiplier as calibrate_noise_multiplier
from .calibration import calibrate_rounds as calibrate_rounds
from .calibration import calibrate_sampling_rate as calibrate_sampling_rate
from .composition import Accountant as Accountant
from .composition import Budget as Budget
from .composition import epsilon as epsilon
from .events import AdditiveDelta as AdditiveDelta
from .events import Adjacency as Adjacency
from .events import Event as Event
from .events import FixedSize as FixedSize
from .events import Full as Full
from .events import GaussianRelease as GaussianRelease
from .events import Poisson as Poisson
from .events import Sampling as Sampling
from .events import event_from_dict as event_from_dict
from .events import event_to_dict as event_to_dict
from .events import joint_noise_multiplier as joint_noise_multiplier
from .ledger import Ledger as Ledger
from .ledger import LedgerBusyError as LedgerBusyError
from .ledger import LedgerContents as LedgerContents
from .ledger import LedgerError as LedgerError
from .ledger import Position as Position
from .ledger import Record as Record
from .ledger import population_fingerprint as population_fingerprint
from .ledger import read_ledger as read_ledger
