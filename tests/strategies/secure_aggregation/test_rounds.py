"""DPFedAvg under secure aggregation: what it computes, and what the server gets to see."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import Strategy
from scipy import stats

from privacy.accounting import (
    AdditiveDelta,
    DiscreteGaussianSum,
    Full,
    GaussianRelease,
    Ledger,
    Poisson,
    epsilon,
    read_ledger,
)
from privacy.mechanisms import ContinuousGaussian
from privacy.secure_aggregation import Adversary
from privacy.secure_aggregation._messages import Kind
from strategies import (
    AdaptiveClipping,
    Budget,
    CappedWeights,
    Checkpointing,
    DPFedAvg,
    InProcessGrid,
    Metrics,
    NoisedMetrics,
    PerLayerClipping,
    PublicMetrics,
    decline,
)
from strategies.errors import NoUsableReplyError
from strategies.secure_aggregation import is_invitation
from tests.strategies.federation import client_app, model
from tests.strategies.secure_aggregation.federation import (
    CURIOUS,
    KEY,
    MALICIOUS,
    Wire,
    asked,
    forged,
    mod,
    said,
    secure,
    secure_app,
    strategy_of,
)

NODES = 12
BOTH = pytest.mark.parametrize("adversary", [CURIOUS, MALICIOUS], ids=lambda a: a.server.value)


def drift(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    """A different step for each client and round; some are clipped, some are not."""
    generator = np.random.default_rng([partition, number])
    scale = 10.0 ** generator.integers(-3, 2)
    return [(scale * generator.standard_normal(a.shape)).astype(a.dtype) for a in arrays]


def final(strategy: Any, grid: Any, initial: ArrayRecord, rounds: int = 2) -> list[Any]:
    return list(strategy.start(grid, initial, num_rounds=rounds).arrays.to_numpy_ndarrays())


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.any()
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@BOTH
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"weighting": CappedWeights(cap=5, total_weight=NODES)},
        {"clipping": PerLayerClipping({"0": 0.3, "1": 0.05})},
    ],
    ids=["uniform", "capped", "per-layer"],
)
def test_the_model_is_that_of_a_run_without_it(
    settings: dict[str, Any], dtype: Any, adversary: Adversary, tmp_path: Path
) -> None:
    """Bit for bit, where there is no noise and the lattice is the same."""
    initial, size = model((7, 5), (4,), dtype=dtype), 39
    masked = strategy_of(tmp_path / "masked", NODES, size, secure(adversary), **settings)
    plain = strategy_of(tmp_path / "plain", NODES, size, None, **settings)
    examples: Callable[[int], float] = lambda partition: partition + 1.0  # noqa: E731
    ours = final(masked, Wire(secure_app(drift, adversary, examples=examples), NODES), initial)
    theirs = final(plain, InProcessGrid(client_app(drift, examples=examples), NODES), initial)
    assert_same(ours, theirs)


STAGES = {
    CURIOUS: [
        Kind.INVITATION,
        Kind.NEIGHBOURHOOD,
        Kind.DELIVERIES,
        Kind.PARTICIPANTS,
        Kind.OPENING_REQUEST,
    ],
    MALICIOUS: [
        Kind.INVITATION,
        Kind.ROSTER,
        Kind.DELIVERIES,
        Kind.PARTICIPANTS,
        Kind.SURVIVORS,
        Kind.OPENING_REQUEST,
    ],
}


EVERY_STAGE = pytest.mark.parametrize(
    ("adversary", "stage"),
    [(a, stage) for a in STAGES for stage in STAGES[a]],
    ids=lambda x: x.server.value if isinstance(x, Adversary) else x.name,
)


@EVERY_STAGE
def test_clients_may_vanish_at_every_stage(
    adversary: Adversary, stage: Kind, tmp_path: Path
) -> None:
    """The sum is of those whose masked update came, also of those who vanished after that."""
    lost = {2, 5, 11}
    masked = strategy_of(tmp_path / "masked", NODES, 9, secure(adversary))
    wire = Wire(
        secure_app(drift, adversary),
        NODES,
        cut=lambda m: asked(m) is stage and m.metadata.dst_node_id in lost,
    )
    ours = final(masked, wire, model((9,)))
    report = masked.report()
    assert report.secure_aggregation is not None
    assert report.secure_aggregation.aborted_rounds == ()

    plain = strategy_of(tmp_path / "plain", NODES, 9, None)
    grid = InProcessGrid(client_app(drift), NODES)
    if stage not in (Kind.SURVIVORS, Kind.OPENING_REQUEST):
        grid.offline = lost
    assert_same(ours, final(plain, grid, model((9,))))


@EVERY_STAGE
def test_below_the_minimum_nothing_is_opened_and_the_run_goes_on(
    adversary: Adversary, stage: Kind, tmp_path: Path
) -> None:
    """Round 2 of 3 loses too many at one stage: it is paid, opens nothing, and round 3 comes.

    Where clients may have let its sum be opened for this model, noise alone moves the model.
    """

    def cut(message: Message) -> bool:
        invitations = sum(asked(m) is Kind.INVITATION for m in wire.requests)
        second = NODES < invitations <= 2 * NODES
        return second and asked(message) is stage and message.metadata.dst_node_id > 2

    wire = Wire(secure_app(drift, adversary), NODES, cut=cut)
    models = []
    strategy = strategy_of(
        tmp_path, NODES, 9, secure(adversary, min_clients=6), clipping=1e-3, noise_multiplier=50.0
    )
    result = strategy.start(
        wire,
        model((9,)),
        num_rounds=3,
        evaluate_fn=lambda _, arrays: models.append(arrays.to_numpy_ndarrays()[0].copy()),  # type: ignore[func-returns-value]
    )
    _, first, second, third = models
    stages = STAGES[adversary]
    asked_for = stages.index(stage) >= stages.index(Kind.PARTICIPANTS)
    assert (first.tobytes() != second.tobytes()) == (adversary is MALICIOUS and asked_for)
    assert second.tobytes() != third.tobytes()
    assert result.privacy is not None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (2,)
    paid = [(r.round, r.event) for r in read_ledger(tmp_path / "ledger.jsonl").records]
    for number in (1, 2, 3):  # all three the same
        release, charge = (event for round_, event in paid if round_ == number)
        assert release == GaussianRelease(50.0, Full())
        assert charge == AdditiveDelta(result.privacy.secure_aggregation.presence_delta)
    # Of the second round no more shares were handed out than could open anything.
    opened = [reply for reply in wire.replies if said(reply)[4] == Kind.OPENINGS]
    assert len(opened) == 2 * NODES + (2 if stage is Kind.OPENING_REQUEST else 0)


def test_a_round_is_paid_before_a_share_is_opened(tmp_path: Path) -> None:
    """If the ledger cannot be written, nobody is asked to open anything."""
    wire = Wire(secure_app(drift), NODES)
    strategy = strategy_of(tmp_path, NODES, 9, secure())

    def full_disk(*args: Any, **kw: Any) -> None:
        raise OSError(28, "No space left on device")

    strategy._privacy_budget._ledger.append = full_disk  # type: ignore[method-assign,assignment]
    with pytest.raises(OSError, match="No space"):
        strategy.start(wire, model((9,)), num_rounds=1)
    kinds = {asked(message) for message in wire.requests}
    assert kinds == {Kind.INVITATION, Kind.NEIGHBOURHOOD, Kind.DELIVERIES, Kind.PARTICIPANTS}


@BOTH
def test_no_reply_holds_anything_but_protocol_bytes(adversary: Adversary, tmp_path: Path) -> None:
    """Every message that crosses the grid is looked at.

    The masked updates are uniform in the ring whatever the update is: chi-square on their
    bytes, a false alarm in 10^6 runs.
    """
    size = 2048
    update = np.full(size, 2.0**-7, np.float32)  # every client's, unclipped, of one known byte

    def constant(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        return [update]

    wire = Wire(secure_app(constant, adversary, examples=lambda _: 31337.0), NODES)
    final(strategy_of(tmp_path, NODES, size, secure(adversary)), wire, model((size,)), 1)
    masked = []
    assert len(wire.replies) == NODES * len(STAGES[adversary])
    for reply in wire.replies:
        assert list(reply.content) == [KEY]
        record = reply.content[KEY]
        assert isinstance(record, ConfigRecord)
        assert list(record) == ["message"]
        carried = said(reply)
        assert update.tobytes()[:64] not in carried
        if carried[4] == Kind.MASKED_UPDATE:
            masked.append(carried[37 + 8 :][: size * 2])  # the packed vector: 17 bits an element
    assert len(masked) == NODES
    assert len(set(masked)) == NODES
    counts = np.bincount(np.frombuffer(b"".join(masked), np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    # Beside the protocol the server sends the model and how it is bounded, in one stage only, and
    # the round's configuration with the invitation too.
    beside = {Kind.INVITATION: {"config"}, Kind.PARTICIPANTS: {"arrays", "config"}}
    for message in wire.requests:
        assert set(message.content) - {KEY} == beside.get(asked(message), set())
        assert is_invitation(message) is (asked(message) is Kind.INVITATION)


def failing(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    if partition == 3:
        raise ValueError("patient 4711 has the disease")
    return drift(partition, number, arrays)


def infinite(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    if partition == 3:
        return [np.full_like(a, np.nan) for a in arrays]
    return drift(partition, number, arrays)


@pytest.mark.parametrize("update", [failing, infinite])
def test_what_goes_wrong_at_a_client_stays_there(update: Any, tmp_path: Path) -> None:
    """It adds zero, and to the server looks like any other: leaving would tell of its data."""
    wire = Wire(secure_app(update), NODES)
    ours = final(strategy_of(tmp_path / "masked", NODES, 9, secure()), wire, model((9,)), 1)
    assert len(wire.replies) == NODES * len(STAGES[CURIOUS])
    masked = [said(reply) for reply in wire.replies if said(reply)[4] == Kind.MASKED_UPDATE]
    assert len({len(message) for message in masked}) == 1
    grid = InProcessGrid(client_app(drift), NODES)
    grid.offline = {4}
    assert_same(ours, final(strategy_of(tmp_path / "plain", NODES, 9, None), grid, model((9,)), 1))


@pytest.mark.parametrize("invited", [True, False], ids=["at the invitation", "in training"])
def test_a_decline_is_sent_and_the_others_go_on(invited: bool, tmp_path: Path) -> None:
    """By a mod in front, which sees the invitation, or by the app, whose client then drops out."""

    def declining(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if context.node_config["partition-id"] == 3 and is_invitation(message) is invited:
            assert message.content.config_records["config"]["server-round"] == 1
            return decline(message, "its budget is spent")
        return call_next(message, context)

    mods = [declining, mod()] if invited else [mod(), declining]
    wire = Wire(client_app(drift, mods=mods), NODES)
    ours = final(strategy_of(tmp_path / "masked", NODES, 9, secure()), wire, model((9,)), 1)
    (declined,) = [reply for reply in wire.replies if reply.has_error()]
    assert (declined.metadata.src_node_id, declined.error.reason) == (4, "its budget is spent")
    grid = InProcessGrid(client_app(drift), NODES)
    grid.offline = {4}
    assert_same(ours, final(strategy_of(tmp_path / "plain", NODES, 9, None), grid, model((9,)), 1))


def garble(kind: str, earlier: list[Message]) -> Callable[[Message, Message], Message]:
    """What nodes 4 and 5 send in place of their reply, at every stage after the first."""

    def alter(message: Message, reply: Message) -> Message:
        earlier.append(reply)
        node = message.metadata.dst_node_id
        if node not in (4, 5) or asked(message) is Kind.INVITATION:
            return reply
        good = said(reply)
        if kind == "a replay":
            replayed = [r for r in earlier if r.metadata.src_node_id == node]
            return forged(message, said(replayed[0]))
        if kind == "another's":
            others = [r for r in earlier if r.metadata.src_node_id == 3]
            return forged(message, said(others[-1])[:-1])
        content: dict[str, Any] = {
            "noise": ConfigRecord({"message": bytes(range(256)) * 40}),
            "too short": ConfigRecord({"message": good[:-1]}),
            "too long": ConfigRecord({"message": good + b"\0"}),
            "no bytes": ConfigRecord({"message": "text"}),
            "more fields": ConfigRecord({"message": good, "num-examples": 3}),
            "metrics": MetricRecord({"message": 1.0}),
            "arrays": ArrayRecord([np.zeros(9, np.float32)]),
            "a huge field": ConfigRecord(
                {"message": good[:37] + (1 << 62).to_bytes(8, "little") + good[45:]}
            ),
        }
        return Message(RecordDict({KEY: content[kind]}), reply_to=message)

    return alter


@pytest.mark.parametrize(
    "kind",
    [
        "noise",
        "too short",
        "too long",
        "no bytes",
        "more fields",
        "metrics",
        "arrays",
        "a huge field",
        "a replay",
        "another's",
    ],
)
@BOTH
def test_garbage_and_replays_cost_their_sender_only(
    kind: str, adversary: Adversary, tmp_path: Path
) -> None:
    masked = strategy_of(tmp_path / "masked", NODES, 9, secure(adversary))
    wire = Wire(secure_app(drift, adversary), NODES, alter=garble(kind, []))
    ours = final(masked, wire, model((9,)), 1)
    grid = InProcessGrid(client_app(drift), NODES)
    grid.offline = {4, 5}
    assert_same(ours, final(strategy_of(tmp_path / "plain", NODES, 9, None), grid, model((9,)), 1))


def test_clients_without_the_mod_are_not_in_the_sum(tmp_path: Path) -> None:
    """They fail at the invitation, which holds no model: their update never crosses the grid."""
    wire = Wire(client_app(drift), NODES)
    with pytest.raises(NoUsableReplyError, match="SecureAggregationMod"):
        strategy_of(tmp_path, NODES, 9, secure()).start(wire, model((9,)), num_rounds=1)
    assert not read_ledger(tmp_path / "ledger.jsonl").records
    assert all(reply.has_error() for reply in wire.replies)
    assert {asked(message) for message in wire.requests} == {Kind.INVITATION}


@pytest.mark.parametrize("with_mod", [1, 2])
def test_a_round_that_anybody_joined_is_paid(tmp_path: Path, with_mod: int) -> None:
    """One client with the mod more or less decides nothing of what a joined round pays."""
    plain, masked = client_app(drift), secure_app(drift)

    def app(message: Message, context: Any) -> Message:
        place = int(context.node_config["partition-id"])
        return (masked if place < with_mod else plain)(message, context)

    grid = InProcessGrid(app, NODES)  # type: ignore[arg-type]
    result = strategy_of(tmp_path, NODES, 9, secure()).start(grid, model((9,)), num_rounds=1)
    assert result.privacy is not None
    assert "too few clients joined" in str(result.privacy.stopped)
    assert {record.round for record in read_ledger(tmp_path / "ledger.jsonl").records} == {1}


def test_silent_clients_are_waited_for_no_longer_than_the_stage_says(tmp_path: Path) -> None:
    class Silent(InProcessGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            for identifier in message_ids:
                if self._waiting[identifier].metadata.dst_node_id != 7:
                    yield from super().pull_messages([identifier])

    setting = secure(stage_timeout=0.05)
    ours = final(
        strategy_of(tmp_path / "masked", NODES, 9, setting),
        Silent(secure_app(drift), NODES),
        model((9,)),
        1,
    )
    grid = InProcessGrid(client_app(drift), NODES)
    grid.offline = {7}
    assert_same(ours, final(strategy_of(tmp_path / "plain", NODES, 9, None), grid, model((9,)), 1))


def test_it_runs_under_flowers_own_loop(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path / "masked", NODES, 9, secure())
    result = Strategy.start(strategy, Wire(secure_app(drift), NODES), model((9,)), num_rounds=2)
    plain = strategy_of(tmp_path / "plain", NODES, 9, None)
    theirs = final(plain, InProcessGrid(client_app(drift), NODES), model((9,)))
    assert_same(list(result.arrays.to_numpy_ndarrays()), theirs)


@BOTH
@pytest.mark.parametrize("loop", [DPFedAvg.start, Strategy.start], ids=["ours", "Flower's"])
def test_a_strategy_that_is_started_again_begins_another_run(
    loop: Any, adversary: Adversary, tmp_path: Path
) -> None:
    """To its clients too, who play no round of a run twice; from the model that the first made."""
    wire = Wire(secure_app(drift, adversary), NODES)
    strategy = strategy_of(tmp_path / "masked", NODES, 9, secure(adversary))
    plain = strategy_of(tmp_path / "plain", NODES, 9, None)
    theirs = InProcessGrid(client_app(drift), NODES)
    ours = expected = model((9,))
    for _ in range(2):
        ours = loop(strategy, wire, ours, num_rounds=2).arrays
        expected = loop(plain, theirs, expected, num_rounds=2).arrays
        assert_same(list(ours.to_numpy_ndarrays()), list(expected.to_numpy_ndarrays()))
    assert not any(reply.has_error() for reply in wire.replies)


def test_a_resumed_run_goes_on(tmp_path: Path) -> None:
    """Also where the interrupted round is played again by clients who were in it."""
    kept = tmp_path / "checkpoint"
    app = secure_app(drift)
    wire = Wire(app, NODES)
    first = strategy_of(tmp_path / "masked", NODES, 9, secure(), checkpointing=Checkpointing(kept))
    first.start(wire, model((9,)), num_rounds=1)
    # Round 2 comes as far as its keys, and the server dies.
    with first._privacy_budget.held(first._read_checkpoint):
        assert list(first.configure_train(2, model((9,)), ConfigRecord(), wire))
    again = strategy_of(
        tmp_path / "masked",
        NODES,
        9,
        secure(stage_timeout=5.0),
        checkpointing=Checkpointing(resume=kept),
    )
    ours = final(again, wire, model((9,)), 3)
    plain = strategy_of(tmp_path / "plain", NODES, 9, None)
    assert_same(ours, final(plain, InProcessGrid(client_app(drift), NODES), model((9,)), 3))
    for other in (None, secure(min_clients=4), secure(MALICIOUS)):
        with pytest.raises(ValueError, match="secure_aggregation"):
            strategy_of(
                tmp_path / "masked",
                NODES,
                9,
                other,
                mechanism=None,
                checkpointing=Checkpointing(resume=kept),
            )


def test_a_cohort_of_a_thousand(tmp_path: Path) -> None:
    few = Adversary(
        max_corrupt_fraction=0.01
    )  # few neighbours: it is the number of clients that is tested
    wire = InProcessGrid(secure_app(drift, few, min_clients=500), 1000)
    setting = secure(few, min_clients=500, max_dropout_fraction=0.01)
    ours = final(strategy_of(tmp_path / "masked", 1000, 50, setting), wire, model((50,)), 1)
    plain = strategy_of(tmp_path / "plain", 1000, 50, None)
    theirs = final(plain, InProcessGrid(client_app(drift), 1000), model((50,)), 1)
    assert_same(ours, theirs)


def test_the_noise_is_that_of_a_run_without_it(tmp_path: Path) -> None:
    """Chi-square on its variance, a false alarm in 10^6 runs; ε is the same."""
    size, z = 20_000, 5.0
    strategy = strategy_of(tmp_path / "masked", NODES, size, secure(), noise_multiplier=z)
    (w,) = final(strategy, InProcessGrid(secure_app(idle), NODES), model((size,)), 1)
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], size)
    assert low <= float(np.square(w.astype(np.float64)).sum()) / (z / NODES) ** 2 <= high
    plain = strategy_of(tmp_path / "plain", NODES, size, None, noise_multiplier=z)
    final(plain, InProcessGrid(client_app(idle), NODES), model((size,)), 1)
    assert strategy.report().epsilon == plain.report().epsilon


def idle(partition: int, number: int, arrays: list[Any]) -> list[Any]:
    return [np.zeros_like(a) for a in arrays]


def test_a_presence_that_decides_whether_a_round_opens_is_charged(tmp_path: Path) -> None:
    """With every round, in the ledger, to δ; and the results say so."""
    adversary = Adversary(max_corrupt_fraction=0.05)
    setting = secure(adversary, min_clients=40, dropout_probability=0.05)
    strategy = strategy_of(tmp_path, 200, 9, setting, sampling=Poisson(0.5), noise_multiplier=2.0)
    grid = InProcessGrid(secure_app(idle, adversary), 200)
    report = strategy.start(grid, model((9,)), num_rounds=1).privacy
    assert report is not None
    assert report.secure_aggregation is not None
    release, charge = (r.event for r in read_ledger(tmp_path / "ledger.jsonl").records)
    assert release == GaussianRelease(2.0, Poisson(0.5))
    assert isinstance(charge, AdditiveDelta)
    assert 0 < charge.delta < 1e-6
    assert report.secure_aggregation.presence_delta == charge.delta
    assert report.secure_aggregation.dropout_probability == 0.05
    assert report.epsilon == epsilon([release, charge], delta=1e-5)
    assert epsilon([release], delta=1e-5) < report.epsilon


def test_a_budget_counts_what_presence_decides(tmp_path: Path) -> None:
    """Where cohorts often fall below the min_clients, no noise_placement is enough."""
    setting = secure(
        Adversary(max_corrupt_fraction=0.05),
        min_clients=95,
        dropout_probability=0.05,
        max_dropout_fraction=0.05,
    )
    strategy = strategy_of(
        tmp_path,
        200,
        9,
        setting,
        sampling=Poisson(0.5),
        noise_multiplier=None,
        budget=Budget(3.0, 1e-5),
    )
    with pytest.raises(ValueError, match="presence can decide whether it opens, so 5 rounds"):
        strategy.start(InProcessGrid(secure_app(idle), 200), model((9,)), num_rounds=5)


@pytest.mark.parametrize(
    "budget", [{"noise_multiplier": 1.0}, {"budget": Budget(3.0, 1e-5)}], ids=str
)
def test_a_run_that_could_open_no_round_does_not_begin(
    budget: dict[str, float], tmp_path: Path
) -> None:
    """Else it would pay for each. What to change is said once, by what plans the rounds."""
    with pytest.raises(ValueError, match="5 clients of 5 drawn cannot withstand") as error:
        strategy_of(
            tmp_path,
            5,
            9,
            secure(MALICIOUS, max_dropout_fraction=0.2),
            **({"noise_multiplier": None} | budget),
        )
    assert "draw more clients or expect fewer dropouts" in str(error.value)
    assert "raise" not in str(error.value)
    assert not (tmp_path / "ledger.jsonl").exists()
    strategy_of(tmp_path, 5, 9, secure(MALICIOUS, max_dropout_fraction=0.1), noise_multiplier=1.0)


@pytest.mark.parametrize(
    ("nodes", "adversary", "max_dropout_fraction", "advice"),
    [
        (12, CURIOUS, 0.1, r"fits: secure_aggregation\.max_dropout_fraction = 0\.2$"),
        (4, MALICIOUS, 0.2, "Nothing near them fits: draw more clients"),
    ],
    ids=["more", "neither"],
)
def test_a_budget_that_presence_passes_names_what_would_help(
    nodes: int, adversary: Adversary, max_dropout_fraction: float, advice: str, tmp_path: Path
) -> None:
    strategy = strategy_of(
        tmp_path,
        nodes,
        9,
        secure(adversary, max_dropout_fraction=max_dropout_fraction, dropout_probability=0.002),
        noise_multiplier=None,
        budget=Budget(epsilon=3.0, delta=1e-3),
    )
    with pytest.raises(ValueError, match=advice):
        strategy.start(InProcessGrid(secure_app(idle), nodes), model((9,)), num_rounds=1)


def test_with_distributed_noise_both_epsilons_are_reported(tmp_path: Path) -> None:
    """The noise in the model is that of the largest cohort, a share of it unknown to the server."""
    nodes, size, z = 24, 20_000, 3.0
    setting = secure(min_clients=12, noise_placement="distributed", max_clients=30)
    strategy = strategy_of(tmp_path, nodes, size, setting, noise_multiplier=z, sampling=Full())
    result = strategy.start(InProcessGrid(secure_app(idle), nodes), model((size,)), num_rounds=1)
    report = result.privacy
    assert report is not None
    assert report.secure_aggregation is not None
    (w,) = result.arrays.to_numpy_ndarrays()
    honest = 12 - 3  # a tenth of thirty collude
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], size)
    square = float(np.square(w.astype(np.float64)).sum()) / (z / nodes) ** 2 / (30 / honest)
    assert low <= square <= high
    one = epsilon([GaussianRelease(z, Full())], delta=1e-5)
    assert report.secure_aggregation.epsilon_against_server == pytest.approx(one, rel=0.05)
    assert report.epsilon < report.secure_aggregation.epsilon_against_server
    told = report.as_dict()
    assert told["mechanism"] == "distributed-discrete-gaussian"
    assert told["secure_aggregation"]["noise_placement"] == "distributed"
    event, _ = (record.event for record in read_ledger(tmp_path / "ledger.jsonl").records)
    assert isinstance(event, DiscreteGaussianSum)
    assert (event.shares, event.honest) == (30 - 3, honest)


def test_a_report_counts_what_was_paid_after_the_run(tmp_path: Path) -> None:
    """As an encrypted round pays: the server noises reports that it saw."""
    setting = secure(min_clients=5, noise_placement="distributed", max_clients=15)
    strategy = strategy_of(tmp_path, 12, 9, setting, noise_multiplier=3.0, sampling=Full())
    before = strategy.start(InProcessGrid(secure_app(idle), 12), model((9,)), num_rounds=1).privacy
    assert before is not None
    assert before.secure_aggregation is not None
    assert before.secure_aggregation.epsilon_against_server < 10
    paid = read_ledger(tmp_path / "ledger.jsonl")
    with Ledger.open(tmp_path / "ledger.jsonl", population=paid.population) as ledger:
        ledger.append(GaussianRelease(3.0, Full()), run="encrypted round", round=0)
        after = strategy.report()  # while another holds the ledger
    assert after.secure_aggregation is not None
    assert after.secure_aggregation.epsilon_against_server == math.inf
    assert after.epsilon == strategy.epsilon() == ledger.epsilon(1e-5) > before.epsilon
    assert after.epsilon_without_amplification > before.epsilon_without_amplification
    assert strategy.privacy_spent().num_releases == len(paid.records) + 1
    assert after.epsilon_by_round == before.epsilon_by_round


def test_distributed_noise_is_calibrated(tmp_path: Path) -> None:
    setting = secure(min_clients=12, noise_placement="distributed", max_clients=30)
    strategy = strategy_of(
        tmp_path, 24, 9, setting, noise_multiplier=None, budget=Budget(2.0, 1e-5), sampling=Full()
    )
    result = strategy.start(InProcessGrid(secure_app(idle), 24), model((9,)), num_rounds=2)
    assert result.privacy is not None
    assert 1.9 < result.privacy.epsilon <= 2.0
    assert result.privacy.stopped is None


def test_a_cohort_beyond_the_largest_is_not_asked(tmp_path: Path) -> None:
    setting = secure(min_clients=6, noise_placement="distributed", max_clients=NODES - 1)
    wire = Wire(secure_app(drift), NODES)
    strategy = strategy_of(tmp_path, NODES, 9, setting, noise_multiplier=3.0)
    report = strategy.start(wire, model((9,)), num_rounds=1).privacy
    assert report is not None
    assert report.secure_aggregation is not None
    assert report.secure_aggregation.aborted_rounds == (1,)
    assert not wire.requests
    assert {record.round for record in read_ledger(tmp_path / "ledger.jsonl").records} == {1}
    assert report.epsilon == math.inf  # everybody is always drawn: such a round never opens


def test_results_say_what_held(tmp_path: Path) -> None:
    strategy = strategy_of(tmp_path / "masked", NODES, 9, secure(MALICIOUS, min_clients=6))
    told = strategy.report().as_dict()["secure_aggregation"]
    assert told["epsilon_against_server"] is None
    assert told["server"] == "malicious"
    assert told["max_corrupt_fraction"] == 0.1
    assert told["min_clients"] == 6
    assert told["noise_placement"] == "central"
    assert strategy_of(tmp_path / "plain", NODES, 9, None).report().secure_aggregation is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mechanism": ContinuousGaussian()}, "mechanism is 'continuous-gaussian'"),
        ({"clipping": AdaptiveClipping()}, "clipping is adaptive"),
        ({"metrics": Metrics(train=PublicMetrics())}, "metrics.train is set"),
        (
            {
                "metrics": Metrics(
                    train=NoisedMetrics(ranges={"loss": (0, 1)}, noise_multiplier=1.0)
                )
            },
            "metrics.train is set",
        ),
        (
            {"metrics": Metrics(fraction_evaluate=0.5, evaluate=PublicMetrics())},
            "fraction_evaluate is 0.5",
        ),
        ({"sampling": Poisson(0.2)}, "draws 2.4 clients on average"),
    ],
    ids=lambda value: None if isinstance(value, dict) else value,
)
def test_what_needs_single_replies_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        strategy_of(tmp_path, NODES, 9, secure(), **settings)


def test_the_setting_is_checked() -> None:
    for wrong, message in (
        ({"min_clients": 2}, "min_clients is 2"),
        ({"max_dropout_fraction": 1.0}, r"max_dropout_fraction is 1\.0"),
        ({"stage_timeout": 0.0}, r"stage_timeout is 0\.0"),
        ({"dropout_probability": 1.5}, r"dropout_probability is 1\.5"),
        ({"noise_placement": "some"}, "noise_placement is 'some'"),
        ({"max_clients": 2}, "max_clients is 2"),
        ({"noise_placement": "distributed"}, "max_clients is not set"),
        ({"noise_placement": "distributed", "max_clients": 50}, r"must lie above colluders \(5\)"),
    ):
        with pytest.raises(ValueError, match=message):
            secure(**wrong)
    with pytest.raises(ValueError, match="distributed' against a malicious server"):
        secure(MALICIOUS, min_clients=20, noise_placement="distributed", max_clients=50)
    with pytest.raises(ValueError, match="client_public_keys is empty"):
        secure(MALICIOUS, client_public_keys=())


def test_why_a_round_was_aborted_is_for_the_operator(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("bloomseal.operator")
    logger.addHandler(caplog.handler)
    grid = InProcessGrid(secure_app(drift), NODES)
    grid.offline = set(range(3, NODES + 1))
    strategy_of(tmp_path, NODES, 9, secure()).start(grid, model((9,)), num_rounds=1)
    assert "aborted, nothing is opened: 2 clients advertised keys; 3 are needed" in caplog.text
