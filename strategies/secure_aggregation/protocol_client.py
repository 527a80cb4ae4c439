"""A client's answers to the protocol of secure aggregation, whatever it masks."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import ERROR, WARNING

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from privacy import arguments
from privacy.secure_aggregation import (
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureClient,
    ServerModel,
)
from privacy.secure_aggregation.errors import (
    DifferentRequestsError,
    MalformedMessageError,
    MalformedRequestError,
    RefusedError,
    UnprotectedRequestError,
    UnreadableStateError,
)
from privacy.untrusted_text import error_quoted, one_line
from strategies.errors import DeclinedError
from strategies.model_schema import ModelSchema
from strategies.replies import decline
from strategies.secure_aggregation.client_memory import ClientMemory, ContextMemory
from strategies.secure_aggregation.messages import (
    KEY,
    LEFT,
    UNREADABLE,
    configuration_digest,
    content_of,
    model_digest,
    protocol_bytes,
    request_digest,
)

MakeVector = Callable[[], npt.NDArray[np.int64]]
Task = Callable[[ConfigRecord, RoundTerms, ModelSchema], MakeVector]
"""Checks what a request asks for, and returns what makes the vector.

It is given the protocol's record, the terms of the round and the model. It raises a
``RefusedError`` or a ``DeclinedError`` before anything is made; what makes the vector runs once.
"""


class ProtocolClient:
    """One client of secure aggregation over Flower's messages.

    Parameters
    ----------
    policy, identity, memory
        As ``SecureAggregationMod`` takes them.
    """

    def __init__(
        self, policy: ClientPolicy, *, identity: Identity | None, memory: ClientMemory | None
    ) -> None:
        arguments.of_kind("policy", policy, (ClientPolicy,), "ClientPolicy(min_clients=...)")
        one_key = "Identity(private), or leave it out"
        arguments.of_kind("identity", identity, (Identity, type(None)), one_key)
        if memory is not None:
            kept_in = "FolderMemory(folder), ContextMemory() or one of your own"
            arguments.has("memory", memory, ("locked",), kept_in)
        if memory is None and policy.adversary.server is ServerModel.MALICIOUS:
            raise ValueError(
                "memory is not set; against a malicious server give FolderMemory(folder), or in "
                "a simulation ContextMemory()"
            )
        self.policy = policy
        self._identity = identity
        self._memory: ClientMemory = ContextMemory() if memory is None else memory

    def reply(self, message: Message, context: Context, task: Task) -> Message:
        """The reply to a message of the protocol; to any other, a refusal.

        A request for the vector is checked by ``task``, whose vector is made once.
        """
        category = message.metadata.message_type.partition(".")[0]
        try:
            if category != "train" or not (message.has_content() and KEY in message.content):
                raise UnprotectedRequestError(
                    f"the server asks to {category} outside secure aggregation; this client "
                    "sends nothing in the clear"
                )
            answer = self._answer(message, context, task)
        except RefusedError as refusal:
            reason = one_line(f"{type(refusal).__name__}: {refusal}")
            log(WARNING, "Refused a request of the server: %s", reason)
            return _error(message, reason)
        except DeclinedError as declined:
            log(WARNING, "Declined a request of the server: %s", declined)
            return decline(message, str(declined))
        except UnreadableStateError as error:
            log(ERROR, "%s", error)
            return _error(message, UNREADABLE)
        except Exception as error:
            # What went wrong may tell of the client's data: it stays here.
            log(ERROR, "This client leaves the round.", exc_info=error)
            return _error(message, LEFT)
        return Message(content_of(answer), reply_to=message)

    def _answer(self, message: Message, context: Context, task: Task) -> bytes:
        try:
            request = protocol_bytes(message.content[KEY])
        except MalformedMessageError as error:
            raise MalformedRequestError(str(error)) from error
        with self._client(context) as client:
            if not client.needs_vector(request):
                return client.answer(request)
            make_vector = _checked(client, request, message, task)
        # The stage is left for good, and kept, before the vector is made: it is made once a round.
        # Not under the lock, for it may take long.
        with _state_restored(context):
            vector = make_vector()
        with self._client(context) as client:
            return client.masked(request, vector)

    @contextmanager
    def _client(self, context: Context) -> Iterator[SecureClient]:
        """The client as it was left; kept again, refusals included, before an answer is sent."""
        with self._memory.locked(context) as remembered:
            if (remembered.identity is None) != (remembered.state is None):
                raise UnreadableStateError("of what this client remembers a part is missing")
            identity = self._identity
            if identity is None:
                stored = remembered.identity
                identity = Identity.draw() if stored is None else Identity(stored)
            configuration = configuration_digest(context)
            if remembered.state is not None:
                client = SecureClient.from_bytes(
                    remembered.state, self.policy, identity=identity, configuration=configuration
                )
            else:
                client = SecureClient(self.policy, identity=identity, configuration=configuration)
            try:
                yield client
            finally:
                remembered.identity = identity.private
                remembered.state = client.to_bytes()


def _checked(client: SecureClient, request: bytes, message: Message, task: Task) -> MakeVector:
    """Check all of the message that asks for the vector; if it is refused, leave the round."""
    try:
        if (digest := request_digest(message)) != client.terms_of(request).request:
            raise DifferentRequestsError("what came to be trained on is not what was announced")
        models = list(message.content.array_records.values())
        if len(models) != 1:
            raise MalformedRequestError(f"{len(models)} models came to be trained, not one")
        schema = ModelSchema(models[0])
        terms = client.terms_of(request)
        make_vector = task(message.content.config_records[KEY], terms, schema)
        client.prepare(request, request=digest, model=model_digest(schema.arrays))
    except (RefusedError, DeclinedError):
        client.leave(request)
        raise
    except Exception as error:
        client.leave(request)
        raise MalformedRequestError(
            f"the request to train cannot be read: {error_quoted(error)}"
        ) from error
    return make_vector


@contextmanager
def _state_restored(context: Context) -> Iterator[None]:
    """Keep ``ContextMemory``'s record where the app replaces its state.

    Else such a client would drop out in every round in which it trains.
    """
    stored = dict(context.state.config_records.get(KEY, ConfigRecord()))
    try:
        yield
    finally:
        if stored:
            context.state[KEY] = ConfigRecord(stored)


def _error(message: Message, reason: str) -> Message:
    return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
