"""The data owner's side: keys, encryption, decryption, and release of answers."""

from privacy.inference.owner.owner import DataOwner as DataOwner
from privacy.inference.owner.owner import ThrowAwayOwner as ThrowAwayOwner
