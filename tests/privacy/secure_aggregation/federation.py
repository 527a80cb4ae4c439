"""A federation in one process: clients, a server, and somebody in between who drops messages."""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
)
from privacy.secure_aggregation._client_state import RoundState

Vectors = Mapping[int, npt.NDArray[np.int64]]
RUN = bytes(range(16))
HONEST = Adversary(ServerModel.HONEST_BUT_CURIOUS, max_corrupt_fraction=0.1)
MALICIOUS = Adversary(ServerModel.MALICIOUS, max_corrupt_fraction=0.1)


class Federation:
    """Clients with identities, and how to play rounds with them."""

    def __init__(self, count: int, adversary: Adversary = HONEST, *, min_clients: int = 3) -> None:
        identities = [Identity.draw() for _ in range(count)]
        self.public_keys = [identity.public for identity in identities]
        self.adversary = adversary
        self.min_clients = min_clients
        self.trained = 0  # how often somebody was asked for its vector, and had it
        self.policy = ClientPolicy(
            min_clients=min_clients, adversary=adversary, client_public_keys=self.public_keys
        )
        self.clients = {
            node: SecureClient(self.policy, identity=identity)
            for node, identity in enumerate(identities)
        }

    def terms(
        self, size: int, *, bound: int = 100, number: int = 1, run: bytes = RUN
    ) -> RoundTerms:
        return RoundTerms(run, number, size, bound, self.min_clients, self.adversary.server)

    def server(
        self, terms: RoundTerms, *, max_dropout_fraction: float | None = 0.3
    ) -> SecureServer:
        return SecureServer(
            terms,
            adversary=self.adversary,
            max_dropout_fraction=max_dropout_fraction,
            cohort=len(self.clients),
            client_public_keys=self.public_keys,
        )

    def invite(self, server: SecureServer) -> dict[int, bytes]:
        return dict.fromkeys(self.clients, server.invitation())

    def exchange(
        self,
        server: SecureServer,
        messages: Mapping[int, bytes],
        vectors: Vectors,
        present: Callable[[int], bool] = lambda node: True,
    ) -> dict[int, bytes]:
        """Play one stage: everyone who is present answers."""
        for node, message in messages.items():
            if present(node):
                client = self.clients[node]
                trains = client.needs_vector(message)
                self.trained += trains
                server.receive(node, client.answer(message, vectors[node] if trains else None))
        return server.advance()

    def play(
        self,
        server: SecureServer,
        vectors: Vectors,
        present: Callable[[int, int], bool] = lambda stage, node: True,
    ) -> npt.NDArray[np.int64]:
        """Play a whole round; ``present(stage, node)`` says who answers."""
        messages, stage = self.invite(server), 0
        while messages:
            messages = self.exchange(
                server, messages, vectors, lambda node, stage=stage: present(stage, node)
            )
            stage += 1
        return server.open()

    def play_to(self, server: SecureServer, vectors: Vectors, stage: int) -> dict[int, bytes]:
        """Play the first stages; the messages of ``stage`` are returned and not yet delivered."""
        messages = self.invite(server)
        for _ in range(stage):
            messages = self.exchange(server, messages, vectors)
        return messages


def open_round(client: SecureClient) -> RoundState | None:
    """What a client knows of the round that it heard of last; the state that no message shows."""
    return next(reversed(client._rounds.values()), None)


def draw_vectors(count: int, size: int, bound: int = 100, seed: int = 0) -> Vectors:
    generator = np.random.default_rng(seed)
    return {node: generator.integers(-bound, bound + 1, size) for node in range(count)}
