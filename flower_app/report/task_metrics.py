"""A task of the user's in ``metrics.json``: what it sees and answers."""

from collections.abc import Mapping
from typing import Any

from flower_app.settings import Settings


def protected_unit(task: Mapping[str, Any] | None, *, has_silos: bool) -> str:
    """Whom ε is of: a ``client``, or in a silo a ``person`` or a ``record``.

    ``task`` is what :func:`task_metrics` returned.
    """
    if not has_silos:
        return "client"
    return "person" if task and task["unit"] == "person" else "record"


def task_metrics(settings: Settings) -> dict[str, Any] | None:
    """What a report says of a task; None where a data set is named."""
    task = settings.own_task
    if task is None:
        return None
    return {
        "name": task.name,
        "things": list(task.things),
        "inputs": [column.name for column in task.columns]
        or [f"pictures of {task.pictures.side} by {task.pictures.side}" if task.pictures else ""],
        "target": task.target or "the folder of a picture",
        "classes": list(task.class_names),
        "unit": task.unit,
        "digest": task.digest,
        "test": str(task.test.name) if task.test else None,
        "test_share": task.test_share or None,
    }
