"""The data owner's side: keys, encryption, decryption, and release of answers."""

from privacy.inference.owner.owner import DataOwner as DataOwner
from privacy.inference.owner.owner import MeasurementOwner as MeasurementOwner
from privacy.inference.owner.release_policy import Answer as Answer
from privacy.inference.owner.release_policy import ClassOnly as ClassOnly
from privacy.inference.owner.release_policy import EachLabel as EachLabel
from privacy.inference.owner.release_policy import FloodedLogits as FloodedLogits
from privacy.inference.owner.release_policy import ReleasePolicy as ReleasePolicy
from privacy.inference.owner.release_policy import RoundedLogits as RoundedLogits
from privacy.inference.owner.release_policy import TopClasses as TopClasses
