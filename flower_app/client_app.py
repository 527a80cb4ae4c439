"""The client's side of a run: train on its own data, reply with the update and its weight.

Failures show nothing of the data. A run is declined (``DeclinedError``) for its settings, and for
what the node's own ledger has left, before the data is touched; under secure aggregation at the
invitation, before the round counts on the node. Later, data that cannot be used counts as none, and
the reply looks like any other.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from logging import ERROR, WARNING

from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from flower_app.data import ClientData
from flower_app.errors import DeclinedError, SettingError
from flower_app.settings import Settings
from flower_app.training.node_policy import (
    UNDONE,
    NodePolicy,
    check_keys,
    is_deployed,
    own_folder,
    record_protection,
    run_settings,
    simulated_place,
)
from flower_app.training.secure_aggregation import secagg_mod
from flower_app.training.silo_node import answer as answer_as_silo
from flower_app.training.silo_node import check_mode
from flower_app.training.work import (
    check_same_task,
    client_share,
    own_examples,
    without_examples,
)
from privacy.accounting.errors import LedgerError
from privacy.imports import needing
from privacy.training import ClientLedger, ClipAndNoise, ClipOnly, FullBatch, check_payment, pay
from privacy.training.errors import LocalBudgetError
from strategies import decline
from strategies.secure_aggregation import is_invitation


def send_declines(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Make a decline the reply.

    It is also the app's inner mod, for secure aggregation adds zero where the app raises.
    """
    try:
        return call_next(message, context)
    except DeclinedError as declined:
        log(WARNING, "Declined: %s", declined.for_owner)
        return decline(message, str(declined))
    except LocalBudgetError as spent:  # its message carries no number
        log(WARNING, "Declined: %s", spent)
        return decline(message, str(spent))


def keep_reasons(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The app's outer mod: errors of a node with an owner stay in the node's own log."""
    try:
        return send_declines(message, context, call_next)
    except Exception as error:
        if not is_deployed(context):
            raise
        log(ERROR, "This node could not do its part.", exc_info=error)
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, UNDONE), reply_to=message)


def obey_owner(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """The app's second mod: decline what the owner does not allow, or has no budget left for.

    It depends on settings and the node's ledger only, and comes before secure aggregation: who adds
    zero in a round lets a run go on that may teach nothing, and nobody hears of it.
    """
    try:
        check_keys(context.node_config)
    except SettingError as error:
        raise DeclinedError(UNDONE, str(error)) from error
    settings = run_settings(context)
    if settings.deployed:
        try:
            check_mode(context.node_config, settings)
        except SettingError as error:
            raise DeclinedError(UNDONE, str(error)) from error
    trains = message.metadata.message_type.partition(".")[0] == "train"
    if settings.has_silos:
        if not trains:
            raise DeclinedError("a silo takes part in steps alone")
    elif trains:
        if settings.deployed:
            NodePolicy.of(context.node_config).check(_protection(settings), settings)
        check_same_task(message, settings)
        if is_invitation(message):
            _check_ledger(settings, context)
    return call_next(message, context)


app = ClientApp(mods=[keep_reasons, obey_owner, secagg_mod, send_declines])

_LEDGER = "privacy-ledger"
_NO_LEDGER = "this node cannot keep its own ledger, and trains nothing"
_OTHER_MODEL = "this node's model is not the run's, or fails; its owner finds why in its log"


@app.train()
def train_on_own_data(message: Message, context: Context) -> Message:
    """Take the round's local steps from the model that was sent, and reply with the result.

    Its ledger is charged before a record is read. From then on it replies whatever the records
    are: whether there is a reply must not depend on them, since nothing accounts for that.
    In a run over silos it answers as one of them instead.
    """
    settings = run_settings(context)
    if settings.has_silos:
        return answer_as_silo(message, context, settings)
    # PyTorch, which takes seconds: a deployed node starts a process for every message.
    with _declining_another_model(), needing("the app", extra="app"):
        from flower_app.training.local_steps import model_with, reply_with
    (arrays,) = message.content.array_records.values()
    with _declining_another_model():
        model_with(settings, arrays)  # before anything is paid
    protection = _protection(settings)
    ledger = _own_ledger(settings, context)
    data = cache(partial(_usable_data, settings, context))
    try:
        payment = pay(
            protection,
            _batches(settings),
            ledger=ledger,
            records=lambda: len(data()),
        )
    except LedgerError as error:
        raise DeclinedError(_NO_LEDGER, str(error)) from error
    records = data()
    try:
        reply = reply_with(settings, arrays, records, payment)
    except Exception as error:
        log(ERROR, "This node's data adds nothing to the round.", exc_info=error)
        reply = reply_with(settings, arrays, without_examples(settings), payment)
    if ledger is not None and not settings.deployed:
        context.state[_LEDGER] = ConfigRecord(ledger.as_record())
    return Message(reply, reply_to=message)


@app.query("encrypted_round")
def handle_encrypted_query(message: Message, context: Context) -> Message:
    """Take part in the encrypted test-time round."""
    # Loaded where it is asked for: a deployed node starts a process for every message.
    from flower_app.encrypted import node as encrypted_node
    from strategies.encrypted_round.errors import RoundError

    try:
        return encrypted_node.answer_query(message, context, run_settings(context))
    except RoundError as error:
        raise DeclinedError(str(error)) from error


def _usable_data(settings: Settings, context: Context) -> ClientData:
    """The client's data; none, and an error in a deployed node's log, if it cannot be used."""
    try:
        return own_data(settings, context)
    except Exception as error:
        if not settings.deployed:
            raise
        log(
            ERROR,
            "This node's data cannot be used, and adds nothing until it is mended: %s. "
            "`python -m flower_app check-data` shows more",
            error,
        )
        return without_examples(settings)


def own_data(settings: Settings, context: Context) -> ClientData:
    """The client's data: its share in a simulation, its own folder when deployed.

    Raises
    ------
    DataError
        If a deployed node's folder cannot be used.
    """
    if settings.deployed:
        place = own_folder(context.node_config, "data-dir", "this node's data")
        return own_examples(settings, place)
    return client_share(settings, *simulated_place(context))


def _protection(settings: Settings) -> ClipOnly | ClipAndNoise:
    """The run's protection of records; ``DeclinedError`` if no noise achieves it."""
    try:
        return record_protection(settings)
    except SettingError as error:
        raise DeclinedError(str(error)) from error


def _batches(settings: Settings) -> FullBatch:
    return FullBatch(steps=settings.local_steps)


def _check_ledger(settings: Settings, context: Context) -> None:
    """Decline a round for which the node's ledger has no room, or that it cannot record.

    Raises
    ------
    DeclinedError, LocalBudgetError
        As training would.
    """
    try:
        check_payment(
            _protection(settings), _batches(settings), ledger=_own_ledger(settings, context)
        )
    except LedgerError as error:
        raise DeclinedError(_NO_LEDGER, str(error)) from error


@contextmanager
def _declining_another_model() -> Iterator[None]:
    """A block that fails where the node's program or model is not the run's: nothing of its data.

    Raises
    ------
    DeclinedError
    """
    try:
        yield
    except SettingError as error:  # the run's device
        raise DeclinedError(str(error)) from error
    except Exception as error:
        raise DeclinedError(_OTHER_MODEL, f"{type(error).__name__}: {error}") from error


def _own_ledger(settings: Settings, context: Context) -> ClientLedger | None:
    """The client's ledger: in ``state-dir`` of a deployed node, in a simulation in its state.

    A simulated client records steps without noise only where it has a ledger already.

    Raises
    ------
    DeclinedError
        If the node's ledger cannot be read.
    """
    if settings.deployed:
        try:
            return NodePolicy.of(context.node_config).ledger(settings)
        except LedgerError as error:
            raise DeclinedError(_NO_LEDGER, str(error)) from error
    budget = settings.record_budget
    if _LEDGER in context.state:
        return ClientLedger.from_record(dict(context.state.config_records[_LEDGER]), budget=budget)
    name = f"{settings.dataset}, partition {context.node_config['partition-id']}"
    return ClientLedger(dataset=name, budget=budget) if budget else None
