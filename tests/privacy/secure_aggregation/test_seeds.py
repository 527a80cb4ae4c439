"""A generator with a short seed is found by search; the operating system's is not."""

import hashlib
import secrets

import numpy as np

from privacy.mechanisms import Randomness, SystemRandomness
from privacy.secure_aggregation import ClientPolicy, SecureClient
from privacy.secure_aggregation._messages import Kind, decode
from privacy.secure_aggregation._shamir import PRIME
from tests.privacy.secure_aggregation.federation import HONEST, Federation, draw_vectors, open_round

SEED_BITS = 20


class ShortSeed(Randomness):
    """All draws from a seed of 20 bits, as from a Mersenne Twister's of 32."""

    private = False

    def __init__(self, seed):
        self.prefix, self.calls = seed.to_bytes(4, "little"), 0

    def bytes(self, count):
        self.calls += 1
        return expand(self.prefix, self.calls, count)


def expand(prefix, call, count):
    return hashlib.shake_256(prefix + call.to_bytes(4, "little")).digest(count)


def search(nonce_seen, call):
    """What a curious server does: try all seeds against a nonce that it was sent."""
    for seed in range(2**SEED_BITS):
        prefix = seed.to_bytes(4, "little")
        if expand(prefix, call, 12) == nonce_seen:
            return prefix
    return None


def test_a_short_seed_is_found_by_search_and_ours_is_not():
    federation = Federation(10)
    weak = ShortSeed(secrets.randbelow(2**SEED_BITS))
    identity = federation.clients[0].identity
    federation.clients[0] = SecureClient(
        ClientPolicy(min_clients=3, adversary=HONEST), identity=identity, randomness=weak
    )
    vectors = draw_vectors(10, 50)
    server = federation.server(federation.terms(50))
    messages = federation.play_to(server, vectors, 1)
    call = weak.calls + 1  # the next draw is the seed of its own mask
    answers = {n: federation.clients[n].answer(message) for n, message in messages.items()}
    # The last draws are the nonces of its boxes, which the server relays.
    nonces = {n: decode(answer, Kind.SHARES, [None] * 4)[3][:12] for n, answer in answers.items()}
    first = weak.calls - open_round(federation.clients[0]).plan.neighbours + 1

    found = search(nonces[0], first)
    assert found is not None
    seed = int.from_bytes(expand(found, call, 64), "little") % PRIME
    assert seed.to_bytes(32, "little") == open_round(federation.clients[0]).seed
    assert search(nonces[1], first) is None


def test_ours_draws_every_secret_from_the_operating_system(monkeypatch):
    """256 bits at least of the system's randomness go into each of a client's secrets."""
    taken = []
    original = SystemRandomness.bytes

    def counted(self, count):
        taken.append(count)
        return original(self, count)

    monkeypatch.setattr(SystemRandomness, "bytes", counted)
    federation = Federation(10)
    taken.clear()
    vectors = draw_vectors(10, 5)
    messages = federation.play_to(federation.server(federation.terms(5)), vectors, 1)
    before = len(taken)
    assert taken.count(32) >= 20  # a mask key and a channel key each
    client = federation.clients[0]
    client.answer(messages[0])
    plan = open_round(client).plan
    # Its self-mask's seed, an unseen signature, the two secrets' polynomials and their blindings.
    polynomial = 64 * (plan.threshold - 1)
    expected = [64, 32, polynomial, polynomial, 64, polynomial, polynomial]
    assert taken[before:] == expected + [12] * plan.neighbours

    states = [open_round(client) for client in federation.clients.values()]
    assert len({state.mask_root for state in states}) == 10
    assert np.all([state.mask_root != state.channel_private for state in states])
