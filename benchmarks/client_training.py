"""A client's training step: plain SGD, Opacus by hooks and by ghost norms, and ours."""

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, relu, scaled_dot_product_attention
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.encrypted_inference.cases import tutorial_cnn
from benchmarks.harness import Log, Row, Spread, interleave, memory_of_process
from privacy.training import (
    ClientLedger,
    ClipAndNoise,
    ClipOnly,
    FullBatch,
    PublicCount,
    train,
)

Steps = Callable[[], object]
STEPS = 5
CLIPPING_NORM = 1.0


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(400, 120),
        nn.ReLU(),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(784, 256),
        nn.ReLU(),
        nn.Linear(256, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def hog_linear() -> nn.Sequential:
    return nn.Sequential(nn.Linear(392, 10))


class TransformerBlock(nn.Module):
    """One block before a mean over the tokens: 28 rows of a picture, 28 numbers each."""

    def __init__(self, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embedded = nn.Linear(28, width)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.classes = nn.Linear(width, 10)

    def _attention(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        attended: Tensor = self.out(
            scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        )
        return attended

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores of ten classes."""
        x = self.embedded(pictures.flatten(1, 2))
        x = x + self._attention(self.before_attention(x))
        x = x + self.narrow(gelu(self.widen(self.before_mlp(x))))
        scores: Tensor = self.classes(x.mean(1))
        return scores


class _ResidualBlock(nn.Module):
    """Two convolutions with GroupNorm, beside the identity or a convolution of 1 x 1."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(out // 4, out) for _ in range(2))
        same = stride == 1 and channels == out
        self.beside = nn.Identity() if same else nn.Conv2d(channels, out, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = relu(self.norms[0](self.first(x)))
        return relu(self.norms[1](self.second(inner)) + self.beside(x))


def resnet20() -> nn.Sequential:
    """ResNet-20 for 3 x 32 x 32 (He et al. 2016, section 4.2), with GroupNorm."""
    blocks: list[nn.Module] = []
    channels = 16
    for out, stride in ((16, 1), (32, 2), (64, 2)):
        for first in (True, False, False):
            blocks.append(_ResidualBlock(channels, out, stride if first else 1))
            channels = out
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


SMALL = {"tutorial CNN": tutorial_cnn, "LeNet-size CNN": lenet, "MLP": mlp}
LARGE: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...]]] = {
    "transformer block": (TransformerBlock, 64, (1, 28, 28)),
    "ResNet-20": (resnet20, 32, (3, 32, 32)),
}


def batch_of(examples: int, *shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.rand(examples, *shape, generator=generator),
        torch.randint(0, 10, (examples,), generator=generator),
    )


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-4)


def plain(model: nn.Module, inputs: Tensor, targets: Tensor, steps: int = STEPS) -> Steps:
    optimizer = sgd(model)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    return run


def opacus(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    mode: str,
    noise_multiplier: float,
    steps: int = STEPS,
) -> Steps:
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=len(inputs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        private, optimizer, *rest = PrivacyEngine().make_private(
            module=model,
            optimizer=sgd(model),
            criterion=nn.CrossEntropyLoss(),
            data_loader=loader,
            noise_multiplier=noise_multiplier,
            max_grad_norm=CLIPPING_NORM,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
    loss = rest[0] if mode == "ghost" else cross_entropy

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            loss(private(inputs), targets).backward()
            optimizer.step()

    return run


def ours(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    noise_multiplier: float,
    steps: int = STEPS,
) -> Steps:
    optimizer = sgd(model)
    ledger = ClientLedger(dataset="benchmark")
    protection = (
        ClipAndNoise(
            clipping_norm=CLIPPING_NORM,
            noise_multiplier=noise_multiplier,
            delta=1e-5,
            count=PublicCount(),
        )
        if noise_multiplier
        else ClipOnly(clipping_norm=CLIPPING_NORM)
    )
    return lambda: train(
        model,
        (inputs, targets),
        loss=cross_entropy,
        optimizer=optimizer,
        protection=protection,
        batches=FullBatch(steps=steps),
        ledger=ledger if noise_multiplier else None,
    )


def ways(
    make: Callable[[], nn.Module], inputs: Tensor, targets: Tensor, noise_multiplier: float
) -> dict[str, Steps]:
    """One call of each is ``STEPS`` steps on the same examples."""
    return {
        "plain SGD": plain(make(), inputs, targets),
        "Opacus hooks": opacus(make(), inputs, targets, "hooks", noise_multiplier),
        "Opacus ghost": opacus(make(), inputs, targets, "ghost", noise_multiplier),
        "ours": ours(make(), inputs, targets, noise_multiplier),
    }


def seconds(ways: dict[str, Steps], repetitions: int) -> dict[str, list[float]]:
    """Interleaved times, kept apart so that ratios are taken within a turn."""
    interleave(ways, repetitions=1, warmup=2)
    turns = [interleave(ways, repetitions=1, warmup=0) for _ in range(repetitions)]
    return {name: [turn[name].median for turn in turns] for name in ways}


def compare(case: str, times: dict[str, list[float]]) -> list[Row]:
    rows = []
    mine = [1e3 * t / STEPS for t in times["ours"]]
    for name in ("plain SGD", "Opacus hooks", "Opacus ghost"):
        peer = [1e3 * t / STEPS for t in times[name]]
        rows.append(Row(case, "step", "ms", Spread.of(mine), Spread.of(peer), name))
    over = {
        name: Spread.of([t / p for t, p in zip(times[name], times["plain SGD"], strict=True)])
        for name in times
    }
    rows += [
        Row(case, "time over plain SGD", "times", over["ours"], over[name], name)
        for name in ("Opacus hooks", "Opacus ghost")
    ]
    return rows


def step(
    case: str,
    make: Callable[[], nn.Module],
    data: tuple[Tensor, Tensor],
    noise_multiplier: float,
    repetitions: int,
    log: Log,
) -> list[Row]:
    rows = compare(case, seconds(ways(make, *data, noise_multiplier), repetitions))
    log(f"{case}: ours {rows[-1].ours.median:.2f} times plain SGD")
    return rows


def _grown(name: str, model: str, examples: int) -> float:
    torch.set_num_threads(1)
    make, _, shape = LARGE.get(model) or (SMALL[model], 0, (1, 28, 28))
    way = ways(make, *batch_of(examples, *shape), 0.0)[name]
    # 5 resets the peak that the kernel keeps for this process (man 5 proc).
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_of_process("VmRSS")
    way()
    return (memory_of_process("VmHWM") - before) / 2**20


def memory(model: str, examples: int, repetitions: int) -> list[Row]:
    """How far the peak of a fresh process grows in its first steps (Linux only)."""
    names = ("plain SGD", "Opacus hooks", "Opacus ghost", "ours")
    context = multiprocessing.get_context("spawn")
    grown: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repetitions):
        for name in names:
            with context.Pool(1) as pool:
                grown[name].append(pool.apply(_grown, (name, model, examples)))
    case = f"{model}, {examples} examples"
    return [
        Row(case, "peak memory", "MB", Spread.of(grown["ours"]), Spread.of(grown[name]), name)
        for name in names[:-1]
    ]


def small_calls(repetitions: int) -> list[Row]:
    """What one call costs in a simulation: a new model's worth of set-up and one small step."""
    inputs, targets = batch_of(25, 392)
    model = hog_linear()
    times = interleave(
        {
            "ours": ours(model, inputs, targets, 0.0, steps=1),
            "Opacus hooks": lambda: opacus(hog_linear(), inputs, targets, "hooks", 0.0, steps=1)(),
            "make_private": lambda: opacus(hog_linear(), inputs, targets, "hooks", 0.0),
            "plain SGD": plain(model, inputs, targets, steps=1),
        },
        repetitions=repetitions,
    )

    def spread(name: str) -> Spread:
        s = times[name]
        return Spread(1e3 * s.median, 1e3 * s.low, 1e3 * s.high, s.repetitions)

    case = "linear on 392 features, 25 examples, one step a call"
    return [
        Row(case, "call", "ms", spread("ours"), spread("plain SGD"), "plain SGD"),
        Row(case, "call", "ms", spread("ours"), spread("Opacus hooks"), "Opacus hooks"),
        Row(case, "call", "ms", spread("ours"), spread("make_private"), "make_private alone"),
    ]


def run(*, quick: bool, log: Log) -> list[Row]:
    """Measure, and return the rows."""
    repetitions = 5 if quick else 31
    rows: list[Row] = []
    before = torch.get_num_threads()
    # Every step Opacus's hooks warn that the data itself wants no gradient.
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    try:
        models = list(SMALL)[:2] if quick else list(SMALL)
        for threads, examples, model in product((1,) if quick else (1, 2), (64, 256), models):
            torch.set_num_threads(threads)
            for noise_multiplier in (0.0, 1.0):
                if noise_multiplier and (threads, examples) != (1, 256):
                    continue
                kind = "clipped and noised" if noise_multiplier else "clipped"
                case = f"{model}, {examples} examples, {threads} thread(s), {kind}"
                data = batch_of(examples, 1, 28, 28)
                rows += step(case, SMALL[model], data, noise_multiplier, repetitions, log)
        torch.set_num_threads(1)
        for model, (make, examples, shape) in list(LARGE.items())[: 1 if quick else None]:
            for noise_multiplier in (0.0,) if quick else (0.0, 1.0):
                kind = "clipped and noised" if noise_multiplier else "clipped"
                case = f"{model}, {examples} examples, 1 thread(s), {kind}"
                data = batch_of(examples, *shape)
                rows += step(case, make, data, noise_multiplier, -(-repetitions // 4), log)
        torch.set_num_threads(1)
        rows += small_calls(20 if quick else 200)
    finally:
        torch.set_num_threads(before)
    if sys.platform != "linux":
        return rows
    sizes = {**dict.fromkeys(SMALL, 256), **{name: large[1] for name, large in LARGE.items()}}
    for model, examples in list(sizes.items())[: 1 if quick else None]:
        log(f"{model}: peak memory")
        rows += memory(model, examples, 1 if quick else 3)
    return rows
