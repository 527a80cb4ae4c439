"""The model of a task, with its inputs and classes."""

from collections.abc import Iterable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from flower_app.models.specs import ModelSpec
from flower_app.tasks.columns import Category, Column
from flower_app.tasks.task import Task
from privacy.imports import needing

if TYPE_CHECKING:
    from torch import nn


def task_spec(task: Task) -> ModelSpec:
    """The inputs and classes of a task's model; its parameters are counted elsewhere."""
    if task.pictures:
        return ModelSpec(
            task.model,
            "own",
            shape=task.pictures.shape,
            low=0.0,
            high=1.0,
            classes=len(task.classes),
            class_names=task.class_names,
        )
    ends = [column.range for column in task.columns for _ in column.features]
    return ModelSpec(
        task.model,
        "own",
        shape=(len(ends),),
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        classes=len(task.classes),
        class_names=task.class_names,
        feature_names=task.features,
        choices=tuple(_choices(task.columns)),
    )


def _choices(columns: Iterable[Column]) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Of each column with categories its name, the place of its first feature, the categories."""
    place = 0
    for column in columns:
        if isinstance(column, Category):
            yield column.name, place, column.values
        place += len(column.features)


def build_for(task: Task) -> "nn.Sequential":
    """The task's model with its first weights; raises as ``own_model``."""
    with needing("a model", extra="app"):
        from flower_app.models.own import own_model  # PyTorch

    spec = task_spec(task)
    return own_model(task.model, spec.shape, spec.low, spec.high, spec.classes, task.home)


@cache
def parameters_of(task: Task) -> int:
    """How many numbers the task's model has."""
    return sum(parameter.numel() for parameter in build_for(task).parameters())
