"""A model as a file: a plan and packed weights, for whoever evaluates.

safetensors with a digest (:mod:`privacy.array_files`). Its text is JSON: the plan, and an outline
of the program whose weights are the arrays.
"""

import json
import os
from pathlib import Path

import psutil

from privacy.array_files import ArrayFile
from privacy.inference.arithmetic.program import Program
from privacy.inference.errors import ModelFileError
from privacy.inference.plan import Plan
from privacy.inference.plan_check import FAULTS_OF_A_PLAN
from privacy.inference.stored import read_program, written_program
from privacy.json_text import read_json

_FORMATS = "bloomseal-model-"
_FORMAT = f"{_FORMATS}1"
_MOST_BYTES = 1 << 34
_LONGEST_TEXT = 1 << 24
"""Characters of plan and outline."""


def write_model(path: str | os.PathLike[str], plan: Plan, program: Program) -> None:
    """Write a file that its owner alone may read, whole or not at all; or raise ``OSError``."""
    outline, arrays = written_program(program)
    text = json.dumps({"plan": plan.to_json(), "program": outline})
    ArrayFile(_FORMAT, text, arrays).save(Path(path))


def read_model(path: str | os.PathLike[str]) -> tuple[Plan, Program]:
    """Read a file that a stranger may have made.

    Raises
    ------
    ModelFileError
        If it is missing, damaged, altered, of another version, larger than any or than the free
        memory, or if its weights do not fit its plan.
    """
    place = Path(path)
    _check_size(place)
    try:
        file = ArrayFile.load(place)
    except ValueError as error:
        raise ModelFileError(
            f"{place} cannot be read ({error}); give a file that CompiledModel.save wrote"
        ) from error
    if file.format != _FORMAT:
        if file.format.startswith(_FORMATS):
            raise ModelFileError(
                f"{place} was written by another version of bloomseal ({file.format}, this one "
                f"reads {_FORMAT}); compile the model again and save it"
            )
        raise ModelFileError(f"{place} is no model; give a file that CompiledModel.save wrote")
    if not file.is_whole:
        raise ModelFileError(f"{place} was damaged or altered after it was written; copy it again")
    try:
        if len(file.text) > _LONGEST_TEXT:
            raise ValueError(f"its text has {len(file.text):,} characters, more than any needs")
        content = read_json(file.text)
        plan = Plan.from_json(content["plan"])
        return plan, read_program(plan, content["program"], file.arrays)
    except FAULTS_OF_A_PLAN as error:
        raise ModelFileError(f"{place} holds no model that can be evaluated: {error}") from error


def _check_size(place: Path) -> None:
    try:
        size = place.stat().st_size
    except OSError as error:
        raise ModelFileError(f"{place} cannot be read: {error.strerror}") from error
    if size > _MOST_BYTES:
        raise ModelFileError(f"{place} has {size:,} bytes, more than any model here")
    free = psutil.virtual_memory().available
    if size > free:
        raise ModelFileError(
            f"{place} has {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB of memory are free; read "
            "it on a machine with more"
        )
