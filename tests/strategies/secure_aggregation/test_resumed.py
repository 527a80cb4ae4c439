"""Servers that die while a round is under way: the resumed run goes on with the same clients."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message

from privacy.secure_aggregation import Adversary, RoundTerms
from privacy.secure_aggregation._messages import Kind, decode
from strategies import Checkpointing
from tests.strategies.federation import model
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    MALICIOUS,
    Wire,
    asked,
    secure,
    secure_app,
    strategy_of,
)

NODES, SIZE = 12, 9


class Dies(Wire):
    """A wire over which the server dies in its second round, before it sends a stage."""

    def __init__(self, adversary: Adversary, before: Kind) -> None:
        update = lambda partition, *_: [np.full(SIZE, 0.01 * partition)]  # noqa: E731
        super().__init__(secure_app(update, adversary), NODES)
        self.before, self.seen, self.dying = before, 0, 2

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        if any(asked(message) is self.before for message in messages):
            self.seen += 1
            if self.seen == self.dying:
                raise KeyboardInterrupt
        return super().push_messages(messages)

    def invitations(self) -> list[RoundTerms]:
        """The terms of all rounds, in order."""
        found: list[RoundTerms] = []
        for message in self.requests:
            if asked(message) is Kind.INVITATION:
                content = message.content["secure-aggregation"]["message"]
                assert isinstance(content, bytes)
                terms = RoundTerms.from_bytes(decode(content, Kind.INVITATION, [None])[0])
                if terms not in found:
                    found.append(terms)
        return found


@pytest.mark.parametrize("noise_multiplier", [0.0, 1.0])
@pytest.mark.parametrize(
    ("adversary", "before"),
    [
        (MALICIOUS, Kind.DELIVERIES),
        (MALICIOUS, Kind.SURVIVORS),
        (CURIOUS, Kind.OPENING_REQUEST),
    ],
    ids=["before training", "before endorsing", "before opening"],
)
def test_a_run_that_died_within_a_round_goes_on_with_other_clients(
    adversary: Adversary, before: Kind, noise_multiplier: float, tmp_path: Path
) -> None:
    """Whatever its clients had sent, for they endorsed nothing; also where it dies twice."""
    checkpoint = tmp_path / "checkpoint"
    wire, setting = Dies(adversary, before), secure(adversary, min_clients=6)
    settings = {"noise_multiplier": noise_multiplier, "checkpointing": Checkpointing(checkpoint)}
    first = strategy_of(tmp_path, NODES, SIZE, setting, **settings)
    with pytest.raises(KeyboardInterrupt):
        first.start(wire, model((SIZE,)), num_rounds=3)
    wire.offline |= {3}
    wire.seen, wire.dying = 0, 1  # which is round 2 once more
    again = strategy_of(
        tmp_path,
        NODES,
        SIZE,
        setting,
        **settings | {"checkpointing": Checkpointing(checkpoint, resume=checkpoint)},
    )
    with pytest.raises(KeyboardInterrupt):
        again.start(wire, model((SIZE,)), num_rounds=3)
    wire.dying = 0
    again = strategy_of(
        tmp_path,
        NODES,
        SIZE,
        setting,
        **settings | {"checkpointing": Checkpointing(checkpoint, resume=checkpoint)},
    )
    wire.replies.clear()
    result = again.start(wire, model((SIZE,)), num_rounds=3)
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == ()
    assert result.privacy.stopped is None
    assert not any(reply.has_error() for reply in wire.replies)
    rounds = wire.invitations()
    assert len({terms.run for terms in rounds}) == 1
    numbers = [terms.number for terms in rounds]
    assert numbers == sorted(set(numbers))


def test_runs_that_were_begun_apart_are_different_ones(tmp_path: Path) -> None:
    """Else one would end the rounds of the other."""
    wire = Dies(MALICIOUS, Kind.STATE)  # which no server sends
    for _ in range(2):
        strategy = strategy_of(tmp_path, NODES, SIZE, secure(MALICIOUS), noise_multiplier=1.0)
        strategy.start(wire, model((SIZE,)), num_rounds=1)
    assert len({terms.run for terms in wire.invitations()}) == 2
