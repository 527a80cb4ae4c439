"""Noise that is safe in finite precision, and the randomness it is made of."""

from privacy.mechanisms.discrete import add_discrete_gaussian as add_discrete_gaussian
from privacy.mechanisms.discrete import discrete_gaussian as discrete_gaussian
from privacy.mechanisms.distributed import DistributedGaussian as DistributedGaussian
from privacy.mechanisms.masked import MaskedGaussian as MaskedGaussian
from privacy.mechanisms.masked import MaskedMechanism as MaskedMechanism
from privacy.mechanisms.masked import lattice_radius as lattice_radius
from privacy.mechanisms.noise import add_gaussian as add_gaussian
from privacy.mechanisms.noise import add_rounded_gaussian as add_rounded_gaussian
from privacy.mechanisms.noise import gaussian as gaussian
from privacy.mechanisms.noise import rounded_gaussian as rounded_gaussian
from privacy.mechanisms.randomness import Randomness as Randomness
from privacy.mechanisms.randomness import SeededRandomness as SeededRandomness
from privacy.mechanisms.randomness import SystemRandomness as SystemRandomness
from privacy.mechanisms.sums import ClippingGeometry as ClippingGeometry
from privacy.mechanisms.sums import ContinuousGaussian as ContinuousGaussian
from privacy.mechanisms.sums import Contribution as Contribution
from privacy.mechanisms.sums import LatticeGaussian as LatticeGaussian
from privacy.mechanisms.sums import RejectedUpdate as RejectedUpdate
from privacy.mechanisms.sums import RoundSum as RoundSum
from privacy.mechanisms.sums import SumMechanism as SumMechanism
