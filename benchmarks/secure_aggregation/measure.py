"""Masks, shares and whole rounds of secure aggregation, timed."""

import time
from dataclasses import dataclass, field

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    parameters_addition,
    parameters_mod,
)
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

from benchmarks.harness import Log, Row, Spread, interleave
from benchmarks.secure_aggregation.picture import draw_costs
from benchmarks.secure_aggregation.updates import encoding_rows, rounding_rows
from benchmarks.secure_aggregation.whole_rounds import whole_round_rows
from privacy.mechanisms import SystemRandomness
from privacy.secure_aggregation import (
    Adversary,
    ClientPolicy,
    Identity,
    RoundTerms,
    SecureClient,
    SecureServer,
    ServerModel,
    ServerStage,
    plan_round,
)
from privacy.secure_aggregation._client_state import ClientStage

# The two primitives that are shown apart, inside the package's own folder.
from privacy.secure_aggregation._masking import add_mask
from privacy.secure_aggregation._shamir import (
    combine,
    draw_elements,
    draw_polynomial,
    values,
    weights_at_zero,
)

draw = draw_costs  # the picture that this benchmark has instead of the ratios alone

_FLOWER = "flwr.common.secure_aggregation"
_RANGE = 1 << 32  # Flower's default modulus
_BOUND = 1 << 16  # the clipping norm in cells, so that 100 clients fit a ring of 24 bits
_RANDOMNESS = SystemRandomness()


def run(*, quick: bool, log: Log) -> list[Row]:
    """Time the parts, then whole rounds of real clients in one process, one after another."""
    log("one thread; adversary: honest but curious server, 5 % corrupt clients")
    rows = _masks(quick) + encoding_rows(quick=quick) + rounding_rows()
    rows += _shares(quick) + _growth()
    cohorts = (10, 100) if quick else (10, 100, 500)
    sizes = (100_000,) if quick else (100_000, 1_000_000)
    for size in sizes:
        for clients in cohorts:
            for dropout in (0.0, 0.3) if quick else (0.0, 0.05, 0.3):
                rows += _round(clients, size, dropout, ServerModel.HONEST_BUT_CURIOUS, log)
        rows += _round(100, size, 0.05, ServerModel.MALICIOUS, log)
    return rows if quick else rows + whole_round_rows(log)


def _masks(quick: bool) -> list[Row]:
    """Ours expands a mask and adds it at once; Flower's does one after the other."""
    size = 1_000_000
    target, key = np.zeros(size, dtype=np.uint32), _RANDOMNESS.bytes(32)
    vector = [np.zeros(size, dtype=np.int64)]

    def flower_expand() -> object:
        return pseudo_rand_gen(key, _RANGE, [(size,)])

    def flower_add() -> object:
        return parameters_addition(vector, pseudo_rand_gen(key, _RANGE, [(size,)]))

    times = interleave(
        {"ours": lambda: add_mask(target, key[:16]), "expand": flower_expand, "add": flower_add},
        repetitions=9 if quick else 25,
    )
    case, ours = "mask of 1 M parameters", times["ours"]
    expand, add = "expansion (ours: and addition)", "expansion and addition"
    return [
        Row(case, expand, "s", ours, times["expand"], _FLOWER),
        Row(case, add, "s", ours, times["add"], _FLOWER),
    ]


def _shares(quick: bool) -> list[Row]:
    rows = []
    for holders, threshold in ((9, 6), (28, 18)) if quick else ((9, 6), (28, 18), (64, 24)):
        secret = draw_elements(_RANDOMNESS, 1)[0]
        key = secret.to_bytes(32, "little")
        ours = _split(secret, threshold, holders)
        theirs = create_shares(key, threshold, holders)
        points = range(holders - threshold + 1, holders + 1)

        def ours_combined(
            ours: list[int] = ours, points: range = points, secret: int = secret
        ) -> None:
            weights_at_zero.cache_clear()  # as if every secret had other survivors
            if combine({point: ours[point - 1] for point in points}) != secret:
                raise ArithmeticError("the shares do not combine")

        def theirs_combined(
            theirs: list[bytes] = theirs, threshold: int = threshold, key: bytes = key
        ) -> None:
            if combine_shares(theirs[-threshold:]) != key:
                raise ArithmeticError("the shares do not combine")

        def ours_split(secret: int = secret, t: int = threshold, n: int = holders) -> None:
            _split(secret, t, n)

        def theirs_split(key: bytes = key, t: int = threshold, n: int = holders) -> None:
            create_shares(key, t, n)

        times = interleave(
            {
                "combine": ours_combined,
                "their combine": theirs_combined,
                "split": ours_split,
                "their split": theirs_split,
            },
            repetitions=3 if quick else 7,
        )
        case = f"shares, {threshold} of {holders}"
        for name, metric in (("combine", "reconstruction"), ("split", "sharing")):
            rows.append(
                Row(
                    case, f"{metric} of a secret", "s", times[name], times[f"their {name}"], _FLOWER
                )
            )
    return rows


def _split(secret: int, threshold: int, holders: int) -> list[int]:
    polynomial = draw_polynomial(secret, threshold=threshold, randomness=_RANDOMNESS)
    return values(polynomial, holders)


def _growth() -> list[Row]:
    """What a client's work and messages beyond its vector are proportional to."""
    rows = []
    for clients in (100, 1_000, 10_000, 100_000):
        plan = plan_round(
            clients, adversary=Adversary(max_corrupt_fraction=0.05), max_dropout_fraction=0.05
        )
        case = f"{clients} clients, 5 % dropouts"
        rows.append(Row(case, "neighbours of a client", "", Spread.of([float(plan.neighbours)])))
    return rows


@dataclass
class _Cost:
    seconds: float = 0.0
    up: int = 0
    down: int = 0


@dataclass
class _Played:
    clients: list[_Cost]
    server: float = 0.0
    open: float = 0.0
    answered: list[_Cost] = field(default_factory=list)


def _round(clients: int, size: int, dropout: float, model: ServerModel, log: Log) -> list[Row]:
    adversary = Adversary(model, max_corrupt_fraction=0.05)
    name = "" if model is ServerModel.HONEST_BUT_CURIOUS else ", malicious server"
    case = f"{clients} clients x {size} parameters, {dropout:.0%} dropouts{name}"
    log(case)
    played = _play(clients, size, dropout, adversary)
    seconds = Spread.of([cost.seconds for cost in played.answered])
    up = Spread.of([float(cost.up) for cost in played.answered])
    down = Spread.of([float(cost.down) for cost in played.answered])
    plan = plan_round(clients, adversary=adversary, max_dropout_fraction=dropout)
    peer_seconds, peer_bytes = _flower_client(size, plan.neighbours, plan.threshold)
    return [
        Row(
            case,
            "a client's time (Flower: sharing and masking only)",
            "s",
            seconds,
            Spread.of([peer_seconds]),
            _FLOWER,
        ),
        Row(case, "server's time", "s", Spread.of([played.server])),
        Row(case, "server's time to open the sum, of that", "s", Spread.of([played.open])),
        Row(case, "bytes up", "B", up, Spread.of([float(peer_bytes)]), _FLOWER),
        Row(case, "bytes up beside the plain float32 update", "B", up, _plain(size), "float32"),
        Row(case, "bytes down", "B", down),
    ]


def _plain(size: int) -> Spread:
    return Spread.of([4.0 * size])


def _play(clients: int, size: int, dropout: float, adversary: Adversary) -> _Played:
    """Play a round; who drops out does so after sharing, which costs the server most."""
    identities = [Identity.draw() for _ in range(clients)]
    pinned = [identity.public for identity in identities]
    policy = ClientPolicy(min_clients=3, adversary=adversary, client_public_keys=pinned)
    people = [SecureClient(policy, identity=identity) for identity in identities]
    terms = RoundTerms(bytes(16), 1, size, _BOUND, 3, adversary.server)
    server = SecureServer(
        terms,
        adversary=adversary,
        max_dropout_fraction=dropout,
        cohort=clients,
        client_public_keys=pinned,
    )
    generator = np.random.default_rng(0)
    vector = generator.integers(-_BOUND, _BOUND + 1, size)
    leaving = set(range(int(dropout * clients)))
    played = _Played([_Cost() for _ in people])

    messages = dict.fromkeys(range(clients), server.invitation())
    while messages:
        for node, message in messages.items():
            if server.stage is ServerStage.MASKING and node in leaving:
                continue
            cost = played.clients[node]
            given = vector if people[node].stage is ClientStage.MASKING else None
            start = time.perf_counter()
            answer = people[node].answer(message, given)
            middle = time.perf_counter()
            server.receive(node, answer)
            played.server += time.perf_counter() - middle
            cost.seconds += middle - start
            cost.up += len(answer)
            cost.down += len(message)
        start = time.perf_counter()
        messages = server.advance()
        played.server += time.perf_counter() - start
    start = time.perf_counter()
    opened = server.open()
    played.open = time.perf_counter() - start
    played.server += played.open
    if not np.array_equal(opened, vector * (clients - len(leaving))):
        raise ArithmeticError("the opened sum is not the plain sum")
    played.answered = [cost for node, cost in enumerate(played.clients) if node not in leaving]
    return played


def _flower_client(size: int, neighbours: int, threshold: int) -> tuple[float, int]:
    """What a client of Flower's does with the same graph and vector: seconds, bytes up."""
    vector = np.random.default_rng(0).integers(0, 1 << 22, size)
    private = ec.generate_private_key(ec.SECP384R1())
    other = ec.generate_private_key(ec.SECP384R1()).public_key()
    start = time.perf_counter()
    secrets = [_RANDOMNESS.bytes(32), _RANDOMNESS.bytes(32)]
    shares = [create_shares(secret, threshold, neighbours) for secret in secrets]
    sent = 0
    for label in range(neighbours):
        key = generate_shared_key(private, other)
        sent += len(encrypt(key, shares[0][label] + shares[1][label]))
    masked = [vector]
    for _ in range(neighbours):
        key = generate_shared_key(private, other)
        masked = parameters_addition(masked, pseudo_rand_gen(key[:32], _RANGE, [(size,)]))
    masked = parameters_addition(masked, pseudo_rand_gen(secrets[0], _RANGE, [(size,)]))
    masked = parameters_mod(masked, _RANGE)
    return time.perf_counter() - start, sent + masked[0].nbytes
