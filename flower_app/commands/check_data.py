"""``python -m flower_app check-data DIR``: lists the faults in a SuperNode's data folder."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from flower_app.data import check_node_folder, load_node_folder
from flower_app.errors import counted


def add_command(commands: Any) -> None:
    """Add ``check-data`` to the app's command line."""
    parser = commands.add_parser(
        "check-data",
        description="Reads a SuperNode's own data folder as its ClientApp would. Exits with 0 if "
        "it is good; otherwise with 1 and a line for each fault.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Check a folder and print the result."""
    faults = check_node_folder(options.folder)
    for fault in faults:
        print(fault, file=sys.stderr)
    if faults:
        return 1
    data = load_node_folder(options.folder)
    counts = np.bincount(data.labels, minlength=10)
    print(f"{options.folder} is good: {counted(len(data), 'image')}.")
    print("Of each digit: " + ", ".join(f"{digit}: {n:,}" for digit, n in enumerate(counts)))
    return 0
