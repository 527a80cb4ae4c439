"""Activations of a trained network, replaced by trained polynomials."""

from privacy.inference.replacement.data import PrivateData as PrivateData
from privacy.inference.replacement.data import PublicData as PublicData
from privacy.inference.replacement.replace import replace_activations as replace_activations
from privacy.inference.replacement.report import ReplacedActivation as ReplacedActivation
from privacy.inference.replacement.report import Replacement as Replacement
from privacy.inference.replacement.report import ReplacementReport as ReplacementReport
