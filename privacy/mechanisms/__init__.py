"""Noise that is safe in finite precision, and the randomness it is made of."""

from .discrete import add_discrete_gaussian as add_discrete_gaussian
from .discrete import discrete_gaussian as discrete_gaussian
from .distributed import DistributedGaussian as DistributedGaussian
from .masked import MaskedGaussian as MaskedGaussian
from .masked import MaskedMechanism as MaskedMechanism
from .masked import lattice_radius as lattice_radius
from .noise import add_gaussian as add_gaussian
from .noise import add_rounded_gaussian as add_rounded_gaussian
from .noise import gaussian as gaussian
from .noise import rounded_gaussian as rounded_gaussian
from .randomness import Randomness as Randomness
from .randomness import SeededRandomness as SeededRandomness
from .randomness import SystemRandomness as SystemRandomness
from .sums import ClippingGeometry as ClippingGeometry
from .sums import ContinuousGaussian as ContinuousGaussian
from .sums import Contribution as Contribution
from .sums import LatticeGaussian as LatticeGaussian
from .sums import RejectedUpdate as RejectedUpdate
from .sums import RoundSum as RoundSum
from .sums import SumMechanism as SumMechanism
