"""A task of the user's in ``metrics.json``: what it sees and answers."""

from typing import Any

from flower_app.settings import Settings


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
