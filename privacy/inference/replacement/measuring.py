"""What the new model does that the old one did not, on public inputs that nobody trained on."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from privacy.inference.arithmetic.polynomials import DEPTH
from privacy.inference.decision import decide
from privacy.inference.replacement.data import PublicInputs
from privacy.inference.replacement.fitting import Fit, Values
from privacy.inference.replacement.places import Separated
from privacy.inference.replacement.report import ReplacedActivation, ReplacementReport
from privacy.inference.replacement.tuning import watched

_PUBLIC = "public: ranges, weights and this report follow from them"
_PRIVATE = (
    "private, trained on with clipping and noise; ranges and this report follow from the public "
    "stand-ins"
)


def reported(
    separated: Separated,
    fits: Mapping[str, tuple[Values, Fit]],
    teacher: nn.Module,
    public: PublicInputs,
    *,
    batch_size: int,
    private: bool,
) -> ReplacementReport:
    """Ask original and new model about the inputs that were kept apart."""
    new = separated.model
    ranges = {name: (values.low, values.high) for name, (values, _) in fits.items()}
    like = next(new.parameters())
    before, after = [], []
    shares: dict[str, float] = dict.fromkeys(ranges, 0.0)
    with torch.no_grad(), watched(new, ranges) as outside:
        for batch in public.held_out.split(batch_size):
            before.append(_decisions(teacher(batch.to(like))))
            after.append(_decisions(new(batch.to(like))))
            for name, share in outside.shares.items():
                shares[name] += float(share) * len(batch) / len(public.held_out)
    old, made = np.concatenate(before), np.concatenate(after)
    right = None if public.held_out_labels is None else public.held_out_labels.numpy()
    depths = {name: DEPTH.get(fit.degree, 0) for name, (_, fit) in fits.items()}
    return ReplacementReport(
        activations=tuple(
            ReplacedActivation(
                name=place.name,
                activation=place.activation,
                low=fits[place.name][0].low,
                high=fits[place.name][0].high,
                degree=fits[place.name][1].degree,
                fit_error=fits[place.name][1].largest,
                outside=shares[place.name],
            )
            for place in separated.places
        ),
        pools=separated.pools,
        levels=separated.levels(depths),
        data=_PRIVATE if private else _PUBLIC,
        inputs=len(public.held_out),
        agreement=float(np.mean(old == made)),
        accuracy_before=None if right is None else float(np.mean(old == right)),
        accuracy_after=None if right is None else float(np.mean(made == right)),
    )


def _decisions(logits: Tensor) -> NDArray[np.int64]:
    return decide(logits.double().cpu().numpy())
