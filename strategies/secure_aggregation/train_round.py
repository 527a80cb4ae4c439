"""One training round under secure aggregation, as the server plays it over Flower's grid."""

import hashlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from privacy.accounting import AdditiveDelta, CyclicGroups, Event, Poisson, Sampling
from privacy.mechanisms import LatticeNoise, Randomness
from privacy.secure_aggregation import (
    Adversary,
    RoundTerms,
    SecureServer,
    ServerModel,
    ServerStage,
)
from privacy.secure_aggregation.errors import RejectedMessageError, RoundAbortedError
from privacy.secure_aggregation.terms import RUN_BYTES
from strategies.errors import Fault, ReplyError
from strategies.lost_clients import NO_REPLY, TOO_FEW_JOINED, RoundReplies, operator_log
from strategies.model_schema import ModelSchema
from strategies.privacy_budget import PrivacyBudget
from strategies.replies import PendingReplies, collect, stream_replies
from strategies.run import Run
from strategies.secure_aggregation.messages import (
    KEY,
    content_of,
    protocol_record,
    reply_bytes,
    request_digest,
)
from strategies.secure_aggregation.settings import SecureAggregation
from strategies.secure_aggregation.update_encoding import UpdateEncoding
from strategies.train_round import EveryoneInEveryRound, RoundOutcome, RoundSetup
from strategies.weighting import CappedWeights

Vector = npt.NDArray[Any]
FALSE_ALARM = 1e-6


class ObservedDropouts:
    """Compares the clients that did not see their rounds through with ``dropout_probability``.

    Abort leakage is charged from the declared probability (``presence_delta``): where more drop
    out, δ is under-stated. The operator's log says so, once. The run goes on and its results are
    silent: who was there is not noised, and to end the run would show it.
    """

    def __init__(self, declared: float) -> None:
        self._declared = declared
        self._drawn = self._lost = 0
        self._warned = False

    def note(self, drawn: int, remaining: int) -> None:
        """Count one round: how many were asked, and how many answered to its end."""
        from scipy.stats import binom

        self._drawn += drawn
        self._lost += drawn - remaining
        if self._warned or binom.sf(self._lost - 1, self._drawn, self._declared) > FALSE_ALARM:
            return
        self._warned = True
        operator_log.warning(
            "%d of %d clients that were drawn did not see their round through; with "
            "dropout_probability = %g so many would with a probability below %g. The delta that "
            "each round is charged for presence rests on it, so epsilon is under-stated: declare "
            "at least %.2g.",
            self._lost,
            self._drawn,
            self._declared,
            FALSE_ALARM,
            self._lost / self._drawn,
        )


def next_number(before: int) -> int:
    """The number of a round, for clients, after one of number ``before``.

    Clients are in one round of a run, the one with the highest number. So a resumed run is the same
    one to them, and ends the round in which its server died; the clock counts, for that round's
    number died with it.
    """
    return max(before + 1, time.time_ns() // 1_000_000)


class Encoding(Protocol):
    """How a client turns its part of a round into integers; sent with the model, public."""

    def entries(self, parameters: int) -> int:
        """How many integers a client masks, for a model of so many parameters."""

    def bound(self, parameters: int) -> int:
        """``RoundTerms.bound`` for such a model."""

    def write_into(self, record: ConfigRecord) -> None:
        """Put it beside a message of the protocol."""

    def decode(
        self,
        opened: npt.NDArray[np.int64],
        reference: list[Vector],
        *,
        survivors: int,
        randomness: Randomness,
    ) -> list[Vector]:
        """The noised sum from the opened integers, in the model's units and shapes."""


class Conditions(Protocol):
    """Whom a round withstands, and how few clients it opens for."""

    @property
    def min_clients(self) -> int:
        """The fewest clients whose sum is opened."""

    @property
    def max_clients(self) -> int | None:
        """The most that are asked."""

    @property
    def adversary(self) -> Adversary:
        """Whom it withstands."""

    @property
    def max_dropout_fraction(self) -> float | None:
        """The share that may vanish; None: as many as leave ``min_clients``."""

    @property
    def client_public_keys(self) -> Iterable[bytes]:
        """Of all who may take part, against a malicious server."""

    @property
    def stage_timeout(self) -> float:
        """Seconds that a stage without training waits."""


class MaskedRounds(EveryoneInEveryRound):
    """Rounds of training whose server sees the sum only."""

    def __init__(self, setup: RoundSetup, settings: SecureAggregation) -> None:
        self._setup, self._settings = setup, settings
        self._groups: int = 1
        self._drawn: Sampling = setup.cohort_sampling
        if isinstance(setup.sampling, CyclicGroups):
            # To whose turn it is, the others are as of a Poisson cohort of all groups: that charge,
            # which counts on the client's own turn being secret, as often as there are groups.
            self._groups = setup.sampling.groups
            self._drawn = Poisson(setup.sampling_rate)
        self.presence = settings.presence(setup.population, self._drawn)
        if self._groups > 1:
            once = self.presence.delta * self._groups * (1 + 2.0**-40)
            self.presence = AdditiveDelta(min(1.0, once))
        self.mechanism = settings.mechanism(1).name
        self._observed = ObservedDropouts(settings.dropout_probability)
        self._sequence = 0

    def account(self, noise_multiplier: float, parameters: int) -> Event:
        """The privacy event of a round's model, of so many parameters."""
        return self._settings.mechanism(parameters).account(
            parameters=parameters,
            noise_multiplier=noise_multiplier,
            sampling=self._setup.cohort_sampling,
        )

    def check_presence(self, rounds: int, budget: PrivacyBudget) -> None:
        """Refuse so many rounds if they are charged more for presence than there is of δ."""
        if budget.limited:
            self._settings.check_presence(
                self._setup.population,
                self._drawn,
                rounds=-(-rounds // self._groups) * self._groups,
                delta=budget.budget.delta,
                paid=[record.event for record in budget.paid.records],
            )

    def open(
        self,
        number: int,
        schema: ModelSchema,
        run: Run,
        grid: Grid,
        *,
        noise: LatticeNoise | None = None,
    ) -> "MaskedRound":
        """A new round, with the norm and the noise multiplier of the run's state.

        ``noise``, where it is given, is the round's row of correlated noise.
        """
        self._sequence = next_number(self._sequence)
        weighting = self._setup.weighting
        encoding = UpdateEncoding(
            geometry=run.state.clipping.geometry(schema.names),
            weight_cap=float(weighting.cap) if isinstance(weighting, CappedWeights) else 0.0,
            weighted_by=self._setup.record_keys.weighted_by,
            mechanism=self._settings.mechanism(schema.size),
            noise_multiplier=run.noise_multiplier,
            noise=noise,
        )
        return MaskedRound(
            number=number,
            schema=schema,
            encoding=encoding,
            settings=self._settings,
            sequence=self._sequence,
            randomness=self._setup.randomness,
            run=run,
            grid=grid,
            observed=self._observed,
            noise_multiplier=run.noise_multiplier,
        )


@dataclass(eq=False, kw_only=True)
class MaskedRound:
    """The stages of one round: ``begin``, then ``gather`` the replies, then ``release``.

    When too few clients are left for the sum to be opened, ``begin`` asks nobody, and ``release``
    gives nothing, or noise alone.
    """

    number: int
    schema: ModelSchema
    encoding: Encoding
    settings: Conditions
    sequence: int
    randomness: Randomness
    run: Run
    grid: Grid
    observed: ObservedDropouts | None = None
    noise_multiplier: float = 0.0
    _server: SecureServer | None = None
    _came: RoundReplies = field(default_factory=RoundReplies)  # in the last stage that asked
    _joined: RoundReplies | None = None  # in the first stage; None where it asked nobody
    _updates_asked: bool = False
    _aborted: bool = False
    _configuration: dict[str, ConfigRecord] = field(default_factory=dict)

    @property
    def is_paid(self) -> bool:
        """Always: that a round does not open may show who was drawn."""
        return True

    @property
    def _name(self) -> str:
        return f"round {self.number}, secure aggregation"

    def begin(self, nodes: Iterable[int], content: RecordDict, *, drawn: int) -> list[Message]:
        """Exchange and check keys and shares, and make the messages that ask for masked updates.

        ``nodes`` are those of the ``drawn`` clients who are connected; ``content`` is what their
        apps are to see: the model and the round's configuration.
        """
        cohort = list(nodes)
        self._configuration = dict(content.config_records)
        if self.settings.max_clients is not None and len(cohort) > self.settings.max_clients:
            self._abort(f"{len(cohort)} clients were drawn; {self.settings.max_clients} are asked")
            self._asked = PendingReplies([])
            return []
        asked = request_digest(self._request(content, 0, b""))
        server = self._server = SecureServer(
            self._terms(asked),
            adversary=self.settings.adversary,
            max_dropout_fraction=self.settings.max_dropout_fraction,
            cohort=drawn,
            client_public_keys=self.settings.client_public_keys,
            randomness=self.randomness,
        )
        requests = dict.fromkeys(cohort, server.invitation())
        while not self._aborted and server.stage < ServerStage.MASKING:
            requests = self._stage(server, requests)
        messages = [self._request(content, node, message) for node, message in requests.items()]
        self._asked = PendingReplies(messages)
        self._updates_asked = bool(messages)
        return messages

    def _request(self, content: RecordDict, node: int, message: bytes) -> Message:
        """What asks a node to train: the same for all but for the protocol's message."""
        record = protocol_record(message)
        self.encoding.write_into(record)
        return Message(
            RecordDict({**content, KEY: record}), message_type=MessageType.TRAIN, dst_node_id=node
        )

    def _terms(self, request: bytes) -> RoundTerms:
        size = self.schema.size
        return RoundTerms(
            run=hashlib.sha256(self.run.state.name.encode()).digest()[:RUN_BYTES],
            number=self.sequence,
            size=self.encoding.entries(size),
            bound=self.encoding.bound(size),
            min_clients=self.settings.min_clients,
            server=self.settings.adversary.server,
            request=request,
        )

    def gather(self, replies: Iterable[Message]) -> bool:
        """Take the masked updates; what cannot be used is dropped.

        False, and the round is not to be paid, where the first exchange brought no usable reply
        and the run ends for it: nobody was asked to train, so that nothing depends on data. That
        the run ends shows no more than it would if the round were paid first.
        """
        if self._server is not None and not self._aborted:
            self._take(self._server, self._asked, replies)
        if self._joined is None or self._joined.used:
            return True
        return not self.run.train_in_vain.add(self._joined)

    def release(self) -> RoundOutcome:
        """Open the sum and add the noise."""
        update = self._update()
        noise_alone = self._aborted and update is not None
        counted = self._joined is not None and not self._joined.used  # by gather
        fewest = 0 if self._updates_asked else self.settings.min_clients
        ends = not counted and self.run.train_in_vain.add(
            self._came, moved=noise_alone, fewest=fewest
        )
        why = TOO_FEW_JOINED if self._came.used else NO_REPLY
        in_vain = why if ends and self._aborted else ""
        return RoundOutcome(update, opened=not self._aborted, in_vain=in_vain)

    def _update(self) -> list[Vector] | None:
        """The noisy sum; if the round was aborted ``None``, or noise alone.

        Against a malicious server clients let one sum be opened for a model, and cannot see whether
        it was. Where one may be endorsed that was not opened, the model moves by the noise of a
        round of zeros: else those clients would be out of all further rounds.
        """
        if self._server is None:
            return None
        opened = self._open(self._server)
        for node, offences in self._server.offences.items():
            for offence in offences:
                operator_log.warning("%s: node %s %s", self._name, node, offence)
        if self.observed is not None:
            self.observed.note(self._server.cohort, self._server.remaining)
        if opened is None:
            return self._noise_alone()
        survivors = len(self._server.survivors)
        operator_log.info("%s: opened the sum of %d clients", self._name, survivors)
        return self._decode(opened, survivors)

    def _noise_alone(self) -> list[Vector] | None:
        malicious = self.settings.adversary.server is ServerModel.MALICIOUS
        if not (malicious and self._updates_asked and self.noise_multiplier):
            return None
        size = self.schema.size
        return self._decode(np.zeros(size, dtype=np.int64), 0)

    def _decode(self, opened: npt.NDArray[np.int64], survivors: int) -> list[Vector]:
        arrays, randomness = self.schema.arrays, self.randomness
        return self.encoding.decode(opened, arrays, survivors=survivors, randomness=randomness)

    def _open(self, server: SecureServer) -> Vector | None:
        """Play the stages after the training."""
        if self._aborted:
            return None
        requests = self._advance(server)
        while requests:
            requests = self._stage(server, requests)
        try:
            return None if self._aborted else server.open()
        except RoundAbortedError as reason:
            self._abort(reason)
            return None

    def _stage(self, server: SecureServer, requests: Mapping[int, bytes]) -> dict[int, bytes]:
        """Play one stage without training: send, take what comes, and go on."""
        messages = [
            Message(
                self._content(server.stage, request),
                message_type=MessageType.TRAIN,
                dst_node_id=node,
            )
            for node, request in requests.items()
        ]
        asked = PendingReplies(messages)
        replies = stream_replies(self.grid, messages, timeout=self.settings.stage_timeout)
        self._take(server, asked, replies)
        return self._advance(server)

    def _content(self, stage: ServerStage, request: bytes) -> RecordDict:
        """What a node is sent in a stage without training.

        The invitation carries the round's configuration, so that a node whose owner or app does not
        take it declines before anybody counts on that node.
        """
        content = content_of(request)
        if stage is ServerStage.ADVERTISING:
            return RecordDict({**self._configuration, **content})
        return content

    def _take(
        self, server: SecureServer, asked: PendingReplies, replies: Iterable[Message]
    ) -> None:
        def read(reply: Message) -> tuple[int, bytes]:
            return reply.metadata.src_node_id, reply_bytes(reply)

        def use(answer: tuple[int, bytes]) -> None:
            try:
                server.receive(*answer)
            except RejectedMessageError as error:
                raise ReplyError(str(error), Fault.PROTOCOL) from error

        name = f"{self._name}, {server.stage.name.lower()}"
        came = collect(name, asked, replies, read=read, use=use, faults=self.run.faults)
        if server.stage is ServerStage.ADVERTISING:
            self._joined = came
        if server.stage is not ServerStage.DISPUTING:  # which asks those who may have cheated
            self._came = came

    def _advance(self, server: SecureServer) -> dict[int, bytes]:
        try:
            return server.advance()
        except RoundAbortedError as reason:
            self._abort(reason)
            return {}

    def _abort(self, reason: object) -> None:
        self._aborted = True
        operator_log.warning("%s: aborted, nothing is opened: %s", self._name, reason)
