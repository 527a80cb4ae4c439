"""What a deployed client's process costs before it works: Flower starts one for every message."""

import resource
import subprocess
import sys

from benchmarks.harness import Log, Row, Spread

FLOWER = "import flwr.supernode.cli.flwr_clientapp"
APP = "import flower_app.client_app"
TRAINING = "import flower_app.training.local_steps"


def run(*, quick: bool, log: Log) -> list[Row]:
    """Processor seconds of fresh processes that import what a message needs, in turns."""
    ways = {
        "flower": FLOWER,
        "app": f"{FLOWER}; {APP}",
        "torch": f"{FLOWER}; import torch",
        "training": f"{FLOWER}; {APP}; {TRAINING}",
    }
    log("processes that import Flower's client, the app, and PyTorch")
    spent: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(1 + (1 if quick else 3)):
        for way, program in ways.items():
            seconds = processor_seconds(program)
            if turn:  # the first writes byte code
                spent[way].append(seconds)
    times = {way: Spread.of(values) for way, values in spent.items()}
    metric, unit = "imports", "CPU s"
    return [
        Row(
            "a message without PyTorch (masked rounds' keys and shares, declines)",
            metric,
            unit,
            times["app"],
            times["flower"],
            "Flower's client process alone",
        ),
        Row(
            "a message that trains",
            metric,
            unit,
            times["training"],
            times["torch"],
            "Flower's client process and PyTorch",
        ),
    ]


def processor_seconds(program: str) -> float:
    """What a fresh interpreter spends on a program."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
