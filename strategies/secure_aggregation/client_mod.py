"""The mod that lets any ClientApp take part in secure aggregation."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import ERROR, WARNING

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Error, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.supercore import log

from privacy import arguments
from privacy.secure_aggregation import ClientPolicy, Identity, SecureClient, ServerModel
from privacy.secure_aggregation.errors import (
    DifferentRequestsError,
    MalformedMessageError,
    MalformedRequestError,
    RefusedError,
    UnprotectedRequestError,
    UnreadableStateError,
)
from privacy.untrusted_text import error_quoted, one_line
from strategies.model_schema import ModelSchema
from strategies.secure_aggregation.client_memory import ClientMemory, ContextMemory
from strategies.secure_aggregation.messages import (
    KEY,
    configuration_digest,
    content_of,
    model_digest,
    protocol_bytes,
    request_digest,
)
from strategies.secure_aggregation.update_encoding import UpdateEncoding


class SecureAggregationMod:
    """Answers the protocol of secure aggregation, and lets nothing else out.

    ``ClientApp(mods=[SecureAggregationMod(ClientPolicy(min_clients=50))])``, or
    ``@app.train(mods=[...])``. The app's train function runs once a round, in the stage that needs
    the update, and sees the message as it would without the mod. Its reply is clipped, weighted,
    rounded and masked here; neither arrays nor ``num-examples`` nor metrics are sent. If the app
    fails, or its reply cannot be bounded, the client adds zero: to drop out would tell of its data.
    Training outside the protocol and evaluation are refused; queries go to the app.

    **Guarantee.** That of ``privacy.secure_aggregation.SecureClient`` under ``policy``, which
    nothing that the server sends can weaken. A client that runs this moves a round's sum by at
    most the clipping norm that was sent with the model.

    **Assumptions.** As there; the memory is not rolled back.

    **Not covered.** What the app's own query functions answer. How long training took.

    Parameters
    ----------
    policy : ClientPolicy
        What this client insists on.
    identity : Identity, optional
        Its lasting identity, where others pin it. Default: one that it draws once.
    memory : ClientMemory, optional
        Where it keeps its state between stages. Default: ``ContextMemory()``; needed against a
        malicious server.
    """

    def __init__(
        self,
        policy: ClientPolicy,
        *,
        identity: Identity | None = None,
        memory: ClientMemory | None = None,
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
        self._policy = policy
        self._identity = identity
        self._memory: ClientMemory = ContextMemory() if memory is None else memory

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer one message of the server; Flower calls this."""
        category = message.metadata.message_type.partition(".")[0]
        if category == "query":
            return call_next(message, context)
        try:
            asked = message.has_content() and KEY in message.content
            if category != "train" or not asked:
                raise UnprotectedRequestError(
                    f"the server asks to {category} outside secure aggregation; this client "
                    "sends nothing in the clear"
                )
            answer = self._answer(message, context, call_next)
        except RefusedError as refusal:
            reason = one_line(f"{type(refusal).__name__}: {refusal}")
            log(WARNING, "Refused a request of the server: %s", reason)
            return _error(message, reason)
        except UnreadableStateError as error:
            log(ERROR, "%s", error)
            return _error(message, "the client cannot read what it remembers of earlier rounds")
        except Exception as error:
            # What went wrong may tell of the client's data: it stays here.
            log(ERROR, "This client leaves the round.", exc_info=error)
            return _error(message, "the client could not do its part")
        return Message(content_of(answer), reply_to=message)

    def _answer(self, message: Message, context: Context, call_next: ClientAppCallable) -> bytes:
        try:
            request = protocol_bytes(message.content[KEY])
        except MalformedMessageError as error:
            raise MalformedRequestError(str(error)) from error
        with self._client(context) as client:
            if not client.needs_vector(request):
                return client.answer(request)
            task = _task(client, self._policy, request, message)
        # The stage is left for good, and kept, before the app runs: it runs once a round. Not
        # under the lock, for it may take long.
        with _state_restored(context):
            vector = task.vector(message, context, call_next)
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
                    remembered.state, self._policy, identity=identity, configuration=configuration
                )
            else:
                client = SecureClient(self._policy, identity=identity, configuration=configuration)
            try:
                yield client
            finally:
                remembered.identity = identity.private
                remembered.state = client.to_bytes()


def _task(client: SecureClient, policy: ClientPolicy, request: bytes, message: Message) -> "_Task":
    """Check all of the message that asks for training; if it is refused, leave the round."""
    try:
        if (digest := request_digest(message)) != client.terms_of(request).request:
            raise DifferentRequestsError("what came to be trained on is not what was announced")
        encoding = UpdateEncoding.from_record(message.content.config_records[KEY])
        models = list(message.content.array_records.values())
        if len(models) != 1:
            raise MalformedRequestError(f"{len(models)} models came to be trained, not one")
        schema = ModelSchema(models[0])
        encoding.check(client.terms_of(request), policy, schema)
        client.prepare(request, request=digest, model=model_digest(schema.arrays))
    except RefusedError:
        client.leave(request)
        raise
    except Exception as error:
        client.leave(request)
        raise MalformedRequestError(
            f"the request to train cannot be read: {error_quoted(error)}"
        ) from error
    return _Task(encoding, schema)


@dataclass(frozen=True)
class _Task:
    """One training, all of whose request has been checked."""

    encoding: UpdateEncoding
    schema: ModelSchema

    def vector(
        self, message: Message, context: Context, call_next: ClientAppCallable
    ) -> npt.NDArray[np.int64]:
        """Let the app train, and turn its reply into the integers that are masked."""
        del message.content[KEY]
        try:
            reply = self.schema.read(call_next(message, context))
            weight = self.encoding.weighting.weight(reply.metrics, self.encoding.weighted_by)
            return self.encoding.encode(reply.arrays, self.schema.arrays, weight)
        except KeyboardInterrupt:  # somebody at the node ends it
            raise
        except BaseException as error:  # also a cancelled task, or an exit
            # To leave would show the server that something here is out of the ordinary.
            log(ERROR, "This client adds nothing to the round.", exc_info=error)
            return self.encoding.encode(self.schema.arrays, self.schema.arrays, 1.0)


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
