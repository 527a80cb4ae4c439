"""A residual network of 3 × 32 × 32 inputs and nine activations, through encryption.

The images are Fashion-MNIST's, padded to 32 × 32 and tripled to three channels: no package of the
index holds photographs of CIFAR's size. They say how fast a network of that size is and that its
answers are its own, not how well it would tell photographs apart.
"""

import time
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.harness import Log, Row, Spread
from flower_app.data import load_dataset
from privacy.inference import (
    Evaluator,
    MeasurementOwner,
    Polynomial,
    compile_model,
    logit_bound,
)

CHANNELS, BLOCKS = 16, 4
SHAPE, RANGE = (3, 32, 32), (0.0, 1.0)
EPOCHS, IMAGES, ENCRYPTED = 2, 20_000, 10
_BITS = 100.0
"""Of the largest logit, from which on training is penalised: an answer has a prime for each 50."""
_PENALTY = 0.02


class Block(nn.Module):
    """Two convolutions, and the activation after the addition (He et al. 2015, figure 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.act, self.last = activation(), activation()
        nn.init.zeros_(self.two.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Of inputs and outputs (images, channels, 16, 16)."""
        return cast(Tensor, self.last(x + self.two(self.act(self.one(x)))))


class ResidualNetwork(nn.Module):
    """A convolution of stride 2, blocks at 16 × 16, an average and a linear layer."""

    def __init__(self, channels: int = CHANNELS, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, channels, 3, stride=2, padding=1), activation()
        self.blocks = nn.Sequential(*(Block(channels) for _ in range(blocks)))
        self.pool, self.last = nn.AvgPool2d(4), nn.Linear(16 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (images, 10) of images (images, 3, 32, 32)."""
        x = self.blocks(self.act(self.stem(x - 0.5)))
        return cast(Tensor, self.last(self.pool(x).flatten(1)))


def activation() -> Polynomial:
    """X + x²/10 at first; trained with the weights."""
    return Polynomial([0.0, 1.0, 0.1], trainable=True)


def enlarged(images: NDArray[np.uint8]) -> Tensor:
    """Images (images, 28, 28) of bytes as (images, 3, 32, 32) in [0, 1]."""
    values = torch.from_numpy(np.array(images)).float().reshape(-1, 1, 28, 28) / 255
    return nn.functional.pad(values, (2, 2, 2, 2)).expand(-1, 3, -1, -1)


def train(model: ResidualNetwork, images: NDArray[np.uint8], labels: Tensor, epochs: int) -> None:
    """Train with a penalty on the bound of the logits; the model ends in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=1e-3)
    steps = epochs * -(-len(images) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            loss = nn.functional.cross_entropy(model(enlarged(images[rows.numpy()])), labels[rows])
            bits = logit_bound(model, input_shape=SHAPE, input_range=RANGE).log2()
            optimizer.zero_grad()
            (loss + _PENALTY * torch.relu(bits - _BITS)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    model.eval()


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure, and return the rows."""
    torch.manual_seed(0)
    dataset = load_dataset("fashion-mnist")
    count = 2_000 if quick else IMAGES
    labels = torch.from_numpy(np.array(dataset.train.labels[:count])).long()
    model = ResidualNetwork(4, 1) if quick else ResidualNetwork()
    train(model, dataset.train.images[:count], labels, 1 if quick else EPOCHS)
    test, truth = dataset.test.images, np.array(dataset.test.labels)
    with torch.no_grad():
        parts = pairwise([*range(0, len(test), 500), len(test)])
        classes = np.concatenate([model(enlarged(test[a:b])).argmax(1).numpy() for a, b in parts])
    clear = 100 * float((classes == truth).mean())
    log(f"trained: {clear:.2f} % in the clear")
    start = time.perf_counter()
    compiled = compile_model(
        model,
        input_shape=SHAPE,
        input_range=RANGE,
        sample=enlarged(dataset.train.images[:32]).double().numpy(),
        max_query_bytes=64_000_000,
    )
    plan = compiled.plan
    log(f"compiled in {time.perf_counter() - start:.0f} s\n{plan}")
    owner = MeasurementOwner(plan)
    material = owner.public_material()
    evaluator = Evaluator(compiled, material)
    shown = enlarged(test[: 2 if quick else ENCRYPTED]).double().numpy()
    spent, processor, encryption, agree, errors = [], [], [], [], []
    for image, expected in zip(shown, compiled.predict(shown), strict=True):
        start = time.perf_counter()
        query = owner.encrypt(image)
        encryption.append(1e3 * (time.perf_counter() - start))
        start, used = time.perf_counter(), time.process_time()
        answer = evaluator.evaluate(query)
        spent.append(1e3 * (time.perf_counter() - start))
        processor.append(1e3 * (time.process_time() - used))
        logits = owner.logits(answer)[0]
        agree.append(100.0 * (logits.argmax() == expected.argmax()))
        errors.append(float(np.abs(logits - expected).max()))
        log(f"{spent[-1]:,.0f} ms, largest error {errors[-1]:.2g}")
    layers = sum(isinstance(module, Polynomial) for module in model.modules())
    case = f"residual network 3 × 32 × 32, {layers} activations"
    mean = sum(agree) / len(agree)
    return [
        Row(case, "test accuracy in the clear", "%", Spread.of([clear])),
        Row(case, "encrypted answers of the same class", "%", Spread.of([mean])),
        Row(case, "evaluation", "ms", Spread.of(spent)),
        Row(case, "evaluation, processor", "ms", Spread.of(processor)),
        Row(case, "encryption", "ms", Spread.of(encryption)),
        Row(case, "largest logit error", "", Spread.of(errors)),
        Row(case, "keys", "bytes", Spread.of([float(plan.public_bytes)])),
        Row(case, "query", "bytes", Spread.of([float(plan.query_bytes)])),
        Row(
            case,
            "predicted, one core of the reference machine",
            "ms",
            Spread.of([plan.predicted_ms]),
        ),
    ]
