"""What comes out of local training: the weight to send, and what may be claimed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from privacy.training.protection import (
    ClipOnly,
    Count,
    NoisyCount,
    NominalCount,
    Protection,
    PublicCount,
)


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What the update carries by itself, and what it does not.

    Parameters
    ----------
    level : {"none", "record"}
        The unit that is protected: nothing, or one local record.
    adjacency : str
        What neighbouring data sets differ in.
    delta : float or None
        δ at which the client's ledger states its ε.
    holds : str
        The claim in words.
    count : str
        What the client lets out about how many records it has.
    not_covered : tuple of str
        What the claim does not say.
    """

    level: Literal["none", "record"]
    adjacency: str
    delta: float | None
    holds: str
    count: str
    not_covered: tuple[str, ...]


_COUNTS = {
    PublicCount: "public: the exact number of records is let out and not protected",
    NominalCount: "nominal: every client names the same number",
    NoisyCount: "noised: released once with Gaussian noise, paid in the ledger",
}


def guarantee_of(protection: Protection, *, private: bool) -> Guarantee:
    """The guarantee that ``protection`` gives when the client's assumptions hold.

    ``private`` says whether batches and noise come from secure randomness.
    """
    if isinstance(protection, ClipOnly):
        return Guarantee(
            level="none",
            adjacency="add or remove one record",
            delta=None,
            holds=(
                "each record's gradient is bounded; no differential privacy follows unless noise "
                "is added where the update goes"
            ),
            count=_COUNTS[PublicCount],
            not_covered=("record-level privacy", "client-level privacy"),
        )
    if not private:
        return Guarantee(
            level="none",
            adjacency="add or remove one record",
            delta=None,
            holds="nothing: batches and noise come from a seed",
            count=_COUNTS[type(protection.count)],
            not_covered=("record-level privacy", "client-level privacy"),
        )
    count: Count = protection.count
    beyond: tuple[str, ...] = ("client-level privacy", "several records of one person")
    if isinstance(count, PublicCount):
        beyond += ("the number of records",)
    return Guarantee(
        level="record",
        adjacency="add or remove one record",
        delta=protection.delta,
        holds=(
            "(ε, δ)-differential privacy for one record against everybody who sees this client's "
            "updates, the server included; ε is what the client's ledger states"
        ),
        count=_COUNTS[type(count)],
        not_covered=beyond,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What local training did. The trained parameters are in the model that was given.

    Parameters
    ----------
    steps : int
        Optimizer steps taken.
    weight : float
        The number of records to send along: exact, nominal or noised, as ``guarantee`` says.
    method : mapping of str to str
        By layer, how the norms of the examples' gradients were had: "two factors" (never built),
        "Opacus" (built by its registered function) or "torch.func".
    guarantee : Guarantee
        What may be claimed.
    epsilon : float or None
        What the data set has spent so far, this training included, at the guarantee's δ. For the
        client's own eyes: it is not sent. None without noise.
    """

    steps: int
    weight: float
    method: Mapping[str, str]
    guarantee: Guarantee
    epsilon: float | None
