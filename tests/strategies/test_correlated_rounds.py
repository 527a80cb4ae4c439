"""DPFedAvg with correlated noise: turns, rows, what is paid, and what is taken back."""

import itertools
import math
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from flwr.proto.node_pb2 import NodeInfo

from privacy.accounting import (
    AdditiveDelta,
    Full,
    GaussianRelease,
    GroupRelease,
    Ledger,
    Poisson,
    epsilon,
    read_ledger,
)
from privacy.correlated_noise import BandedFactor, BLTFactor, Factor, NoiseInstance
from privacy.mechanisms import SeededRandomness
from strategies import (
    BLT,
    AdaptiveClipping,
    BandedMF,
    Budget,
    Checkpointing,
    CyclicGroups,
    DPFedAvg,
    Metrics,
    NoisedMetrics,
    Population,
    SecureAggregation,
    ServerAdam,
    ServerSGD,
)
from strategies.checkpoint import Checkpoint
from strategies.correlated_rounds import CorrelatedRounds, group_of, secret_file
from strategies.in_process import InProcessGrid
from tests.strategies.federation import grid_of, idle, model, raising
from tests.strategies.secure_aggregation.federation import secure, secure_app

SIZE = 40
LISTED = Population(tuple(f"node:{i}" for i in range(1, 31)))  # known again when a run is resumed


class Asked(InProcessGrid):
    """A grid that keeps who was asked to train, round by round."""

    def __init__(self, nodes: int = 30) -> None:
        self.__dict__.update(grid_of(nodes).__dict__)
        self.by_round: dict[int, set[int]] = {}

    def push_messages(self, messages: Any) -> Any:
        pushed = list(messages)
        if pushed and pushed[0].metadata.message_type == "train":
            (config,) = pushed[0].content.config_records.values()
            cohort = {message.metadata.dst_node_id for message in pushed}
            self.by_round[config["server-round"]] = cohort
        return super().push_messages(pushed)

    @property
    def cohorts(self) -> list[set[int]]:
        """From the first round with a cohort to the last, those in which it was empty included."""
        rounds = range(min(self.by_round), max(self.by_round) + 1)
        return [self.by_round.get(number, set()) for number in rounds]


def banded(folder: Path, **settings: Any) -> DPFedAvg:
    usual: dict[str, Any] = {
        "population": LISTED,
        "sampling": CyclicGroups(4),
        "mechanism": BandedMF(4),
        "clipping": 1.0,
        "budget": Budget(8.0, 1e-5),
        "optimizer": ServerSGD(momentum=0.5),
        "ledger": folder / "ledger.jsonl",
        "min_available_nodes": 0,
        "checkpointing": Checkpointing(folder / "checkpoint", resume=True),
    }
    return DPFedAvg(**(usual | settings))


def paid(folder: Path) -> list[GroupRelease]:
    events = [record.event for record in read_ledger(folder / "ledger.jsonl").records]
    assert all(isinstance(event, GroupRelease) for event in events)
    return events  # type: ignore[return-value]


def test_each_client_is_asked_every_fourth_round_and_pays_for_those(tmp_path: Path) -> None:
    strategy, grid = banded(tmp_path), Asked()
    result = strategy.start(grid, model((SIZE,)), num_rounds=9)
    assert len(grid.cohorts) == 9
    for number, cohort in enumerate(grid.cohorts):
        assert cohort == grid.cohorts[number % 4]
    assert set.union(*grid.cohorts) == set(range(1, 31))
    assert sum(map(len, grid.cohorts[:4])) == 30  # a client is in one group
    z = strategy.noise_multiplier
    three = epsilon({GaussianRelease(z, Full()): 3}, delta=1e-5)
    assert [event.row for event in paid(tmp_path)] == list(range(9))
    report = result.privacy
    assert report is not None
    assert report.epsilon == report.epsilon_without_amplification == three
    assert 7.99 < three <= 8.0
    assert list(report.epsilon_by_round.values())[3] < list(report.epsilon_by_round.values())[4]
    assert (report.mechanism, report.sampling) == ("banded-mf", "cyclic-groups")
    assert report.sampling_rate == 0.25
    assert not secret_file(tmp_path / "checkpoint").exists(), "the run is over"


def test_a_cohort_drawn_within_the_group_is_amplified(tmp_path: Path) -> None:
    strategy, grid = banded(tmp_path, sampling=CyclicGroups(4, 0.5)), Asked()
    result = strategy.start(grid, model((SIZE,)), num_rounds=8)
    z = strategy.noise_multiplier
    assert result.privacy is not None
    assert result.privacy.epsilon == epsilon({GaussianRelease(z, Poisson(0.5)): 2}, delta=1e-5)
    assert result.privacy.sampling_rate == 0.125
    cohorts = [grid.by_round.get(number, set()) for number in range(1, 9)]
    for early, late in itertools.combinations(range(8), 2):
        assert early % 4 == late % 4 or not cohorts[early] & cohorts[late]


def test_groups_are_hashes_of_single_identities(tmp_path: Path) -> None:
    key = bytes(range(32))
    names = [f"key:{i}" for i in range(4000)]
    sizes = np.bincount([group_of(name, key, 5) for name in names], minlength=5)
    assert abs(sizes - 800).max() < 150  # 6 deviations
    assert group_of("key:7", key, 5) == group_of("key:7", key, 5)
    others = [group_of(name, bytes(32), 5) == group_of(name, key, 5) for name in names]
    assert 650 < sum(others) < 950


def steps(strategy: DPFedAvg) -> list[np.ndarray]:  # type: ignore[type-arg]
    """The noisy averages that the server's optimizer is given."""
    taken: list[np.ndarray] = []  # type: ignore[type-arg]
    inner = strategy.optimizer.step

    def step(arrays: Any, update: Any) -> Any:
        taken.append(np.array(update[0], dtype=np.float64))
        return inner(arrays, update)

    strategy.optimizer.step = step  # type: ignore[method-assign]
    return taken


def whitened(rows: np.ndarray, c: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(
        [sum(c[j] * rows[t - j] for j in range(min(len(c), t + 1))) for t in range(len(rows))]
    )


@pytest.mark.parametrize("mechanism", [BandedMF(4), BLT()], ids=["banded", "blt"])
def test_noise_of_a_run_is_white_under_its_factor(mechanism: Any, tmp_path: Path) -> None:
    """With clients that move nothing, what is released is the noise; a false alarm in 10⁹."""
    size, rounds = 20_000, 8
    strategy = banded(tmp_path, mechanism=mechanism)
    seen = steps(strategy)
    strategy.start(grid_of(30), model((size,)), num_rounds=rounds)
    factor = mechanism.factor(rounds=rounds, momentum=0.5, groups=4)
    x = np.array(seen) * (30 / 4)
    sigma = strategy.noise_multiplier * factor.norm
    white = whitened(x, factor.coefficients) / sigma
    gram = white @ white.T / size
    assert np.abs(gram - np.eye(rounds)).max() < 6.5 * np.sqrt(2 / size)
    plain = x @ x.T / size / sigma**2
    assert plain[3, 2] < -0.3


def test_noise_is_planned_for_the_momentum_of_the_server(tmp_path: Path) -> None:
    blind = BandedMF(4).factor(rounds=20, momentum=0.0, groups=4)
    assert BandedMF(4).factor(rounds=20, momentum=0.9, groups=4) != blind
    strategy = banded(tmp_path, optimizer=ServerSGD(), mechanism=BandedMF(1))
    seen = steps(strategy)
    strategy.start(grid_of(30), model((20_000,)), num_rounds=4)
    x = np.array(seen)
    x /= x.std()
    assert np.abs(x @ x.T / 20_000 - np.eye(4)).max() < 0.06  # independent noise


def interrupted(
    folder: Path, number: int, *, rounds: int = 9, rate: float = 1.0, **settings: Any
) -> Asked:
    """A run that ends with an exception after the release of a round, before its checkpoint."""
    strategy, grid = banded(folder, sampling=CyclicGroups(4, rate), **settings), Asked()
    aggregate = strategy.aggregate_train

    def failing(server_round: int, replies: Any) -> Any:
        released = aggregate(server_round, replies)
        if server_round == number:
            raise KeyboardInterrupt
        return released

    strategy.aggregate_train = failing  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid, model((SIZE,)), num_rounds=rounds)
    strategy._privacy_budget._ledger.close()
    return grid


def test_a_round_is_repeated_with_another_row_and_other_clients(tmp_path: Path) -> None:
    before = interrupted(tmp_path, 6)
    kept = NoiseInstance.load(secret_file(tmp_path / "checkpoint"))
    assert kept.rows == 6
    strategy, grid = banded(tmp_path), Asked()
    strategy.start(grid, model((SIZE,)), num_rounds=9)
    assert before.cohorts[5] != grid.cohorts[0], "round 6, in row 6 and not 5"
    assert grid.cohorts[0] == before.cohorts[2]
    events = paid(tmp_path)
    assert [event.row for event in events] == list(range(10))
    assert len({event.instance for event in events}) == 1
    z = strategy.noise_multiplier
    assert strategy.epsilon() == epsilon({GaussianRelease(z, Full()): 3}, delta=1e-5)


@pytest.mark.parametrize("mechanism", [BandedMF(4), BLT()], ids=["banded", "blt"])
def test_noise_that_the_model_holds_is_taken_back_after_a_crash(
    mechanism: Any, tmp_path: Path
) -> None:
    """And that of the row that came into no model is not: white under the factor without it."""
    size = 20_000
    strategy = banded(tmp_path, mechanism=mechanism)
    seen = steps(strategy)
    inner = strategy._keep

    def keep(number: int, arrays: ArrayRecord) -> None:
        if number == 5:
            raise KeyboardInterrupt
        inner(number, arrays)

    strategy._keep = keep  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        strategy.start(grid_of(30), model((size,)), num_rounds=9)
    strategy._privacy_budget._ledger.close()
    resumed = banded(tmp_path, mechanism=mechanism)
    more = steps(resumed)
    resumed.start(grid_of(30), model((size,)), num_rounds=9)
    factor = mechanism.factor(rounds=9, momentum=0.5, groups=4)
    c = factor.coefficients
    rows = np.array([*seen, *more]) * 7.5  # row 4 is in no model
    white = []
    for t in range(len(rows)):
        past = [(j, t - j) for j in range(min(len(c), t + 1)) if t - j != 4 or j == 0]
        white.append(sum(c[j] * rows[place] for j, place in past))
    sigma = strategy.noise_multiplier * factor.norm
    gram = np.array(white) @ np.array(white).T / size / sigma**2
    assert len(rows) == 10
    assert np.abs(gram - np.eye(10)).max() < 6.5 * np.sqrt(2 / size)


def test_buffers_are_paid_turn_by_turn_and_begun_anew_for_more_rounds_than_they_are_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, 6, mechanism=BLT())
    strategy = banded(tmp_path, mechanism=BLT())
    strategy.start(grid_of(30), model((SIZE,)), num_rounds=9)
    z = strategy.noise_multiplier
    events = paid(tmp_path)
    assert [event.row for event in events] == list(range(10))
    assert {event.release for event in events} == {GaussianRelease(z, Full())}
    assert strategy.epsilon() == epsilon({GaussianRelease(z, Full()): 3}, delta=1e-5)
    assert "New noise" not in caplog.text
    (tmp_path / "longer").mkdir()
    again = {"mechanism": BLT(), "noise_multiplier": 9.0}
    interrupted(tmp_path / "longer", 6, **again)
    banded(tmp_path / "longer", **again).start(grid_of(30), model((SIZE,)), num_rounds=14)
    assert "it is for 13 rounds, 6 were begun, and 9 are to come" in caplog.text
    assert len({event.instance for event in paid(tmp_path / "longer")}) == 2


class KilledError(BaseException):
    """The process ends here."""


def raise_killed(*_: Any, **__: Any) -> Any:
    raise KilledError


STEPS: dict[str, tuple[Any, str]] = {
    "the file of noise": (NoiseInstance, "save"),
    "asking": (InProcessGrid, "push_messages"),
    "the ledger": (Ledger, "append"),
    "the noise": (CorrelatedRounds, "_draw"),
    "the step": (ServerSGD, "step"),
    "the checkpoint": (Checkpoint, "save"),
}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_and_resumed(
    step: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice. No noise is drawn for two sums, all that is drawn is paid, no client comes early."""
    owner, name = STEPS[step]
    drawn: list[tuple[str, int, bytes | None]] = []
    asked: list[tuple[int, set[int]]] = []  # by row
    calls, fatal = 0, 0
    inner, draw = getattr(owner, name), CorrelatedRounds._draw

    def drawing(self: CorrelatedRounds) -> Any:
        assert self._instance is not None
        drawn.append((self._name, self._row, self._instance.keys[-1]))
        return draw(self)

    def begin_row(self: CorrelatedRounds) -> Any:
        turn = begin(self)
        asked.append((self._row, set()))
        return turn

    begin = CorrelatedRounds.begin_row
    monkeypatch.setattr(CorrelatedRounds, "begin_row", begin_row)
    monkeypatch.setattr(CorrelatedRounds, "_draw", drawing)
    inner = getattr(owner, name)

    def dying(*args: Any, **kw: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fatal and when == "before":
            raise KilledError
        result = inner(*args, **kw)
        if calls == fatal and when == "after":
            raise KilledError
        return result

    monkeypatch.setattr(owner, name, dying)
    for fatal in (3, 5, 0):
        calls = 0
        strategy, grid, begun = banded(tmp_path), Asked(), len(asked)
        try:
            strategy.start(grid, model((SIZE,)), num_rounds=10)
        except KilledError:
            assert fatal
        else:
            assert not fatal
        strategy._privacy_budget._ledger.close()
        for (_, cohort), nodes in zip(asked[begun:], grid.cohorts, strict=False):
            cohort |= nodes
    events = paid(tmp_path)
    keys = [key for _, _, key in drawn]
    assert None not in keys
    assert len(set(keys)) == len(keys)
    rows = [(instance, row) for instance, row, _ in drawn]
    assert len(set(rows)) == len(rows)
    assert set(rows) <= {(event.instance, event.row) for event in events}
    assert len({event.instance for event in events}) == 1, "the noise was never lost"
    assert len({event.row for event in events}) == len(events)
    for (row, cohort), (later, other) in itertools.combinations(asked, 2):
        assert row < later
        assert later - row >= 4 or not cohort & other
    z = strategy.noise_multiplier
    turns = max(np.bincount([row % 4 for _, row in rows]))
    assert epsilon({GaussianRelease(z, Full()): int(turns)}, delta=1e-5) <= strategy.epsilon() <= 8
    assert len(events) in (10, 11, 12), "a round, or two, that were paid twice"
    assert not secret_file(tmp_path / "checkpoint").exists()


def people(first: int) -> Population:
    names = tuple(f"p{first + i}" for i in range(30))
    return Population(names, identify=lambda node: f"p{first + node.node_id - 1}")


@pytest.mark.parametrize(
    ("before", "after"), [(30, 30), (people(0), people(100))], ids=["a number", "listed anew"]
)
def test_clients_that_are_not_known_again_begin_without_a_past(
    before: Any, after: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nodes have a new key each time they start, and may connect only once a run has begun."""
    interrupted(tmp_path, 6, population=before)
    strategy, grid = banded(tmp_path, population=after), Asked()
    grid._nodes = [NodeInfo(node_id=i, public_key=secrets.token_bytes(32)) for i in range(1, 31)]
    get_nodes, calls = grid.get_nodes, itertools.count()
    grid.get_nodes = lambda: get_nodes() if next(calls) else []  # type: ignore[method-assign]
    strategy.start(grid, model((SIZE,)), num_rounds=9)
    assert "not known again" in caplog.text
    assert len({event.instance for event in paid(tmp_path)}) == 2


def test_a_run_that_ends_early_says_that_its_secret_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    enough_for_two_turns = {"noise_multiplier": 2.0, "budget": Budget(4.0, 1e-5)}
    result = banded(tmp_path, **enough_for_two_turns).start(Asked(), model((SIZE,)), num_rounds=40)
    assert result.privacy is not None
    assert result.privacy.stopped is not None
    file = secret_file(tmp_path / "checkpoint")
    assert file.exists()
    assert f"{file} is left for a run that goes on" in caplog.text


def test_a_start_for_fewer_rounds_than_were_planned_leaves_the_past_noise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Interrupted with a checkpoint of round 5 of 9; nothing is played before the last start."""
    interrupted(tmp_path, 6)
    file = secret_file(tmp_path / "checkpoint")
    for fewer in (3, 5):
        caplog.clear()
        banded(tmp_path).start(Asked(), model((SIZE,)), num_rounds=fewer)
        assert file.exists()
        assert f"{file} is left for a run that goes on" in caplog.text
    banded(tmp_path).start(Asked(), model((SIZE,)), num_rounds=9)
    assert "New noise" not in caplog.text
    assert len({event.instance for event in paid(tmp_path)}) == 1
    assert not file.exists()


def test_a_finished_run_that_was_killed_before_it_forgot_is_ended_by_the_next_start(
    tmp_path: Path,
) -> None:
    strategy = banded(tmp_path)
    strategy._finished = raise_killed  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        strategy.start(Asked(), model((SIZE,)), num_rounds=5)
    assert secret_file(tmp_path / "checkpoint").exists()
    banded(tmp_path).start(Asked(), model((SIZE,)), num_rounds=5)
    assert not secret_file(tmp_path / "checkpoint").exists()


def test_the_same_list_is_known_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    interrupted(tmp_path, 6, population=people(0))
    banded(tmp_path, population=people(0)).start(Asked(), model((SIZE,)), num_rounds=9)
    assert "New noise" not in caplog.text
    assert "could be read by others" not in caplog.text
    assert len({event.instance for event in paid(tmp_path)}) == 1


def test_a_secret_that_others_could_read_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, 6, population=people(0))
    file = secret_file(tmp_path / "checkpoint")
    file.chmod(0o644)
    banded(tmp_path, population=people(0)).start(Asked(), model((SIZE,)), num_rounds=9)
    assert f"{file} could be read by others" in caplog.text


@pytest.mark.parametrize("population", [30, people(0)])
def test_a_number_is_said_to_lose_its_past(
    population: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    banded(tmp_path, population=population).start(Asked(), model((SIZE,)), num_rounds=1)
    assert ("cannot go on with its past noise" in caplog.text) == (population == 30)


def test_a_run_that_was_ended_before_its_first_round_lost_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = banded(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(CorrelatedRounds, "begin_row", raise_killed)
        with pytest.raises(KilledError):
            strategy.start(Asked(), model((SIZE,)), num_rounds=9)
    banded(tmp_path).start(Asked(), model((SIZE,)), num_rounds=3)
    assert "New noise" not in caplog.text


@pytest.mark.parametrize(
    "loss",
    [
        "lost",
        "older",
        "older, with its checkpoint",
        "damaged",
        "a huge number",
        "its last key damaged",
        "of a row that was not drawn",
        "of another run",
    ],
)
def test_lost_noise_is_begun_anew_and_both_instances_are_paid(
    loss: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = secret_file(tmp_path / "checkpoint")
    if loss.startswith("older"):
        interrupted(tmp_path, 4)
        old = [path.read_bytes() for path in (file, tmp_path / "checkpoint")]
        interrupted(tmp_path, 6)
        file.write_bytes(old[0])
        if loss != "older":
            (tmp_path / "checkpoint").write_bytes(old[1])
    else:
        interrupted(tmp_path, 6)
    if loss == "lost":
        file.unlink()
    elif loss == "damaged":
        file.write_bytes(file.read_bytes()[:-9])
    elif loss == "a huge number":
        sigma = NoiseInstance.load(file).sigma.hex()
        file.write_text(file.read_text().replace(sigma, "0x1p99999"))
    elif loss == "its last key damaged":
        key = NoiseInstance.load(file).keys[-1]
        assert key is not None
        file.write_text(file.read_text().replace(key.hex(), bytes([key[0] ^ 1, *key[1:]]).hex()))
    elif loss == "of a row that was not drawn":  # an older file, which fits itself
        instance = NoiseInstance.load(file)
        rows = replace(instance, keys=(*instance.keys[:4], bytes(32)), digests=instance.digests[:5])
        digests = (*rows.digests, rows.noise().digest())
        replace(rows, keys=(*rows.keys, instance.keys[5]), digests=digests).save(file)
    elif loss == "of another run":
        replace(NoiseInstance.load(file), name="0" * 16).save(file)
    rounds_before = len(paid(tmp_path))
    with pytest.raises(ValueError, match="other settings"):
        banded(tmp_path, clipping=2.0)
    strategy = banded(tmp_path)
    strategy.start(grid_of(30), model((SIZE,)), num_rounds=9)
    assert "New noise is begun" in caplog.text
    assert "up to 4 rounds early" in caplog.text
    events = paid(tmp_path)
    first, second = events[0].instance, events[-1].instance
    assert first != second
    assert [event.row for event in events[rounds_before:]] == list(
        range(len(events) - rounds_before)
    )
    z = strategy.noise_multiplier
    ends = strategy.epsilon()
    turns = math.ceil(rounds_before / 4) + math.ceil((len(events) - rounds_before) / 4)
    assert ends <= epsilon({GaussianRelease(z, Full()): turns}, delta=1e-5)
    assert ends <= 8.0
    for event in events:
        for secret in NoiseInstance.load(file).keys if file.exists() else ():
            assert secret is None or secret.hex() not in repr(event)


@pytest.mark.parametrize(
    ("mechanism", "rate", "other"),
    [
        (BLT(), 1.0, BLTFactor((9000,), (50_000,), 40, 40)),
        (BandedMF(4), 0.5, BLTFactor((9000,), (50_000,), 40, 4)),
        (BandedMF(4), 1.0, BandedFactor((1 << 16,) * 5)),
        (BLT(), 1.0, BLTFactor((1,), (1 << 16,), 40, 4)),
    ],
    ids=["for rarer clients", "of another mechanism", "of more bands", "of less noise"],
)
def test_noise_that_is_not_accounted_for_its_clients_is_not_gone_on_with(
    mechanism: Any, rate: float, other: Factor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """However well the rest of the file fits: ε would be that of other coefficients."""
    settings = {"mechanism": mechanism, "noise_multiplier": 20.0}
    interrupted(tmp_path, 6, rate=rate, **settings)
    file = secret_file(tmp_path / "checkpoint")
    sigma = 20.0 * other.reach(mechanism.radius, SIZE) * (1 + 2.0**-50)
    forged = replace(NoiseInstance.load(file), factor=other, sigma=math.nextafter(sigma, math.inf))
    if sigma < other.largest_sigma:
        noise, digests = replace(forged, keys=(), digests=()).noise(), []
        for key in forged.keys:
            assert key is not None
            digests.append(noise.digest())
            noise.draw(key)
        forged = replace(forged, digests=tuple(digests))
    forged.save(file)
    resumed = banded(tmp_path, sampling=CyclicGroups(4, rate), **settings)
    resumed.start(Asked(), model((SIZE,)), num_rounds=9)
    assert "New noise is begun" in caplog.text
    assert len({event.instance for event in paid(tmp_path)}) == 2


def test_the_secret_is_in_no_checkpoint_ledger_or_report(tmp_path: Path) -> None:
    interrupted(tmp_path, 5)
    file = secret_file(tmp_path / "checkpoint")
    assert file.stat().st_mode & 0o777 == 0o600
    instance = NoiseInstance.load(file)
    assert None not in instance.keys
    left = file.with_name(f"{file.name}.0123abcd.new")  # of a process killed while it wrote
    left.write_bytes(file.read_bytes())
    public = (tmp_path / "checkpoint").read_bytes() + (tmp_path / "ledger.jsonl").read_bytes()
    for key in (instance.group_key, *instance.keys):
        assert key is not None
        assert key not in public
        assert key.hex().encode() not in public
    assert instance.name.encode() in public
    banded(tmp_path).start(grid_of(30), model((SIZE,)), num_rounds=9)
    assert not file.exists()
    assert not left.exists()


def test_rounds_without_usable_replies_take_no_row_into_the_model(tmp_path: Path) -> None:
    """A row that was begun and not drawn is skipped; nothing was released of it."""
    strategy = banded(tmp_path)
    arrays = model((SIZE,))
    grid = grid_of(30)
    grid._client_app = lambda message, context: raising(message)  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="no reply was usable"):
        strategy.start(grid, arrays, num_rounds=8)
    assert not read_ledger(tmp_path / "ledger.jsonl").records
    assert NoiseInstance.load(secret_file(tmp_path / "checkpoint")).rows == 1


def test_noised_metrics_have_noise_of_their_own_and_share_the_round(tmp_path: Path) -> None:
    """One participation pays for both; evaluators of a run without secrets are not amplified."""
    ranges = {"loss": (0.0, 30.0)}
    metrics = Metrics(
        train=NoisedMetrics(ranges=ranges, noise_multiplier=20.0),
        evaluate=NoisedMetrics(ranges=ranges, noise_multiplier=30.0),
        fraction_evaluate=0.5,
    )
    strategy = banded(tmp_path, metrics=metrics)
    result = strategy.start(grid_of(30), model((SIZE,)), num_rounds=4)
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    assert events[1::2] == [GaussianRelease(30.0, Full())] * 4
    assert isinstance(events[0], GroupRelease)
    assert len(result.evaluate_metrics_clientapp) == 4


ADAPTIVE = AdaptiveClipping(initial_norm=1.0)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"sampling": Poisson(0.1)}, "CyclicGroups"),
        ({"sampling": CyclicGroups(3)}, r"at\s+most as many"),
        ({"sampling": CyclicGroups(4, 0.5), "mechanism": BLT()}, r"BandedMF\(4\)"),
        ({"mechanism": None}, "BandedMF"),
        ({"optimizer": ServerAdam()}, "ServerSGD"),
        ({"clipping": ADAPTIVE}, "fixed norm"),
        (
            {
                "secure_aggregation": SecureAggregation(
                    min_clients=5, noise_placement="distributed", max_clients=30
                )
            },
            "leave it at 'central'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_what_does_not_go_with_it_is_refused(
    changed: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=words):
        banded(tmp_path, **changed)


def test_central_noise_on_an_opened_sum_is_the_same(tmp_path: Path) -> None:
    """Under secure aggregation: white under the factor, rows that open nothing left out."""
    size, rounds, nodes = 3000, 7, 12
    asked_in: list[int] = []

    def moved(partition: int, number: int, arrays: list[Any]) -> list[Any]:
        asked_in.append(number)
        return idle(partition, number, arrays)

    def failing(message: Any, context: Any) -> Any:
        number = next(iter(message.content.config_records.values())).get("server-round")
        return raising(message) if number == 4 else app(message, context)

    app = secure_app(moved)
    strategy = banded(
        tmp_path,
        population=nodes,
        sampling=CyclicGroups(2),
        mechanism=BandedMF(2),
        secure_aggregation=secure(),
        budget=Budget(math.inf, 1e-5),
        noise_multiplier=1.0,
        randomness=SeededRandomness(11),  # groups of 5 and 7
    )
    seen = steps(strategy)
    grid = InProcessGrid(failing, nodes)  # type: ignore[arg-type]
    result = strategy.start(grid, model((size,)), num_rounds=rounds)
    report = result.privacy
    assert report is not None
    assert report.secure_aggregation is not None
    assert report.secure_aggregation.aborted_rounds == (4,)
    assert set(asked_in) == {1, 2, 3, 5, 6, 7}
    factor = BandedMF(2).factor(rounds=rounds, momentum=0.5, groups=4)
    x = np.array(seen) * (nodes / 2)
    c = factor.coefficients
    white = x.copy()
    for row in (1, 2, 4, 5):  # of six; the fourth has nothing to take back
        white[row] += c[1] * x[row - 1]
    white /= strategy.noise_multiplier * factor.norm
    assert np.abs(white @ white.T / size - np.eye(6)).max() < 6.5 * np.sqrt(2 / size)
    events = [record.event for record in read_ledger(tmp_path / "ledger.jsonl").records]
    gaussian = [e for e in events if isinstance(e.release, GaussianRelease)]  # type: ignore[union-attr]
    assert [event.row for event in gaussian] == list(range(rounds))  # type: ignore[union-attr]


def test_a_row_that_opened_nothing_is_not_the_next_that_must_be_afforded(tmp_path: Path) -> None:
    """Without a checkpoint as well: the budget is enough for two turns of each of two groups."""

    def failing(message: Any, context: Any) -> Any:
        number = next(iter(message.content.config_records.values())).get("server-round")
        return raising(message) if number == 3 and next(third) else app(message, context)

    app, third = secure_app(idle), itertools.count()  # one client's update is too few
    strategy = banded(
        tmp_path,
        population=12,
        sampling=CyclicGroups(2),
        mechanism=BandedMF(2),
        secure_aggregation=secure(),
        budget=Budget(8.0, 0.5),
        checkpointing=None,
        randomness=SeededRandomness(11),
    )
    strategy._correlated._inner.presence = AdditiveDelta(0.0)  # type: ignore[union-attr]
    result = strategy.start(InProcessGrid(failing, 12), model((SIZE,)), num_rounds=4)  # type: ignore[arg-type]
    assert result.privacy is not None
    assert result.privacy.stopped is None
    assert result.privacy.secure_aggregation is not None
    assert result.privacy.secure_aggregation.aborted_rounds == (3,)


def test_more_noise_than_fits_its_integers_is_refused_by_its_name(tmp_path: Path) -> None:
    strategy = banded(tmp_path, noise_multiplier=2.0**17, budget=Budget(math.inf, 1e-5))
    with pytest.raises(ValueError, match=r"noise_multiplier is 131072.*give at most \d"):
        strategy.start(grid_of(30), model((SIZE,)), num_rounds=9)
    assert not read_ledger(tmp_path / "ledger.jsonl").records


@pytest.mark.parametrize(("bands", "drowned"), [(1, True), (4, False)])
def test_noise_that_is_taken_back_drowns_nothing(bands: int, drowned: bool, tmp_path: Path) -> None:
    """Independent noise would carry the model 1.3 times as far as all clients can."""
    strategy = banded(
        tmp_path, mechanism=BandedMF(bands), noise_multiplier=1.0, budget=Budget(math.inf, 1e-5)
    )
    warnings = strategy.check_budget(20, round((1.3 * 7.5) ** 2 * 20))
    assert any("drowns" in warning for warning in warnings) == drowned


def test_check_budget_counts_rows_of_a_new_run_and_not_those_of_the_run_before(
    tmp_path: Path,
) -> None:
    strategy = banded(
        tmp_path, noise_multiplier=3.0, budget=Budget(6.0, 1e-5), checkpointing=Checkpointing()
    )
    strategy.start(Asked(), model((SIZE,)), num_rounds=3)
    warnings = strategy.check_budget(400, SIZE)
    (fitting,) = [w for w in warnings if "rounds fit what is left" in w]
    report = strategy.start(Asked(), model((SIZE,)), num_rounds=400).privacy
    assert report is not None
    assert f"only {report.rounds} of 400 rounds" in fitting


def test_a_listed_population_keeps_its_groups_when_nodes_register_again(tmp_path: Path) -> None:
    twice = Population(
        tuple(f"p{i}" for i in range(30)), identify=lambda node: f"p{(node.node_id - 1) % 30}"
    )
    strategy = banded(tmp_path, population=twice)
    grid = Asked(60)  # everybody registered twice
    strategy.start(grid, model((SIZE,)), num_rounds=8)
    asked = [{(node - 1) % 30 for node in cohort} for cohort in grid.cohorts]
    for number in range(4, 8):
        assert asked[number] == asked[number - 4]
    assert sum(map(len, asked[:4])) == 30


def test_a_seeded_run_is_repeated(tmp_path: Path) -> None:
    models = []
    for name in "ab":
        (tmp_path / name).mkdir()
        strategy = banded(tmp_path / name, randomness=SeededRandomness(4))
        result = strategy.start(grid_of(30, idle), model((SIZE,)), num_rounds=5)
        models.append(result.arrays.to_numpy_ndarrays()[0])
    assert np.array_equal(models[0], models[1])
