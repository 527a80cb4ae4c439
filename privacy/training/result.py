"""The result of local training: the weight to send, and the guarantee that may be claimed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from privacy.training.protection import (
    ClipAndNoise,
    ClipOnly,
    Count,
    NoisyCount,
    NominalCount,
    Protection,
    PublicCount,
)

_COUNTS: Mapping[type[Count], str] = {
    PublicCount: "public: the exact number of records is let out and not protected",
    NominalCount: "nominal: every client names the same number",
    NoisyCount: "noised: released once with Gaussian noise, paid in the ledger",
}


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """The claim that an update carries by itself.

    Parameters
    ----------
    level : {"none", "record"}
        The protected unit: nothing, or one local record.
    adjacency : str
        How neighbouring data sets differ.
    delta : float or None
        δ at which the client's ledger states its ε.
    holds : str
        The claim in words.
    count : str
        How the client's number of records leaves it.
    not_covered : tuple of str
    """

    level: Literal["none", "record"]
    adjacency: str
    delta: float | None
    holds: str
    count: str
    not_covered: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of ``train``; the trained parameters are in the model that was given.

    Parameters
    ----------
    steps : int
        Optimizer steps taken.
    weight : float
        The number of records to send along: exact, nominal or noised, as ``guarantee`` says.
    method : mapping of str to str
        By layer, how the norms of the examples' gradients were computed: "two factors", …,
        "Opacus" (built by its registered function) or "torch.func".
    guarantee : Guarantee
    epsilon : float or None
        ε that the data set has spent so far, this training included, at the guarantee's δ; never
        to be sent. None without noise.
    """

    steps: int
    weight: float
    method: Mapping[str, str]
    guarantee: Guarantee
    epsilon: float | None


def guarantee_of(protection: Protection, *, private: bool) -> Guarantee:
    """The guarantee that ``protection`` gives when the client's assumptions hold.

    ``private`` says whether batches and noise come from secure randomness.
    """
    count = PublicCount() if isinstance(protection, ClipOnly) else protection.count
    if isinstance(protection, ClipAndNoise) and private:
        return Guarantee(
            level="record",
            adjacency="add or remove one record",
            delta=protection.delta,
            holds=(
                "(ε, δ)-differential privacy for one record against everybody who sees this "
                "client's updates, the server included; ε is what the client's ledger states"
            ),
            count=_COUNTS[type(count)],
            not_covered=(
                "client-level privacy",
                "several records of one person",
                *["the number of records"] * isinstance(count, PublicCount),
            ),
        )
    holds = "nothing: batches and noise come from a seed"
    if isinstance(protection, ClipOnly):
        holds = (
            "each record's gradient is bounded; no differential privacy follows unless noise is "
            "added where the update goes"
        )
    return Guarantee(
        level="none",
        adjacency="add or remove one record",
        delta=None,
        holds=holds,
        count=_COUNTS[type(count)],
        not_covered=("record-level privacy", "client-level privacy"),
    )
