"""A silo's answers: what its owner allows, summed over its persons, under noise and a mask."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import ERROR, WARNING
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from privacy.accounting.errors import LedgerError
from privacy.imports import needing
from privacy.mechanisms import SystemRandomness
from privacy.secure_aggregation import Adversary, ClientPolicy, RoundTerms
from privacy.secure_aggregation.errors import MalformedMessageError, MalformedRequestError
from privacy.statistics import silo_statistics
from privacy.training import ClientLedger, DataPolicy, StepPayments
from privacy.training.errors import LocalBudgetError, PolicyError
from strategies.distributed_dpsgd.accuracy import person_vectors
from strategies.distributed_dpsgd.pacing import paced
from strategies.distributed_dpsgd.requests import (
    INVITED_FOR,
    GradientSum,
    SumRequest,
    TableSum,
    read_request,
    reordered,
)
from strategies.errors import DeclinedError
from strategies.model_schema import ModelSchema
from strategies.replies import decline
from strategies.secure_aggregation.client_memory import (
    ClientMemory,
    ContextMemory,
    FolderMemory,
)
from strategies.secure_aggregation.messages import KEY
from strategies.secure_aggregation.protocol_client import ProtocolClient

if TYPE_CHECKING:  # they bring PyTorch, which a server over other models does without
    from torch import Tensor, nn

    from privacy.training import Persons

_LEDGER, _AHEAD = "silo-ledger", "silo-steps-ahead"
_NO_BUDGET = (
    "the owner of the data does not allow it: too little is left of max-epsilon at max-delta"
)
_NOT_ACCOUNTED = (
    "what is to be summed cannot be accounted: its noise, sampling rate or number of silos is far "
    "beyond what is of use"
)
_NO_LEDGER = "this silo cannot keep its ledger, and adds nothing"
_NOISE_ALONE = "This silo's data cannot be used, and it adds noise alone."
_OWNER_FINDS_WHY = "this silo cannot take part; its owner finds why in its log"
Integers = npt.NDArray[np.int64]
Right = Callable[["Tensor", "Tensor"], "Tensor"]


@dataclass(frozen=True, kw_only=True)
class SiloTable:
    """A silo's table, for statistics.

    Parameters
    ----------
    features : array, shape (rows, columns)
        Numbers, in the order of the query's bounds.
    labels : array, shape (rows,), optional
        Classes from 0 on.
    person_ids : sequence, optional
        Whose each row is. Default: every row is another person's.
    """

    features: Any
    labels: Any = None
    person_ids: Any = None


@dataclass(frozen=True, kw_only=True)
class SiloTask:
    """What a silo trains, and on whom.

    Parameters
    ----------
    model : nn.Module
        Its trained parameters are set to those that the server sends, by name.
    loss : callable
        As ``privacy.training.train`` takes it.
    persons : callable
        Gives the silo's ``Persons``; called for a step only. If it fails the silo sends noise
        alone, and its own log says why: so that it fails must not depend on one person's record.
    test_persons : callable, optional
        Gives the persons, with test rows, on whom the model is evaluated. Default: none, and the
        silo's part of an evaluation is noise alone.
    right : callable, optional
        ``right(outputs, targets)``: which of the rows are answered rightly, shape (rows,). Default:
        the largest output is the target's class; of a single output, its sign.
    table : callable, optional
        Gives the silo's ``SiloTable``, where statistics are asked for. Default: none, and its part
        is noise alone.
    """

    model: "nn.Module"
    loss: Any
    persons: Callable[[], "Persons"]
    test_persons: Callable[[], "Persons"] | None = None
    right: Right | None = None
    table: Callable[[], SiloTable] | None = None


def answer_silo(
    message: Message,
    context: Context,
    *,
    task: Callable[[], SiloTask],
    policy: DataPolicy | str | os.PathLike[str],
    memory: ClientMemory | None = None,
) -> Message:
    """Answer a message of a :class:`DistributedDPSGD`, as the train function of a ClientApp.

    ::

        @app.train()
        def take_part(message: Message, context: Context) -> Message:
            policy = str(context.node_config["policy"])
            return answer_silo(message, context, task=describe_task, policy=policy)

    The policy and the ledger decide before a record is looked at. After that an answer goes out
    whatever the records are: of a silo without usable records it is noise alone. Neither a number
    of records nor a loss nor a metric is sent.

    **Guarantee.** That of ``privacy.training.silo_sum`` and ``DataPolicy``: all that leaves this
    silo is (max_epsilon, max_delta)-private for each person, whatever the server asks for, if of
    the others no more than the policy says collude.

    **Assumptions.** The server follows the protocol. The data set's ledger and the memory are kept,
    and not rolled back.

    **Not covered.** How long an answer takes, unless the policy's ``answer_seconds`` hides it.

    Parameters
    ----------
    message, context
        As Flower gives them.
    task : callable
        Gives the ``SiloTask``; called for messages that need it, one in five. What it imports the
        others do without: Flower starts a process for each.
    policy : DataPolicy or path-like
        What the data's owner allows, or the file that says it.
    memory : ClientMemory, optional
        Where the silo keeps its state between a step's messages. Default: a folder beside the
        policy's ledger, or without one, as in a simulation, the context.

    Returns
    -------
    Message
        A message of the protocol, or an error whose words tell nothing of the data.
    """
    if not isinstance(policy, DataPolicy):
        try:
            policy = DataPolicy.load(policy)
        except (PolicyError, TypeError, ValueError) as error:
            log(ERROR, "This silo takes no part: %s", error)
            return Message(
                Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, _OWNER_FINDS_WHY), reply_to=message
            )
    silo = _Silo(policy, context, task)
    client = ProtocolClient(
        silo.client_policy, identity=None, memory=_memory(policy) if memory is None else memory
    )
    silo.warn_without_file()
    try:
        silo.check_invitation(message)
    except DeclinedError as declined:
        log(WARNING, "Declined a request of the server: %s", declined)
        return decline(message, str(declined))
    return client.reply(message, context, silo.accepted)


def _memory(policy: DataPolicy) -> ClientMemory:
    if policy.ledger is None:
        return ContextMemory()
    ledger = Path(policy.ledger)
    return FolderMemory(ledger.with_name(f"{ledger.name}.steps"))


@dataclass(frozen=True)
class _Silo:
    """One silo: what its owner allows, and what it would do."""

    policy: DataPolicy
    context: Context
    task: Callable[[], SiloTask]

    @property
    def client_policy(self) -> ClientPolicy:
        """What the silo insists on in the protocol.

        The share of corrupt clients is the least that is ``colluders`` of ``min_silos``.
        """
        share = (self.policy.colluders - 0.5) / self.policy.min_silos
        return ClientPolicy(self.policy.min_silos, Adversary(max_corrupt_fraction=share))

    def warn_without_file(self) -> None:
        """Say in a deployed node's log that its ledger ends with the run."""
        simulated = "num-partitions" in self.context.node_config
        if self.policy.ledger is None and not simulated and _LEDGER not in self.context.state:
            log(
                WARNING,
                "The policy of data set %s names no ledger's file: what this run spends is "
                "forgotten when it ends, and the next one has the whole budget again. Give "
                "DataPolicy(ledger=...), unless this is a simulation.",
                self.policy.dataset,
            )

    def check_invitation(self, message: Message) -> None:
        """Decline a sum that the owner does not allow, before anybody counts on this silo."""
        if not (message.has_content() and KEY in message.content):
            return
        record = message.content[KEY]
        if not isinstance(record, ConfigRecord) or INVITED_FOR not in record:
            return
        try:
            request, parameters = read_request(record), record[INVITED_FOR]
            if type(parameters) is not int or parameters < 1:
                raise MalformedMessageError("the number of parameters is not one")
        except MalformedMessageError as error:
            raise DeclinedError("what is to be summed cannot be read") from error
        self._check(request, parameters)

    def accepted(
        self, record: ConfigRecord, terms: RoundTerms, schema: ModelSchema
    ) -> Callable[[], Integers]:
        """Check what is to be summed; what makes the sum."""
        try:
            request = read_request(record)
        except MalformedMessageError as error:
            raise MalformedRequestError(str(error)) from error
        self._check(request, schema.size)
        request.check(terms, schema.size)
        task = self.task()
        if not isinstance(request, TableSum):
            _set_parameters(task.model, schema)
        return partial(self._summed, request, task, schema)

    def _check(self, request: SumRequest, parameters: int) -> None:
        """Hold the request to the owner's policy and to what is left of the budget."""
        steps = isinstance(request, GradientSum)
        try:
            self.policy.check_step(
                unit="person" if request.unit == "person" else "row",
                clipping_norm=request.clipping_norm if steps else None,
                sampling_rate=request.sampling_rate if steps else None,
                min_silos=request.mechanism.min_silos,
                colluders=request.mechanism.colluders,
            )
        except PolicyError as error:
            raise DeclinedError(str(error)) from error
        try:
            event = request.event(parameters)
            with self._payments() as payments:
                payments.check(event)
        except (ValueError, ArithmeticError) as error:
            log(WARNING, "A sum cannot be accounted: %s", error)
            raise DeclinedError(_NOT_ACCOUNTED) from error

    @contextmanager
    def _payments(self) -> Iterator[StepPayments]:
        """Of the data set; declined, without a number, where it has no room or is broken.

        Without a file they are in the context, as a simulation keeps them.
        """
        state, file = self.context.state, self.policy.ledger
        try:
            if file is not None:
                ahead = Path(file).with_name(f"{Path(file).name}.ahead")
                yield StepPayments(self.policy.open_ledger(), path=ahead)
                return
            records = state.config_records
            ledger = self.policy.open_ledger()
            if _LEDGER in state:
                ledger = ClientLedger.from_record(records[_LEDGER], budget=self.policy.budget)
                if (ledger.dataset, ledger.unit) != (self.policy.dataset, self.policy.unit):
                    raise LedgerError(
                        f"the node's state has the ledger of each {ledger.unit} of "
                        f"{ledger.dataset!r}, another than the policy's; begin a run anew"
                    )
            payments = StepPayments(ledger, record=records.get(_AHEAD))
            try:
                yield payments
            finally:
                state[_LEDGER] = ConfigRecord(ledger.as_record())
                state[_AHEAD] = ConfigRecord({**payments.as_record()})
        except LocalBudgetError as error:
            raise DeclinedError(_NO_BUDGET) from error
        except LedgerError as error:
            log(ERROR, "This silo takes no part: %s", error)
            raise DeclinedError(_NO_LEDGER) from error

    def _summed(self, request: SumRequest, task: SiloTask, schema: ModelSchema) -> Integers:
        """Pay, and sum; from here on the answer looks the same whatever the records are."""
        with paced(self.policy.answer_seconds):
            return self._sum_of(request, task, schema)

    def _sum_of(self, request: SumRequest, task: SiloTask, schema: ModelSchema) -> Integers:
        with self._payments() as payments:
            planned = request.planned if isinstance(request, GradientSum) else 1
            payments.take(request.event(schema.size), planned=planned)
        if isinstance(request, GradientSum):
            return _gradients(request, task, schema)
        if isinstance(request, TableSum):
            return _statistics(request, task)
        return _right_answers(request, task)


def _set_parameters(model: "nn.Module", schema: ModelSchema) -> None:
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
    )
    persons = _loaded(task.persons, request)
    vector = silo_sum(task.model, persons, loss=task.loss, step=step, ledger=None)
    sizes = [(name, p.numel()) for name, p in trained_parameters(task.model).items()]
    return reordered(vector, sizes, schema.names)


def _statistics(request: TableSum, task: SiloTask) -> Integers:
    query, nothing = request.query, np.empty((0, request.query.columns))

    def of(table: SiloTable) -> Integers:
        return silo_statistics(
            query,
            table.features,
            table.labels if query.classes else None,
            table.person_ids if request.unit == "person" else None,
            mechanism=request.mechanism,
            noise_multiplier=request.noise_multiplier,
            ledger=None,
        )

    try:
        if task.table is not None:
            return of(task.table())
    except Exception as error:
        log(ERROR, _NOISE_ALONE, exc_info=error)
    return of(SiloTable(features=nothing, labels=np.empty(0)))


def _right_answers(request: SumRequest, task: SiloTask) -> Integers:
    total = request.mechanism.open_sum(request.entries(0), clipping_norm=request.clipping_norm)
    if task.test_persons is not None:
        persons = _loaded(task.test_persons, request)
        total.add(_answers(task.model, persons, task.right or _largest_is_right))
    integers = total.integers()
    request.mechanism.add_share(
        integers, noise_multiplier=request.noise_multiplier, randomness=SystemRandomness()
    )
    return integers


def _loaded(load: Callable[[], "Persons"], request: SumRequest) -> "Persons":
    """Those whom the request protects; nobody, and an error in the log, if loading fails.

    Where it protects rows each is by itself: of a person's mean another row may turn the direction,
    which moves it by up to 2 S.
    """
    from privacy.training import Persons

    try:
        persons = load()
        if not isinstance(persons, Persons):
            raise TypeError(f"persons gives {type(persons).__name__}; give Persons(data, ids)")
        return persons if request.unit == "person" else persons.by_row()
    except Exception as error:
        log(ERROR, _NOISE_ALONE, exc_info=error)
        return Persons.empty()


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
