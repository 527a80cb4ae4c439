"""What a silo adds up: gradients, right answers or a table's numbers, with its share of the noise.

Before a run's first sum of a kind whatever keeps the silo from it is an error, for it can decline
then. Later an answer goes out, of noise alone if it must: in mid-run nobody learns that it failed.
"""

from collections.abc import Callable
from logging import ERROR
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from flwr.supercore import log

from privacy.imports import needing
from privacy.mechanisms import SystemRandomness
from privacy.statistics import silo_statistics
from strategies.distributed_dpsgd.accuracy import person_vectors
from strategies.distributed_dpsgd.requests import GradientSum, SumRequest, TableSum, reordered
from strategies.distributed_dpsgd.silo_task import Right, SiloTable, SiloTask
from strategies.errors import DeclinedError
from strategies.model_schema import ModelSchema

if TYPE_CHECKING:
    from torch import Tensor, nn

    from privacy.training import Persons

Integers = npt.NDArray[np.int64]


def check_task(request: SumRequest, task: SiloTask) -> None:
    """Load what the sum is of, and raise what keeps the silo from it; nothing is released.

    What a single record is like is no reason: such a record adds nothing to the sum.
    """
    if isinstance(request, TableSum):
        if task.table is not None:
            _statistics(request, task.table())
    elif isinstance(request, GradientSum):
        from privacy.training import check_silo_sum  # brings PyTorch, which tables do without

        persons = _loaded(task.persons, request)
        check_silo_sum(task.model, persons, loss=task.loss)
        if len(persons) > request.persons:
            log(
                ERROR,
                "This silo alone has %d %ss, and persons = %d is to be the number over all silos: "
                "steps are longer than was meant. Tell whoever runs it.",
                len(persons),
                request.unit,
                request.persons,
            )
    elif task.test_persons is not None:
        _loaded(task.test_persons, request)


def sum_of(request: SumRequest, task: SiloTask, schema: ModelSchema) -> Integers:
    """The sum, or noise alone and an error in this silo's log if it fails."""
    try:
        if isinstance(request, GradientSum):
            return _gradients(request, task, schema)
        if isinstance(request, TableSum):
            nothing = np.empty((0, request.query.columns))
            table = SiloTable(features=nothing, labels=np.empty(0))
            return _statistics(request, table if task.table is None else task.table())
        return _right_answers(request, task)
    except Exception as error:
        log(ERROR, "This silo's data cannot be used, and it adds noise alone.", exc_info=error)
        integers = np.zeros(request.entries(schema.size), np.int64)
        request.mechanism.add_share(
            integers, noise_multiplier=request.noise_multiplier, randomness=SystemRandomness()
        )
        return integers


def set_parameters(model: "nn.Module", schema: ModelSchema) -> None:
    """Set the trained parameters to those that were sent; declined if they are others."""
    with needing("a silo's step", extra="training"):
        import torch

    from privacy.training import trained_parameters

    parameters = trained_parameters(model)
    sent = {name: tuple(a.shape) for name, a in zip(schema.names, schema.arrays, strict=True)}
    own = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
    if sent != own:
        names = sorted(n for n in sent.keys() | own if sent.get(n) != own.get(n))
        raise DeclinedError(
            f"the model that was sent is not the silo's: {', '.join(names)} differ; send the "
            "arrays of trained_parameters(model)"
        )
    with torch.no_grad():
        for name, array in zip(schema.names, schema.arrays, strict=True):
            parameters[name].copy_(torch.from_numpy(array.copy()))


def _gradients(request: GradientSum, task: SiloTask, schema: ModelSchema) -> Integers:
    from privacy.training import SiloStep, silo_sum, trained_parameters

    step = SiloStep(
        mechanism=request.mechanism,
        clipping_norm=request.clipping_norm,
        noise_multiplier=request.noise_multiplier,
        sampling_rate=request.sampling_rate,
        persons=request.room,
    )
    persons = _loaded(task.persons, request)
    vector = silo_sum(task.model, persons, loss=task.loss, step=step, ledger=None)
    sizes = [(name, p.numel()) for name, p in trained_parameters(task.model).items()]
    return reordered(vector, sizes, schema.names)


def _statistics(request: TableSum, table: SiloTable) -> Integers:
    return silo_statistics(
        request.query,
        table.features,
        table.labels if request.query.classes else None,
        table.person_ids if request.unit == "person" else None,
        mechanism=request.mechanism,
        noise_multiplier=request.noise_multiplier,
        ledger=None,
        persons=request.room,
    )


def _right_answers(request: SumRequest, task: SiloTask) -> Integers:
    total = request.mechanism.open_sum(
        request.entries(0), clipping_norm=request.clipping_norm, persons=request.room
    )
    if task.test_persons is not None:
        persons = _loaded(task.test_persons, request)
        total.add(_answers(task.model, persons, task.right or _largest_is_right))
    integers = total.integers()
    request.mechanism.add_share(
        integers, noise_multiplier=request.noise_multiplier, randomness=SystemRandomness()
    )
    return integers


def _loaded(load: Callable[[], "Persons"], request: SumRequest) -> "Persons":
    """Those whom the request protects.

    Where it protects rows each is by itself: of a person's mean another row may turn the direction,
    which moves it by up to 2 S.
    """
    from privacy.training import Persons

    persons = load()
    if not isinstance(persons, Persons):
        raise TypeError(f"persons gives {type(persons).__name__}; give Persons(data, ids)")
    return persons if request.unit == "person" else persons.by_row()


def _answers(model: "nn.Module", persons: "Persons", right: Right) -> npt.NDArray[np.float64]:
    """Each person's part of the accuracy; a row that fails is answered wrongly.

    Row by row: what the model answers to one row must not depend on the others, not even in its
    last bit. Layers that draw are seeded afresh for each, so that no row moves another's draws.
    """
    with needing("a silo's evaluation", extra="training"):
        import torch

    from privacy.training.model_checks.model_state import preserved_randomness
    from privacy.training.records import on_device_of

    records, owners = on_device_of(model, persons.records), persons.person_of_row
    answered = np.zeros(persons.rows, dtype=bool)
    somebodys = np.flatnonzero(owners >= 0)
    failure: Exception | None = None
    seed = int.from_bytes(SystemRandomness().bytes(4), "little")
    model.eval()
    with torch.no_grad(), preserved_randomness(model) as generators:
        for row in somebodys.tolist():
            generators.seed(seed)
            try:
                *inputs, targets = records.take(torch.tensor([row]))
                answered[row] = bool(right(model(*inputs), targets).reshape(()))
            except Exception as error:
                failure = error
    if failure is not None:
        log(ERROR, "Some test rows count as answered wrongly.", exc_info=failure)
    return person_vectors(answered[somebodys], owners[somebodys], len(persons))


def _largest_is_right(outputs: "Tensor", targets: "Tensor") -> "Tensor":
    """Whether the largest output is the target's; of a single output, whether its sign is."""
    rows = len(targets)
    outputs, targets = outputs.reshape(rows, -1), targets.reshape(rows)
    guessed = outputs.argmax(dim=1) if outputs.shape[1] > 1 else outputs[:, 0] > 0
    return guessed == targets.to(guessed.dtype)
