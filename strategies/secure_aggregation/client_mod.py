"""The mod that lets any ClientApp take part in secure aggregation."""

from collections.abc import Callable
from functools import partial
from logging import ERROR

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore import log

from privacy.secure_aggregation import ClientPolicy, Identity, RoundTerms
from strategies.errors import DeclinedError
from strategies.model_schema import ModelSchema
from strategies.replies import is_decline
from strategies.secure_aggregation.client_memory import ClientMemory
from strategies.secure_aggregation.messages import KEY
from strategies.secure_aggregation.protocol_client import ProtocolClient
from strategies.secure_aggregation.update_encoding import UpdateEncoding


class SecureAggregationMod:
    """Answers the protocol of secure aggregation, and lets nothing else out.

    ``ClientApp(mods=[SecureAggregationMod(ClientPolicy(min_clients=50))])``, or
    ``@app.train(mods=[...])``. The app's train function runs once a round, in the stage that needs
    the update, and sees the message as it would without the mod. Its reply is clipped, weighted,
    rounded and masked here; neither arrays nor ``num-examples`` nor metrics are sent. If the app
    fails, or its reply cannot be bounded, the client adds zero: to drop out would tell of its data.
    A reply by ``strategies.decline``, which tells nothing of data, is sent, and the client leaves
    the round. One who declines at the invitation costs the round nothing: a mod in front of this
    one sees it (``is_invitation``, of this folder), with the round's configuration. Training
    outside the protocol and evaluation are refused; queries go to the app.

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
        self._client = ProtocolClient(policy, identity=identity, memory=memory)

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Answer one message of the server; Flower calls this."""
        if message.metadata.message_type.partition(".")[0] == "query":
            return call_next(message, context)
        task = partial(_accepted, self._client.policy, message, context, call_next)
        return self._client.reply(message, context, task)


def _accepted(
    policy: ClientPolicy,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
    record: ConfigRecord,
    terms: RoundTerms,
    schema: ModelSchema,
) -> Callable[[], npt.NDArray[np.int64]]:
    """Check how the update is to be bounded, before anybody trains."""
    encoding = UpdateEncoding.from_record(record)
    encoding.check(terms, policy, schema)
    return partial(_vector, encoding, schema, message, context, call_next)


def _vector(
    encoding: UpdateEncoding,
    schema: ModelSchema,
    message: Message,
    context: Context,
    call_next: ClientAppCallable,
) -> npt.NDArray[np.int64]:
    """Let the app train, and turn its reply into the integers that are masked."""
    del message.content[KEY]
    try:
        answer = call_next(message, context)
        if is_decline(answer):
            raise DeclinedError(answer.error.reason)
        reply = schema.read(answer)
        weight = encoding.weighting.weight(reply.metrics, encoding.weighted_by)
        return encoding.encode(reply.arrays, schema.arrays, weight)
    except (KeyboardInterrupt, DeclinedError):  # by somebody at the node, or by the owner's rules
        raise
    except BaseException as error:  # also a cancelled task, or an exit
        # To leave would show the server that something here is out of the ordinary.
        log(ERROR, "This client adds nothing to the round.", exc_info=error)
        return encoding.encode(schema.arrays, schema.arrays, 1.0)
