"""jax_privacy: clipped, noised steps of a network, compiled, timed whenever a line comes in.

As many examples at once as are fastest here.
"""

import sys
import time
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax_privacy.clipping import clipped_grad
from jax_privacy.noise_addition import gaussian_privatizer


def serve(widths: list[int], examples: int, steps: int) -> None:
    """Answer each line with the processor seconds of so many steps."""
    draw = np.random.default_rng(0)
    parameters: Any = [
        (
            jnp.asarray(draw.normal(0, size**-0.5, (size, following)), jnp.float32),
            jnp.zeros(following),
        )
        for size, following in pairwise(widths)
    ]
    inputs = jnp.asarray(draw.random((examples, widths[0])), jnp.float32)
    targets = jnp.asarray(draw.integers(0, widths[-1], examples))

    def loss(values: Any, batch: Any) -> Any:
        hidden, labels = batch
        for weight, bias in values[:-1]:
            hidden = jax.nn.relu(hidden @ weight + bias)
        weight, bias = values[-1]
        logits = hidden @ weight + bias
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def clipped(at_once: int) -> Any:
        return jax.jit(clipped_grad(loss, l2_clip_norm=1.0, microbatch_size=at_once))

    def seconds(at_once: int) -> float:
        gradient = clipped(at_once)
        jax.block_until_ready(gradient(parameters, (inputs, targets)))
        started = time.process_time()
        jax.block_until_ready(gradient(parameters, (inputs, targets)))
        return time.process_time() - started

    gradient = clipped(min((1, 8, examples), key=seconds))
    privatizer = gaussian_privatizer(stddev=1.0, prng_key=1)
    state = privatizer.init(parameters)

    def step(values: Any, state: Any) -> Any:
        noised, state = privatizer.update(gradient(values, (inputs, targets)), state)
        return jax.tree.map(lambda v, g: v - 1e-4 / examples * g, values, noised), state

    compiled = jax.jit(step)
    for _ in sys.stdin:
        started = time.process_time()
        for _ in range(steps):
            parameters, state = compiled(parameters, state)
        jax.block_until_ready(parameters)
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    serve([int(width) for width in sys.argv[1].split("-")], int(sys.argv[2]), int(sys.argv[3]))
