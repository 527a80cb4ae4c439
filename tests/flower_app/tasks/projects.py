"""Small tasks for tests: forty households, a table of made-up visits."""

from pathlib import Path

import numpy as np

TASK = """\
name = "visits"
controller = "A clinic"
purpose = "who will need a doctor"
model = "logistic"

[data]
table = "visits.csv"
client-column = "household"
test-share = 0.2

[columns]
age = [0, 110]
sex = ["female", "male"]

[target]
column = "visit"
classes = ["0", "1"]
names = ["no visit", "a visit"]

[privacy]
epsilon = 2.0
delta = 1e-3
"""


def rows(households: int = 50, each: int = 8) -> list[str]:
    """Lines of the table, without its header."""
    draw = np.random.default_rng(0)
    lines = []
    for household in range(households):
        for person in range(each):
            age, sex = draw.integers(0, 101), ("female", "male")[draw.integers(2)]
            visit = int(age + 30 * (sex == "female") > draw.normal(65, 15))
            lines.append(f"h{household:02},h{household:02}-{person // 2},{age},{sex},{visit}")
    return lines


HEADER = "household,person,age,sex,visit"


def project(folder: Path, *, task: str = TASK, lines: list[str] | None = None) -> Path:
    """Write a task and its table; returns the task's file."""
    folder.mkdir(parents=True, exist_ok=True)
    table = [HEADER, *(rows() if lines is None else lines)]
    (folder / "visits.csv").write_text("\n".join(table) + "\n")
    (folder / "task.toml").write_text(task)
    return folder / "task.toml"
