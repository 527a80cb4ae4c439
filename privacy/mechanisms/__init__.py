"""Noise that is safe in finite precision, and the randomness it is made of."""

from privacy.mechanisms.blockwise_sums import LatticeNoise as LatticeNoise
from privacy.mechanisms.bounded_sums import ContinuousGaussian as ContinuousGaussian
from privacy.mechanisms.bounded_sums import LatticeGaussian as LatticeGaussian
from privacy.mechanisms.bounded_sums import RoundSum as RoundSum
from privacy.mechanisms.bounded_sums import SumMechanism as SumMechanism
from privacy.mechanisms.clipping_geometry import ClippingGeometry as ClippingGeometry
from privacy.mechanisms.discrete_gaussian import add_discrete_gaussian as add_discrete_gaussian
from privacy.mechanisms.distributed_gaussian import DistributedGaussian as DistributedGaussian
from privacy.mechanisms.gaussian import add_gaussian as add_gaussian
from privacy.mechanisms.gaussian import add_rounded_gaussian as add_rounded_gaussian
from privacy.mechanisms.gaussian import round_with_gaussian as round_with_gaussian
from privacy.mechanisms.masked_sums import MaskedGaussian as MaskedGaussian
from privacy.mechanisms.masked_sums import MaskedMechanism as MaskedMechanism
from privacy.mechanisms.masked_sums import lattice_radius as lattice_radius
from privacy.mechanisms.person_sums import PersonSum as PersonSum
from privacy.mechanisms.randomness import KeyedRandomness as KeyedRandomness
from privacy.mechanisms.randomness import Randomness as Randomness
from privacy.mechanisms.randomness import SeededRandomness as SeededRandomness
from privacy.mechanisms.randomness import SystemRandomness as SystemRandomness
from privacy.mechanisms.ring_errors import centred_binomial as centred_binomial
from privacy.mechanisms.ring_errors import ternary as ternary
from privacy.mechanisms.silo_gaussian import SiloGaussian as SiloGaussian
