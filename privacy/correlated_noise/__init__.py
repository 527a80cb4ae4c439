"""Correlated noise: rows that cancel in part, for privacy that needs no secret cohort."""

from privacy.correlated_noise.buffered import blt_factor as blt_factor
from privacy.correlated_noise.coefficients import banded_coefficients as banded_coefficients
from privacy.correlated_noise.coefficients import relative_error as relative_error
from privacy.correlated_noise.coefficients import square_root as square_root
from privacy.correlated_noise.coefficients import workload as workload
from privacy.correlated_noise.factors import BandedFactor as BandedFactor
from privacy.correlated_noise.factors import BLTFactor as BLTFactor
from privacy.correlated_noise.factors import Factor as Factor
from privacy.correlated_noise.instance import NoiseInstance as NoiseInstance
from privacy.correlated_noise.mechanisms import BLT as BLT
from privacy.correlated_noise.mechanisms import BandedMF as BandedMF
from privacy.correlated_noise.mechanisms import CorrelatedMechanism as CorrelatedMechanism
from privacy.correlated_noise.participation import MinSeparation as MinSeparation
from privacy.correlated_noise.participation import sensitivity as sensitivity
from privacy.correlated_noise.rows import CorrelatedNoise as CorrelatedNoise
