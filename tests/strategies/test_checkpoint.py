"""A resumed run ends where an unbroken one does, from released values only."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord
from safetensors.numpy import save_file

from privacy.accounting import (
    GaussianRelease,
    Ledger,
    Poisson,
    epsilon,
    read_ledger,
)
from privacy.accounting.errors import LedgerBusyError, LedgerError
from privacy.mechanisms import LatticeGaussian
from strategies import (
    AdaptiveClipping,
    Budget,
    Checkpointing,
    ServerAdam,
    ServerSGD,
)
from strategies.checkpoint import Checkpoint
from strategies.errors import CheckpointError, SpentBudgetError
from strategies.progress import RoundProgress
from tests.strategies.federation import (
    STEP,
    answer,
    ask,
    model,
    noiseless,
    private,
    refused,
    released,
    spent,
)


def test_a_resumed_run_keeps_its_model_when_nothing_is_left(tmp_path: Path) -> None:
    """One that has played a round; one that has not is refused like any other."""
    kept, limit = tmp_path / "kept", epsilon([GaussianRelease(20.0, Poisson(1.0))], delta=1e-5)
    settings = {"budget": Budget(limit * 1.0001, 1e-5), "checkpointing": Checkpointing(kept)}
    ended = private(tmp_path, **settings).start(STEP, model(), num_rounds=3)
    again = private(
        tmp_path, **settings | {"checkpointing": Checkpointing(kept, resume=kept)}
    ).start(STEP, model(), num_rounds=3)
    assert again.privacy is not None
    assert again.privacy.rounds == 1
    assert "round 2 would pass" in str(again.privacy.stopped)
    np.testing.assert_array_equal(
        again.arrays.to_numpy_ndarrays()[0], ended.arrays.to_numpy_ndarrays()[0]
    )

    (other := tmp_path / "other").mkdir()
    settings["checkpointing"] = Checkpointing(other / "kept")

    class KilledError(Exception):
        pass

    def killed(number: int, arrays: ArrayRecord) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        private(other, **settings).start(STEP, model(), num_rounds=3, evaluate_fn=killed)
    private(other).start(STEP, model(), num_rounds=1)
    error = refused(
        private(other, **settings | {"checkpointing": Checkpointing(resume=other / "kept")})
    )
    assert isinstance(error, SpentBudgetError)


def settings_of(optimizer: Any) -> dict[str, Any]:
    return {
        "optimizer": optimizer,
        "clipping": AdaptiveClipping(initial_norm=1.0),
    }


@pytest.mark.parametrize(
    "optimizer",
    [ServerSGD(0.7, momentum=0.5, iterate_average=0.5), ServerAdam(0.1, iterate_average=0.5)],
)
def test_a_resumed_run_ends_where_an_unbroken_one_does(optimizer: Any, tmp_path: Path) -> None:
    """Without noise, to the last bit but the average's: optimizer, norm and average go on."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    start = ArrayRecord([np.zeros(3, np.float32), np.array(0.0, np.float32)])
    expected = noiseless(whole, **settings_of(optimizer)).start(STEP, start, num_rounds=6)
    path = broken / "checkpoint"
    kept = settings_of(optimizer) | {"checkpointing": Checkpointing(path)}
    noiseless(broken, **kept).start(STEP, start, num_rounds=4)
    resumed = noiseless(broken, **kept | {"checkpointing": Checkpointing(path, resume=path)}).start(
        STEP, start, num_rounds=6
    )
    for a, b in zip(
        expected.arrays.to_numpy_ndarrays(), resumed.arrays.to_numpy_ndarrays(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert resumed.privacy is not None
    assert list(resumed.privacy.epsilon_by_round) == [1, 2, 3, 4, 5, 6]
    assert resumed.privacy.clipping_norm == expected.privacy.clipping_norm  # type: ignore


def test_a_run_can_be_resumed_before_its_first_round_ended(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    class KilledError(Exception):
        pass

    def killed(partition: int, number: int, arrays: Any) -> Any:
        raise KilledError

    strategy = private(
        tmp_path, noise_multiplier=None, budget=Budget(2.0, 1e-5), checkpointing=Checkpointing(path)
    )
    strategy.aggregate_train = killed  # type: ignore[method-assign,assignment]
    with pytest.raises((KilledError, TypeError)):
        strategy.start(STEP, model(), num_rounds=3)
    del strategy
    again = private(
        tmp_path,
        noise_multiplier=None,
        budget=Budget(2.0, 1e-5),
        checkpointing=Checkpointing(resume=path),
    )
    result = again.start(STEP, model(), num_rounds=3)
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert result.privacy.epsilon <= 2.0


def test_a_checkpoint_holds_released_values_only(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path), optimizer=ServerSGD(momentum=0.9)).start(
        STEP, model(), num_rounds=2
    )
    kept = Checkpoint.load(path)
    assert set(kept.arrays) == {
        "model/0",
        "optimizer/velocity.0",
        "clipping/norm",
        "privacy/rounds",
        "privacy/epsilon",
        "privacy/aborted",  # which rounds opened is paid for
    }
    assert (kept.round, kept.noise_multiplier, kept.position.records) == (2, 20.0, 2)


def test_a_torn_or_altered_checkpoint_never_loads(tmp_path: Path) -> None:
    """Cut anywhere, or any one byte changed."""
    path, copy = tmp_path / "checkpoint", tmp_path / "copy"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        copy.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            Checkpoint.load(copy)
    for place in range(0, len(whole), 3):
        copy.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            kept = Checkpoint.load(copy)
        except CheckpointError:
            continue
        # What may change unseen is the spelling of safetensors' own header.
        assert kept.position == Checkpoint.load(path).position
        np.testing.assert_array_equal(
            kept.arrays["model/0"], Checkpoint.load(path).arrays["model/0"]
        )
    with pytest.raises(CheckpointError):
        Checkpoint.load(tmp_path / "nowhere")


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    for changed, name in (
        ({"clipping": 2.0}, "clipping"),
        ({"noise_multiplier": 10.0}, "noise_multiplier"),
        ({"sampling": Poisson(0.5)}, "sampling"),
        ({"optimizer": ServerSGD(0.5)}, "optimizer"),
        ({"budget": Budget(math.inf, 1e-6)}, "budget"),
        ({"budget": Budget(9.0, 1e-5)}, "budget"),
    ):
        with pytest.raises(CheckpointError, match=name):
            private(tmp_path, checkpointing=Checkpointing(resume=path), **changed)
    for other in (model((4,)), model((3,), (1,)), model((3,), dtype=np.float64)):
        with pytest.raises(CheckpointError, match="another model"):
            private(tmp_path, checkpointing=Checkpointing(resume=path)).start(
                STEP, other, num_rounds=2
            )


class OwnOptimizer:
    """Not a dataclass; public numbers are its settings, what begins with _ its state."""

    def __init__(self, rate: Any, name: str = "own") -> None:
        self.rate, self.name, self._steps = rate, name, 0

    def step(self, arrays: Any, update: Any) -> list[Any]:
        self._steps += 1
        return [a + self.rate * u for a, u in zip(arrays, update, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {"steps": np.array(self._steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._steps = int(state["steps"])


class OwnMechanism(LatticeGaussian):
    """Not a dataclass of its own, but of its base's fields."""


def test_other_settings_of_the_users_own_classes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    own = {"optimizer": OwnOptimizer(np.float32(0.5)), "mechanism": OwnMechanism(64)}
    private(tmp_path, checkpointing=Checkpointing(path), **own).start(STEP, model(), num_rounds=1)
    resumed = Checkpointing(path, resume=True)
    for changed, names in (
        ({"optimizer": OwnOptimizer(0.25)}, r"rate=0.5\) → .*rate=0.25"),
        ({"optimizer": OwnOptimizer(0.5, "other")}, "name='own'.* → .*name='other'"),
        ({"mechanism": OwnMechanism(32)}, "radius=64.* → .*radius=32"),
    ):
        with pytest.raises(CheckpointError, match=names):
            private(tmp_path, checkpointing=resumed, **own | changed)
    again = private(tmp_path, checkpointing=resumed, **own | {"optimizer": OwnOptimizer(0.5)})
    assert again.start(STEP, model(), num_rounds=2).privacy is not None


def test_a_checkpoint_of_another_version_is_refused_as_that(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    save_file({}, path, metadata={"format": "bloomseal-checkpoint-1"})
    with pytest.raises(CheckpointError, match="written by another version of bloomseal"):
        Checkpointing(resume=path).load("{}")


def test_an_older_ledger_put_back_is_found_out(tmp_path: Path) -> None:
    path, ledger = tmp_path / "checkpoint", tmp_path / "ledger.jsonl"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    older = ledger.read_bytes()
    private(tmp_path, checkpointing=Checkpointing(path, resume=path)).start(
        STEP, model(), num_rounds=3
    )
    ledger.write_bytes(older)
    with pytest.raises(LedgerError):
        private(tmp_path, checkpointing=Checkpointing(resume=path))
    ledger.unlink()
    with pytest.raises(LedgerError, match="missing"):
        private(tmp_path, checkpointing=Checkpointing(resume=path))


def test_an_unfinished_run_is_not_begun_anew_unasked(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    kept, paid = path.read_bytes(), spent(tmp_path)
    anew = private(tmp_path, checkpointing=Checkpointing(path))
    with pytest.raises(CheckpointError, match=r"holds round 1 of 3 .*resume=True.*move the file"):
        anew.start(STEP, model(), num_rounds=3)
    assert (path.read_bytes(), spent(tmp_path)) == (kept, paid)
    del anew
    result = private(tmp_path, checkpointing=Checkpointing(path, resume=True)).start(
        STEP, model(), num_rounds=3
    )
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert [r.round for r in read_ledger(tmp_path / "ledger.jsonl").records] == [1, 2, 3]
    # It is finished now: another run with these settings is a second one.
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=3)


def test_an_interrupted_run_is_not_overwritten_by_one_of_fewer_rounds(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"

    def interrupt(progress: RoundProgress) -> None:
        if progress.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        private(tmp_path, checkpointing=Checkpointing(path), on_round=interrupt).start(
            STEP, model(), num_rounds=4
        )
    kept, paid = path.read_bytes(), spent(tmp_path)
    for fewer in (1, 2):
        with pytest.raises(CheckpointError, match="holds round 2 of 4 "):
            private(tmp_path, checkpointing=Checkpointing(path)).start(
                STEP, model(), num_rounds=fewer
            )
    assert (path.read_bytes(), spent(tmp_path)) == (kept, paid)


class _Watching(Checkpointing):
    """Its file is read while nobody else can write the ledger beside it."""

    def _watch(self) -> None:
        ledger = Path(str(self.path)).with_name("ledger.jsonl")
        with pytest.raises(LedgerBusyError):
            Ledger.open(ledger, population="p")

    def load(self, settings: str) -> Checkpoint | None:
        self._watch()
        return super().load(settings)

    def refuse_unfinished(self, settings: str, num_rounds: int) -> None:
        self._watch()
        super().refuse_unfinished(settings, num_rounds)


def test_a_checkpoint_is_read_while_its_ledger_is_held(tmp_path: Path) -> None:
    """The run that held the ledger may go on, and write its last checkpoint, until it lets go."""
    watching = _Watching(tmp_path / "kept", resume=True)
    strategy = private(tmp_path, checkpointing=watching)
    for rounds in (1, 2, 3):
        result = strategy.start(STEP, model(), num_rounds=rounds)
        assert result.privacy is not None
        assert result.privacy.rounds == rounds
    strategy = private(tmp_path, checkpointing=watching)
    result = strategy.start(STEP, model(), num_rounds=3)
    assert result.privacy is not None
    assert result.privacy.rounds == 3
    assert len(read_ledger(tmp_path / "ledger.jsonl").records) == 3


def test_a_refused_checkpoint_leaves_the_ledger_free(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is not there"):
        private(tmp_path, checkpointing=Checkpointing(resume=tmp_path / "nowhere"))
    assert not (tmp_path / "ledger.jsonl").exists()
    private(tmp_path).start(STEP, model(), num_rounds=1)


def test_resume_if_there(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    for rounds in (1, 2):  # the same program both times
        strategy = private(tmp_path, checkpointing=Checkpointing(path, resume=True))
        strategy.start(STEP, model(), num_rounds=rounds)
        del strategy
    assert [r.round for r in read_ledger(tmp_path / "ledger.jsonl").records] == [1, 2]
    path.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        private(tmp_path, checkpointing=Checkpointing(path, resume=True))
    path.unlink()
    with pytest.raises(CheckpointError, match="resume=True"):
        private(tmp_path, checkpointing=Checkpointing(path, resume=path))
    with pytest.raises(ValueError, match="give the path"):
        Checkpointing(resume=True)
    with pytest.raises(TypeError, match="resume"):
        Checkpointing(path, resume=1)  # type: ignore[arg-type]
    assert Checkpointing(path, resume=False) == Checkpointing(path)


class BrokenOffError(Exception):
    pass


def break_off_in_round_2(number: int, arrays: ArrayRecord) -> None:
    """Raises as Ctrl-C does, when round 2 is paid and its checkpoint written."""
    if number == 2:
        raise BrokenOffError


def test_an_unfinished_run_of_the_same_strategy_is_not_begun_anew(tmp_path: Path) -> None:
    """In a notebook, say: the program is still there when its run has broken off."""
    path = tmp_path / "checkpoint"
    strategy = private(tmp_path, checkpointing=Checkpointing(path))
    with pytest.raises(BrokenOffError):
        strategy.start(STEP, model(), num_rounds=4, evaluate_fn=break_off_in_round_2)
    kept, paid = path.read_bytes(), spent(tmp_path)
    with pytest.raises(CheckpointError, match="holds round 2 of 4"):
        strategy.start(STEP, model(), num_rounds=4)
    assert (path.read_bytes(), spent(tmp_path)) == (kept, paid)


def test_a_strategy_that_is_started_again_goes_on_where_it_resumes(tmp_path: Path) -> None:
    path, ledger = tmp_path / "checkpoint", tmp_path / "ledger.jsonl"
    strategy = private(tmp_path, checkpointing=Checkpointing(path, resume=True))
    older = ledger.read_bytes()
    with pytest.raises(BrokenOffError):
        strategy.start(STEP, model(), num_rounds=4, evaluate_fn=break_off_in_round_2)
    now = ledger.read_bytes()
    ledger.write_bytes(older)
    with pytest.raises(LedgerError):
        strategy.start(STEP, model(), num_rounds=4)
    ledger.write_bytes(now)
    result = strategy.start(STEP, model(), num_rounds=4)
    assert result.privacy is not None
    assert list(result.privacy.epsilon_by_round) == [1, 2, 3, 4]
    assert [r.round for r in read_ledger(ledger).records] == [1, 2, 3, 4]
    assert len({r.run for r in read_ledger(ledger).records}) == 1


def test_a_finished_run_is_returned_and_said_to_be_finished(
    tmp_path: Path, console: list[str]
) -> None:
    path = tmp_path / "checkpoint"
    strategy = private(tmp_path, checkpointing=Checkpointing(path, resume=True))
    first = strategy.start(STEP, model(), num_rounds=2)
    paid = spent(tmp_path)
    said = len(console)
    again = strategy.start(STEP, model(), num_rounds=2)
    np.testing.assert_array_equal(
        again.arrays.to_numpy_ndarrays()[0], first.arrays.to_numpy_ndarrays()[0]
    )
    assert spent(tmp_path) == paid
    assert any("has played 2 of 2 rounds. Its model is returned" in line for line in console[said:])
    assert not any("Starting" in line for line in console[said:])


def test_a_checkpoint_that_cannot_be_begun_says_that_nothing_was_spent(tmp_path: Path) -> None:
    strategy = private(tmp_path, checkpointing=Checkpointing(tmp_path / "no" / "checkpoint"))
    with pytest.raises(OSError, match="no round was begun, and nothing was spent"):
        strategy.start(STEP, model(), num_rounds=2)
    assert not read_ledger(tmp_path / "ledger.jsonl").records


def test_a_round_played_again_is_paid_again(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    private(tmp_path, checkpointing=Checkpointing(path)).start(STEP, model(), num_rounds=1)
    strategy = private(tmp_path, checkpointing=Checkpointing(resume=path))
    asked = ask(strategy, STEP, model(), 2)
    released(
        strategy, [answer(m, model()) for m in asked.values()], 2
    )  # released, and then the process dies before its checkpoint
    before = spent(tmp_path)
    strategy._privacy_budget._ledger.close()
    private(tmp_path, checkpointing=Checkpointing(resume=path)).start(STEP, model(), num_rounds=2)
    assert [r.round for r in read_ledger(tmp_path / "ledger.jsonl").records] == [1, 2, 2]
    assert spent(tmp_path) > before
