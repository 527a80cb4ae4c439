"""Opake: clipped, noised steps of a network, timed whenever a line comes in.

As many examples at once as are fastest here.
"""

import sys
import time
from itertools import pairwise
from typing import Any

import torch
from opake.dpsgd.clipping import clipped_grad
from opake.dpsgd.noise import gaussian_noise
from opake.random import key
from torch import Tensor, nn
from torch.func import functional_call


def serve(widths: list[int], examples: int, steps: int) -> None:
    """Answer each line with the processor seconds of so many steps."""
    torch.set_num_threads(1)
    layers: list[nn.Module] = []
    for size, following in pairwise(widths):
        layers += [nn.Linear(size, following), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    inputs, targets = torch.rand(examples, widths[0]), torch.randint(0, widths[-1], (examples,))

    def loss(values: dict[str, Tensor], one: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(
            functional_call(model, values, (one[None],)), target[None]
        )

    def clipped(at_once: int) -> Any:
        return clipped_grad(
            loss,
            clipping_norm=1.0,
            batch_argnums=(1, 2),
            normalize_by=examples,
            microbatch_size=at_once,
        )

    def seconds(at_once: int) -> float:
        gradient, clipping = clipped(at_once)
        _, clipping = gradient(parameters, inputs, targets, state=clipping)
        started = time.process_time()
        gradient(parameters, inputs, targets, state=clipping)
        return time.process_time() - started

    gradient, clipping = clipped(min((1, 8, examples), key=seconds))
    noise, state = gaussian_noise(noise_multiplier=1.0, key=key(1))
    for _ in sys.stdin:
        started = time.process_time()
        for _ in range(steps):
            gradients, clipping = gradient(parameters, inputs, targets, state=clipping)
            noised, state = noise(gradients, state)
            parameters = {n: v - 1e-4 * noised.pytree[n] for n, v in parameters.items()}
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    serve([int(width) for width in sys.argv[1].split("-")], int(sys.argv[2]), int(sys.argv[3]))
