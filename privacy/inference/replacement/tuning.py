"""Fine-tuning: the new model learns to answer as the old one, with values inside the ranges.

Outside its range a polynomial leaves the activation quickly, values grow from layer to layer, and
deep networks break ("escaping activations": Garimella, Jha, Reagen 2021, "Sisyphus"). Two things
hold them: a penalty for values outside, and the original model as the teacher (knowledge
distillation, used for this by Baruch et al. 2021, "A methodology for training homomorphic
encryption friendly neural networks").
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from privacy.inference.errors import ReplacementError

_PENALTY = 0.1
"""Of the square of how far a value lies outside its range, in half ranges."""
_BOUND_PENALTY = 0.02
"""Of each bit by which logits may be larger than asked for."""
_LARGEST_STEP = 1.0
"""Norm at which gradients are clipped."""
_LOGGED_EVERY = 10.0
"""Seconds."""
_log = logging.getLogger(__name__)

Ranges = Mapping[str, tuple[float, float]]
"""Low and high end by the name of a polynomial."""


@dataclass
class Outside:
    """What left the ranges in the last run of a model.

    Attributes
    ----------
    excess : dict of str to Tensor
        By polynomial, for each input the sum of squares of how far its values lie outside, in half
        ranges: shape (inputs,).
    shares : dict of str to Tensor
        By polynomial, the share of values outside, a scalar.
    """

    excess: dict[str, Tensor] = field(default_factory=dict)
    shares: dict[str, Tensor] = field(default_factory=dict)

    def __deepcopy__(self, _: dict[int, object]) -> "Outside":
        """Of a copied model, which nobody watches: tensors with a history cannot be copied."""
        return Outside()


@contextmanager
def watched(model: nn.Module, ranges: Ranges) -> Iterator[Outside]:
    """Note at every run of a model what leaves the ranges of its polynomials."""
    outside = Outside()

    def note(name: str, low: float, high: float) -> Callable[[nn.Module, tuple[object, ...]], None]:
        centre, half = (low + high) / 2, (high - low) / 2

        def hook(_: nn.Module, inputs: tuple[object, ...]) -> None:
            values = inputs[0]
            if not isinstance(values, Tensor):
                return  # intervals, of which the logits are bounded
            beyond = F.relu((values - centre).abs() / half - 1)
            outside.excess[name] = beyond.square().flatten(1).sum(1)
            outside.shares[name] = (beyond > 0).to(beyond).mean()

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(note(name, *ends))
        for name, ends in ranges.items()
    ]
    try:
        yield outside
    finally:
        for hook in hooks:
            hook.remove()


class WithExcess(nn.Module):
    """A model whose outputs have a last column more: how far values leave their ranges."""

    def __init__(self, model: nn.Module, outside: Outside) -> None:
        super().__init__()
        self.model = model
        self._outside = outside

    def forward(self, x: Tensor) -> Tensor:
        """Shape (inputs, logits + 1)."""
        logits: Tensor = self.model(x)
        excess = torch.stack([*self._outside.excess.values()]).sum(0)
        return torch.cat([logits, excess[:, None]], dim=1)


@dataclass(frozen=True)
class Imitation:
    """The loss of each input: distance from the teacher's logits, wrong labels, values outside.

    Targets have shape (inputs, logits), the teacher's; with ``labelled`` a column more, the right
    classes.

    Attributes
    ----------
    spread : float
        Standard deviation of the teacher's logits.
    labelled : bool
    """

    spread: float
    labelled: bool

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Shape (inputs,), of a :class:`WithExcess` model's outputs."""
        logits, excess = outputs[:, :-1], outputs[:, -1]
        count = logits.shape[1]
        taught = targets[:, :count]
        apart = ((logits - taught) / self.spread).square().mean(1)
        decided = self._decided(logits, taught.softmax(1) if count > 1 else taught.sigmoid())
        if self.labelled:
            right = targets[:, count]
            right = right.long() if count > 1 else right[:, None]
            decided = (decided + self._decided(logits, right)) / 2
        return apart + decided + _PENALTY * excess

    def _decided(self, logits: Tensor, right: Tensor) -> Tensor:
        if logits.shape[1] > 1:
            return F.cross_entropy(logits, right, reduction="none")
        return F.binary_cross_entropy_with_logits(logits, right, reduction="none")[:, 0]


def targets_of(teacher: nn.Module, inputs: Tensor, labels: Tensor | None, size: int) -> Tensor:
    """The targets of :class:`Imitation` for some inputs, on the teacher's device."""
    like = next(teacher.parameters())
    with torch.no_grad():
        logits = torch.cat([teacher(batch.to(like)) for batch in inputs.split(size)])
    if labels is None:
        return logits
    return torch.cat([logits, labels[:, None].to(logits)], dim=1)


def tune(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Imitation,
    ranges: Ranges,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    bound: Callable[[], Tensor] | None,
    bits: float,
    seed: int,
) -> None:
    """Train a model in place, in evaluation mode: Adam, with a rate that falls as a cosine.

    ``bound``, where given, is a differentiable bound of the logits, to be kept below 2^``bits``.

    Raises
    ------
    ReplacementError
        If the loss is no longer finite.
    """
    parameters = [each for each in model.parameters() if each.requires_grad]
    like = parameters[0]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    generator = torch.Generator("cpu").manual_seed(seed)
    steps = epochs * math.ceil(len(inputs) / batch_size)
    done, began = 0, time.monotonic()
    logged = began
    with watched(model, ranges) as outside:
        wide = WithExcess(model, outside)
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=generator, device="cpu")
            for rows in order.split(batch_size):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * (1 + math.cos(math.pi * done / steps)) / 2
                optimizer.zero_grad()
                value = loss(wide(inputs[rows].to(like)), targets[rows.to(targets.device)]).mean()
                if bound is not None:
                    value = value + _BOUND_PENALTY * F.relu(bound().log2() - bits)
                if not bool(torch.isfinite(value)):
                    raise ReplacementError(
                        f"fine-tuning diverged after {done} of {steps} steps: values escape the "
                        "ranges of their polynomials; give a lower degree, or a learning_rate "
                        f"below {learning_rate:g}"
                    )
                value.backward()
                nn.utils.clip_grad_norm_(parameters, _LARGEST_STEP)
                optimizer.step()
                done += 1
                now = time.monotonic()
                if done == steps or now - logged > _LOGGED_EVERY:
                    logged = now
                    _log.info(
                        "replace_activations: %d of %d steps, loss %.3g, about %.0f s left",
                        *(done, steps, value.item(), (now - began) / done * (steps - done)),
                    )
    optimizer.zero_grad()
