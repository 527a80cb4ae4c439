"""The encoding of updates: to the integers that clients mask, and from their sum."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from math import isclose
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord

from privacy.mechanisms import (
    ClippingGeometry,
    DistributedGaussian,
    LatticeNoise,
    MaskedGaussian,
    MaskedMechanism,
    Randomness,
    SystemRandomness,
)
from privacy.secure_aggregation import ClientPolicy, RoundTerms
from privacy.secure_aggregation.errors import MalformedMessageError, UnacceptableTermsError
from privacy.untrusted_text import error_quoted
from strategies.model_schema import ModelSchema
from strategies.weighting import CappedWeights, UniformWeights

_MECHANISMS: dict[str, Callable[..., MaskedMechanism]] = {
    MaskedGaussian.name: MaskedGaussian,
    DistributedGaussian.name: DistributedGaussian,
}


@dataclass(frozen=True)
class UpdateEncoding:
    """How a client bounds its update and turns it into integers; sent with the model, public.

    Attributes
    ----------
    geometry : ClippingGeometry
        How updates are clipped.
    weight_cap : float
        ŵ of capped weights; 0: every client counts the same.
    weighted_by : str
        The metric that says how many examples a client has.
    mechanism : MaskedMechanism
        What rounds the update to integers, and adds this client's share of the noise if there
        is one.
    noise_multiplier : float
        z of the round.
    noise : LatticeNoise or None
        The server's own, where it is correlated; it is not sent.
    """

    geometry: ClippingGeometry
    weight_cap: float
    weighted_by: str
    mechanism: MaskedMechanism
    noise_multiplier: float
    noise: LatticeNoise | None = None

    @property
    def weighting(self) -> UniformWeights | CappedWeights:
        """The rule of weights; its total is the server's business."""
        if not self.weight_cap:
            return UniformWeights()
        return CappedWeights(cap=self.weight_cap, total_weight=1.0)

    def entries(self, parameters: int) -> int:
        """One for each parameter."""
        return parameters

    def bound(self, parameters: int) -> int:
        """``RoundTerms.bound`` for a model of so many parameters."""
        return self.mechanism.bound(parameters=parameters, noise_multiplier=self.noise_multiplier)

    def encode(
        self, arrays: list[npt.NDArray[Any]], reference: list[npt.NDArray[Any]], weight: float
    ) -> npt.NDArray[np.int64]:
        """A client's arrays, bounded around the reference, as integers to be masked."""
        return self.mechanism.encode(
            arrays,
            reference,
            self.geometry,
            weight=weight,
            noise_multiplier=self.noise_multiplier,
            randomness=SystemRandomness(),
        )

    def decode(
        self,
        opened: npt.NDArray[np.int64],
        reference: list[npt.NDArray[Any]],
        *,
        survivors: int,
        randomness: Randomness,
    ) -> list[npt.NDArray[Any]]:
        """The sum of the survivors' updates, noised, from the opened integers."""
        return self.mechanism.decode(
            opened,
            reference,
            self.geometry,
            survivors=survivors,
            noise_multiplier=self.noise_multiplier,
            randomness=randomness,
            noise=self.noise,
        )

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""
        record["clipping-norms"] = list(self.geometry.norms)
        record["clipping-groups"] = list(self.geometry.group_of)
        record["weight-cap"] = self.weight_cap
        record["weighted-by"] = self.weighted_by
        record["mechanism"] = self.mechanism.name
        record["mechanism-settings"] = list(astuple(self.mechanism))
        record["noise-multiplier"] = self.noise_multiplier

    @classmethod
    def from_record(cls, record: ConfigRecord) -> "UpdateEncoding":
        """Read what ``write_into`` wrote; ``MalformedMessageError`` if it is not that."""
        try:
            norms, groups = record["clipping-norms"], record["clipping-groups"]
            name, settings = record["mechanism"], record["mechanism-settings"]
            cap, key, z = record["weight-cap"], record["weighted-by"], record["noise-multiplier"]
            if not (isinstance(norms, list) and isinstance(groups, list) and isinstance(key, str)):
                raise ValueError("a field has the wrong type")
            if not (isinstance(settings, list) and isinstance(cap, float) and isinstance(z, float)):
                raise ValueError("a field has the wrong type")
            encoding = cls(
                geometry=ClippingGeometry(tuple(map(float, norms)), tuple(map(int, groups))),
                weight_cap=cap,
                weighted_by=key,
                mechanism=_MECHANISMS[str(name)](*map(int, settings)),
                noise_multiplier=z,
            )
            _ = encoding.weighting  # checks the cap
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MalformedMessageError(
                f"the settings that bound an update cannot be read: {error_quoted(error)}"
            ) from error
        return encoding

    def check(self, terms: RoundTerms, policy: ClientPolicy, schema: ModelSchema) -> None:
        """Refuse (``UnacceptableTermsError``) what the policy forbids or the round cannot hold.

        This comes before anybody trains: an update that did not fit would tell the server so, and
        it could choose what it sends so that large ones do not fit.
        """
        norm, cap = self.geometry.total_norm, self.weight_cap
        for name, value, pinned in (
            ("clipping norm", norm, policy.clipping_norm),
            ("weight cap", cap, policy.weight_cap),
        ):
            if pinned is not None and not isclose(value, pinned):
                raise UnacceptableTermsError(
                    f"the {name} is {value:g}; this client pins {pinned:g}"
                )
        if policy.mechanism is not None and self.mechanism != policy.mechanism:
            raise UnacceptableTermsError(
                f"the mechanism is {self.mechanism}; this client pins {policy.mechanism}"
            )
        arrays = schema.arrays
        size = sum(array.size for array in arrays)
        if size != terms.size:
            raise UnacceptableTermsError(f"the model has {size} numbers, the terms {terms.size}")
        if len(self.geometry.group_of) != len(arrays):
            raise UnacceptableTermsError(
                f"{len(self.geometry.group_of)} arrays are clipped; the model has {len(arrays)}"
            )
        needed = self.bound(size)
        if terms.bound < needed:
            raise UnacceptableTermsError(
                f"the terms bound an entry by {terms.bound}; {self.mechanism.name} needs "
                f"{needed} with these settings"
            )
        shares = (
            self.mechanism.min_clients if isinstance(self.mechanism, DistributedGaussian) else 0
        )
        if terms.min_clients < shares:
            raise UnacceptableTermsError(
                f"the noise is shared among {shares} clients, but the sum of {terms.min_clients} "
                "may be opened"
            )
