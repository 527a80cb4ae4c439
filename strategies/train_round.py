"""One round of training: whom it asked, what they may add, what it releases."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Message

from privacy.accounting import joint_noise_multiplier
from privacy.mechanisms import (
    ClippingGeometry,
    Randomness,
    SumMechanism,
)
from privacy.mechanisms.errors import UpdateError
from strategies.errors import Fault, ReplyError
from strategies.model_schema import ModelSchema, TrainReply
from strategies.weighting import Weighting

Vector = npt.NDArray[Any]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Multipliers:
    """How a round's noise multiplier is shared by what the round releases."""

    update: float
    count: float | None  # of the sum of clipping bits, where the norm adapts


def share_multiplier(z: float, others: Sequence[float]) -> float:
    """What is left of a round's noise multiplier beside that of its other releases.

    Raises
    ------
    ValueError
        If the others alone spend more than the round may.
    """
    if z == 0 or not others:
        return z
    taken = sum(other**-2 for other in others)
    if taken >= z**-2:
        raise ValueError(
            f"the noised metrics alone spend more than a round with noise_multiplier = {z:g} "
            "may; raise their noise"
        )
    update: float = (z**-2 - taken) ** -0.5 * (1 + 1e-9)
    if joint_noise_multiplier(update, *others) < z:
        raise ArithmeticError("the shares of the noise multiplier exceed the whole")
    return update


class TrainRound:
    """The sums of one training round. Replies go in, noisy sums come out, once."""

    def __init__(
        self,
        number: int,
        schema: ModelSchema,
        geometry: ClippingGeometry,
        multipliers: Multipliers,
        *,
        mechanism: SumMechanism,
        weighting: Weighting,
        weighted_by_key: str,
        randomness: Randomness,
    ) -> None:
        self.number = number
        self.schema = schema
        self.geometry = geometry
        self._weighting = weighting
        self._key = weighted_by_key
        self._sum = mechanism.open(
            schema.arrays,
            geometry,
            noise_multiplier=multipliers.update,
            randomness=randomness,
        )
        self._bits = None
        if multipliers.count is not None:
            self._bits = mechanism.open(
                [np.zeros(1)],
                ClippingGeometry((0.5,), (0,)),
                noise_multiplier=multipliers.count,
                randomness=randomness,
            )

    def read(self, reply: Message) -> tuple[TrainReply, float]:
        """What a reply says, and how much it counts; the sums are not touched.

        Raises
        ------
        ReplyError
            If it cannot be read.
        """
        content = self.schema.read(reply)
        try:
            return content, self._weighting.weight(content.metrics, self._key)
        except ValueError as error:
            raise ReplyError(str(error), Fault.WEIGHT) from error

    def add(self, content: TrainReply, weight: float) -> None:
        """Bound one reply and add it.

        Raises
        ------
        ReplyError
            If it cannot be bounded; the sums are as they were.
        """
        try:
            clipped = self._sum.add(content.arrays, weight=weight)
        except UpdateError as error:
            raise ReplyError(str(error), Fault.VALUES) from error
        if self._bits is not None:
            bit = np.array([-0.5 if clipped else 0.5])
            self._bits.add([bit], weight=1.0)

    def release(self) -> list[Vector]:
        """The noisy sum of updates."""
        return self._sum.release()

    def unclipped_fraction(self, expected_cohort: float) -> float | None:
        """The noisy fraction of clients that were not clipped, where the norm adapts."""
        if self._bits is None:
            return None
        (total,) = self._bits.release()
        return float(total[0]) / expected_cohort + 0.5
