"""Inputs rebuilt from one client's update."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from privacy.arguments import number, sizes, whole

_FIRST_BRIGHTNESS, _SEARCH_RATE = 0.1, 0.02


def invert_first_linear_layer(weight_update: Tensor, bias_update: Tensor) -> Tensor:
    """Read an input out of the update of a linear layer with a bias, exactly for one example.

    Output k has the gradient g_k x in its weights and g_k in its bias: their quotient is x (Phong
    et al. 2017, "Privacy-preserving deep learning: revisited and enhanced", section 3). Several
    examples give a weighted mean.

    Parameters
    ----------
    weight_update : Tensor, (out, in)
        The layer's weights after training less those before, or a gradient.
    bias_update : Tensor, (out,)
        The same of its bias.

    Returns
    -------
    Tensor, (in,)
        From the output whose bias moved most. Zeros if none moved.

    Raises
    ------
    ValueError
        If the shapes do not belong together.
    """
    if weight_update.ndim != 2 or bias_update.shape != weight_update.shape[:1]:
        raise ValueError(
            f"weight_update has shape {tuple(weight_update.shape)} and bias_update "
            f"{tuple(bias_update.shape)}; they must be (out, in) and (out,)"
        )
    strongest = int(bias_update.abs().argmax())
    if bias_update[strongest] == 0:
        return torch.zeros_like(weight_update[0])
    return weight_update[strongest] / bias_update[strongest]


def match_gradient(
    model: nn.Module,
    update: Sequence[Tensor],
    *,
    label: int,
    shape: tuple[int, ...],
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
    steps: int = 300,
    restarts: int = 4,
    smoothness: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Search for the input in [0, 1] whose gradient points where an update points.

    Geiping et al. 2020 ("Inverting gradients", arXiv 2003.14053, section 4): the cosine distance
    of the gradients and a total variation are minimised over the input by Adam.

    Parameters
    ----------
    model : nn.Module
        As the server sent it.
    update : sequence of Tensor
        A client's, in the order and shapes of ``model.parameters()``; only its direction is used,
        so clipping does not hinder.
    label : int
        The example's class; an attacker reads it from the last layer, or tries all.
    shape : tuple of int
        Of one input.
    loss : callable
        The client's.
    steps, restarts : int
        How long each search is, and from how many first guesses; the best match is returned.
    smoothness : float
        The weight of the total variation of images.
    seed : int
        Of the first guesses, which are nearly black.

    Returns
    -------
    Tensor
        Of ``shape``.

    Raises
    ------
    ValueError
        If the update is not of this model.
    """
    label, seed = whole("label", label, least=0), whole("seed", seed, least=0, most=2**63 - 1)
    steps, restarts = whole("steps", steps, least=0), whole("restarts", restarts, least=1)
    smoothness = number("smoothness", smoothness, least=0)
    shape = sizes("shape", shape, "the shape of one input, as (1, 28, 28)")
    parameters = [p for p in model.parameters() if p.requires_grad]
    if [p.shape for p in parameters] != [u.shape for u in update]:
        raise ValueError("update does not have the shapes of the model's parameters, in order")
    # A client steps against its gradient.
    target_gradient = [-u.detach() for u in update]
    length = math.sqrt(sum(float((w * w).sum()) for w in target_gradient)) or 1.0
    device = target_gradient[0].device
    draw = torch.Generator("cpu").manual_seed(seed)
    target = torch.tensor([label], device=device)

    def distance(guess: Tensor) -> Tensor:
        gradient = torch.autograd.grad(loss(model(guess), target), parameters, create_graph=True)
        products = [(g * t).sum() for g, t in zip(gradient, target_gradient, strict=True)]
        inner = sum(products, torch.zeros((), device=device))
        squares = [(g * g).sum() for g in gradient]
        norm = torch.sqrt(sum(squares, torch.full((), 1e-20, device=device)))
        return 1 - inner / (norm * length)

    def search() -> tuple[float, Tensor]:
        guess = _FIRST_BRIGHTNESS * torch.rand((1, *shape), generator=draw, device="cpu")
        guess = guess.to(device)
        guess.requires_grad_()
        optimizer = torch.optim.Adam([guess], lr=_SEARCH_RATE)
        for _ in range(steps):
            aim = distance(guess)
            if len(shape) >= 2:
                variation = guess.diff(dim=-1).abs().mean() + guess.diff(dim=-2).abs().mean()
                aim = aim + smoothness * variation
            # Only the guess's gradient is wanted; the model's own are left alone.
            (guess.grad,) = torch.autograd.grad(aim, [guess])
            optimizer.step()
            with torch.no_grad():
                guess.clamp_(0, 1)
        return float(distance(guess).detach()), guess.detach()[0]

    return min((search() for _ in range(restarts)), key=lambda result: result[0])[1]
