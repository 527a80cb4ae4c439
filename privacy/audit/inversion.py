"""Inputs rebuilt from one client's update."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from privacy.arguments import number, sizes, whole

_NO_SIGNAL = 1e-4  # of the largest entry of a column, below which an entry is a ReLU's zero
_MORE_ZEROS = 0.1  # of the outputs: zeros beyond those that a column was made to have
_NEW_DIRECTION = 1e-3  # least singular value of columns that are of different examples
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


def invert_batch(
    weight_update: Tensor,
    bias_update: Tensor,
    *,
    examples: int,
    tries: int = 20_000,
    seed: int = 0,
) -> Tensor:
    """Read all inputs of a batch out of the update of a linear layer with a ReLU behind it.

    The gradient is ∂Z·X with ∂Z (out, b) and X (b, in), so its rank is b, and ∂Z = L·Q for the left
    singular vectors L. ReLUs make columns of ∂Z sparse: a column of Q is the null vector of some
    b − 1 rows of L, found by trying; b of the sparsest columns are the examples' (Dimitrov et al.
    2024, "SPEAR: exact gradient inversion of batches", arXiv 2403.03945, sections 3 and 4). The
    bias gives their lengths. A sum over clients with one example each is such a batch: to sum hides
    who holds an input, not the input.

    Parameters
    ----------
    weight_update : Tensor, (out, in)
        The layer's weights after one step less those before, or a gradient; several clients' sum.
    bias_update : Tensor, (out,)
        The same of its bias.
    examples : int
        b, at most the least of out and in; beyond about 20 it takes very many tries.
    tries : int
        How many sets of rows are looked at.
    seed : int
        Of the tries.

    Returns
    -------
    Tensor, (b, in)
        In any order. Zeros where no sparse columns were seen, as with noise.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not belong together, or a number is out of range.
    """
    if weight_update.ndim != 2 or bias_update.shape != weight_update.shape[:1]:
        raise ValueError(
            f"weight_update has shape {tuple(weight_update.shape)} and bias_update "
            f"{tuple(bias_update.shape)}; they must be (out, in) and (out,)"
        )
    outputs, size = weight_update.shape
    examples = whole("examples", examples, least=1, most=min(outputs, size))
    tries, seed = whole("tries", tries, least=1), whole("seed", seed, least=0, most=2**63 - 1)
    left, lengths, right = torch.linalg.svd(weight_update.double(), full_matrices=False)
    left, right = left[:, :examples], lengths[:examples, None] * right[:examples]
    draw = torch.Generator("cpu").manual_seed(seed)
    # Outputs that no example lights are zero in all columns, and tell none apart.
    size_of_row = left.norm(dim=1)
    live = left[size_of_row > _NO_SIGNAL * size_of_row.max()]
    order = torch.rand((tries, len(live)), generator=draw, device="cpu").argsort(dim=1)
    rows = live[order[:, : examples - 1].to(left.device)]
    # The last right singular vector of b - 1 rows of length b is what they annul.
    columns = torch.linalg.svd(rows)[2][:, -1] if examples > 1 else left.new_ones(1, 1)
    signals = columns @ live.T
    zeros = (signals.abs() < _NO_SIGNAL * signals.abs().amax(dim=1, keepdim=True)).sum(dim=1)
    least = examples - 1 + _MORE_ZEROS * len(live) if examples > 1 else 0.0
    chosen = left.new_zeros(0, examples)
    for place in zeros.argsort(descending=True).tolist():
        if zeros[place] < least or len(chosen) == examples:
            break
        candidate = torch.cat([chosen, columns[place : place + 1]])
        if torch.linalg.svdvals(candidate)[-1] > _NEW_DIRECTION:
            chosen = candidate
    if len(chosen) < examples:
        return torch.zeros(examples, size, device=weight_update.device)
    scale = torch.linalg.lstsq(left @ chosen.T, bias_update.double()[:, None]).solution
    rebuilt: Tensor = torch.linalg.solve(chosen.T * scale.T, right)
    return rebuilt.to(weight_update.dtype)


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
