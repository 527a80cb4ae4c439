"""A silo's answers: what its owner allows, summed over its persons, under noise and a mask."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from logging import ERROR, WARNING
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message
from flwr.supercore import log

from privacy.accounting.errors import LedgerError
from privacy.secure_aggregation import Adversary, ClientPolicy, RoundTerms
from privacy.secure_aggregation.errors import MalformedMessageError, MalformedRequestError
from privacy.training import ClientLedger, DataPolicy, StepPayments
from privacy.training.errors import LocalBudgetError, PolicyError
from strategies.distributed_dpsgd.pacing import paced
from strategies.distributed_dpsgd.requests import (
    INVITED_FOR,
    GradientSum,
    SumRequest,
    TableSum,
    read_request,
)
from strategies.distributed_dpsgd.silo_sums import Integers, check_task, set_parameters, sum_of
from strategies.distributed_dpsgd.silo_task import SiloTask
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

_LEDGER, _AHEAD, _TRIED = "silo-ledger", "silo-steps-ahead", "silo-tried"
_NO_BUDGET = (
    "the owner of the data does not allow it: too little is left of max-epsilon at max-delta"
)
_NOT_ACCOUNTED = (
    "what is to be summed cannot be accounted: its noise, sampling rate or number of silos is far "
    "beyond what is of use"
)
_NO_LEDGER = "this silo cannot keep its ledger, and adds nothing"
_OWNER_FINDS_WHY = "this silo cannot take part; its owner finds why in its log"


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

    The policy and the ledger decide before a record is looked at. Before a run's first sum of a
    kind (gradients, right answers, statistics) the silo tries whether its records can be loaded,
    and whether model and loss take tensors of their shapes; if not, it declines, and pays nothing.
    After that an answer goes out whatever happens: where records cannot be used it is noise alone.
    Neither a number of records nor a loss nor a metric is sent.

    **Guarantee.** That of ``privacy.training.silo_sum`` and ``DataPolicy``: all that leaves this
    silo is (max_epsilon, max_delta)-private for each person, whatever the server asks for, if of
    the others no more than the policy says collude.

    **Assumptions.** The server follows the protocol. The data set's ledger and the memory are kept,
    and not rolled back.

    **Not covered.** How long an answer takes, unless the policy's ``answer_seconds`` hides it. That
    a silo declines because it cannot load its records.

    Parameters
    ----------
    message, context
        As Flower gives them.
    task : callable
        Gives the ``SiloTask``; called for messages that need it, one in five after a run's first.
        What it imports the others do without: Flower starts a process for each.
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
            return decline(message, _OWNER_FINDS_WHY)
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
        task = self._task(request, schema)
        return partial(self._summed, request, task, schema)

    def _task(self, request: SumRequest, schema: ModelSchema) -> SiloTask:
        """The silo's program with the model that was sent; declined if it cannot begin.

        Whether it can is tried before a run's first sum of a kind.
        """
        state = self.context.state
        tried = dict(state.config_records.get(_TRIED, ConfigRecord()))
        try:
            task = self.task()
            if not isinstance(request, TableSum):
                set_parameters(task.model, schema)
            if request.kind not in tried:
                with paced(self.policy.answer_seconds):
                    check_task(request, task)
        except DeclinedError:
            raise
        except Exception as error:
            log(ERROR, "This silo's model or data cannot be used: it declines.", exc_info=error)
            raise DeclinedError(_OWNER_FINDS_WHY) from error
        state[_TRIED] = ConfigRecord({**tried, request.kind: True})
        return task

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
        return sum_of(request, task, schema)
