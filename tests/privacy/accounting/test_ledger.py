"""The ledger: written ahead, whole at every instant, never lighter than what was released."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accounting import (
    AdditiveDelta,
    Adjacency,
    Budget,
    FixedSize,
    Full,
    GaussianRelease,
    Ledger,
    Poisson,
    Position,
    Repeated,
    epsilon,
    read_ledger,
)
from privacy.accounting import ledger as ledger_module
from privacy.accounting.errors import LedgerBusyError, LedgerError
from privacy.files import write_durably

ROUND = GaussianRelease(1.2, Poisson(120 / 3383))
DELTA = 1e-5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.jsonl"


def filled(path, rounds=3, timeout=0.0):
    with Ledger.open(path, population="p", timeout=timeout) as ledger:
        for number in range(rounds):
            ledger.append(ROUND, run="a", round=number)
        return ledger.position


def test_epsilon_is_that_of_all_runs_and_of_the_file_alone(path):
    with Ledger.open(path, population="p") as ledger:
        ledger.append(ROUND, run="a", round=1)
        ledger.append(AdditiveDelta(1e-7), run="a", round=2)
    with Ledger.open(path, population="p") as ledger:
        ledger.append(GaussianRelease(5.0, Full()), run="b", round=1)
        spent = ledger.epsilon(DELTA)
    events = [ROUND, AdditiveDelta(1e-7), GaussianRelease(5.0, Full())]
    assert spent == epsilon(events, delta=DELTA)
    contents = read_ledger(path)
    assert contents.epsilon(DELTA) == spent
    assert [record.event for record in contents.records] == events
    assert [record.run for record in contents.records] == ["a", "a", "b"]
    stamps = [datetime.fromisoformat(record.time) for record in contents.records]
    assert all(stamp.tzinfo for stamp in stamps)
    # Of the day alone: when a round was tells how long it took, and so who was drawn.
    assert {(stamp.hour, stamp.minute, stamp.second) for stamp in stamps} == {(0, 0, 0)}
    # And by anyone, with nothing but JSON.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0]["schema"] == 1
    assert lines[1]["event"]["noise_multiplier"] == 1.2


def test_what_was_released_stays_in_the_ledger_under_its_digest(path):
    with Ledger.open(path, population="p") as ledger:
        ledger.append(Repeated(ROUND, 3), run="a", round=0)
        ledger.append(GaussianRelease(5.0, Full()), run="a", round=0, released=57)
    contents = read_ledger(path)
    assert [record.released for record in contents.records] == [None, 57]
    assert contents.epsilon(DELTA) == epsilon(
        {ROUND: 3, GaussianRelease(5.0, Full()): 1}, delta=DELTA
    )
    for old, new in ((b'"released": 57', b'"released": 58'), (b'"times": 3', b'"times": 1')):
        edited = path.with_name("edited.jsonl")
        edited.write_bytes(path.read_bytes().replace(old, new))
        with pytest.raises(LedgerError, match="digest does not fit"):
            read_ledger(edited)


def test_who_waits_for_a_ledger_gets_it(path):
    held = Ledger.open(path, population="p")
    with pytest.raises(LedgerBusyError):
        Ledger.open(path, population="p")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(filled, path, timeout=60.0)
        held.close()
        assert waiting.result().records == 3


def test_would_exceed_looks_one_round_ahead(path):
    with Ledger.open(path, population="p") as ledger:
        for number in range(5):
            ledger.append(ROUND, run="a", round=number)
        six = epsilon({ROUND: 6}, delta=DELTA)
        assert not ledger.would_exceed(ROUND, Budget(six, DELTA))
        assert ledger.would_exceed(ROUND, Budget(six * (1 - 1e-9), DELTA))
        assert ledger.would_exceed(GaussianRelease(0.0, Full()), Budget(1e9, DELTA))
        assert len(ledger.records) == 5


def test_append_is_on_disk_before_it_returns(path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)

        def spy(*args, _name=name, _real=real, **kwargs):
            steps.append(_name)
            return _real(*args, **kwargs)

        monkeypatch.setattr(os, name, spy)
    with Ledger.open(path, population="p") as ledger:
        steps.clear()
        ledger.append(ROUND, run="a", round=0)
        # The new file, its name, and the folder that holds the name.
        assert steps == ["fsync", "replace", "fsync"]
        assert len(read_ledger(path).records) == 1


def test_a_full_disk_leaves_the_ledger_as_it_was(path, monkeypatch):
    filled(path)
    before = path.read_bytes()
    with Ledger.open(path, population="p") as ledger:

        def no_space(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", no_space)
            with pytest.raises(OSError, match="No space"):
                ledger.append(ROUND, run="a", round=9)
        assert path.read_bytes() == before
        assert len(ledger.records) == 3
        ledger.append(ROUND, run="a", round=9)
    assert len(read_ledger(path).records) == 4
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + ".lock"}


KILLED = """
import os, sys
from privacy.accounting import Full, GaussianRelease, Ledger
import privacy.accounting.ledger as module

step, calls = int(sys.argv[2]), 0
def counted(function):
    def wrapped(*args, **kwargs):
        global calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), 9)
        return function(*args, **kwargs)
    return wrapped

ledger = Ledger.open(sys.argv[1], population="p")
for name in ("fsync", "replace", "fdopen", "open", "close"):
    setattr(os, name, counted(getattr(os, name)))
for number in range(3, 6):
    record = ledger.append(GaussianRelease(2.0, Full()), run="b", round=number)
    print(record.position, flush=True)
"""


def test_killed_at_every_step_no_acknowledged_event_is_lost(path):
    filled(path)
    step, acknowledged = 0, 0
    while True:
        step += 1
        before = len(read_ledger(path).records)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(path), str(step)],
            capture_output=True,
            text=True,
            check=False,
            cwd=Path(__file__).parents[3],
        )
        told = [int(line) for line in done.stdout.split()]
        acknowledged = max([acknowledged, *told])
        contents = read_ledger(path)
        assert len(contents.records) >= max(acknowledged, before)
        # At most the one that was being written is there without having been acknowledged.
        assert len(contents.records) <= before + len(told) + 1
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    assert step > 9
    Ledger.open(path, population="p").close()
    assert {file.name for file in path.parent.iterdir()} == {path.name, path.name + ".lock"}


def test_two_runs_cannot_hold_it_at_once(path):
    with Ledger.open(path, population="p"):
        code = (
            "import sys; from privacy.accounting import Ledger\n"
            "from privacy.accounting.errors import LedgerBusyError\n"
            "try: Ledger.open(sys.argv[1], population='p')\n"
            "except LedgerBusyError as error: print(error)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[3],
        )
        assert "held by another run" in done.stdout
        with pytest.raises(LedgerBusyError, match="held by another run"):
            Ledger.open(path, population="p")
    with Ledger.open(path, population="p") as ledger:
        pass
    with pytest.raises(LedgerError, match="closed; open it again"):
        ledger.append(ROUND, run="a", round=0)


def test_it_belongs_to_its_object_whatever_thread_uses_it(path):
    ledger = Ledger.open(path, population="p")
    with ThreadPoolExecutor(1) as elsewhere:
        assert not elsewhere.submit(lambda: ledger.closed).result()
        elsewhere.submit(ledger.append, ROUND, run="a", round=1).result()
        busy = elsewhere.submit(Ledger.open, path, population="p").exception()
        assert isinstance(busy, LedgerBusyError)
        elsewhere.submit(ledger.close).result()
    assert ledger.closed
    filled(path, rounds=1)
    assert len(read_ledger(path).records) == 2


def test_threads_that_share_it_append_one_after_the_other(path):
    with Ledger.open(path, population="p") as ledger, ThreadPoolExecutor(4) as threads:
        appended = [threads.submit(ledger.append, ROUND, run="a", round=n) for n in range(40)]
        digests = {each.result().digest for each in appended}
    assert {record.digest for record in read_ledger(path).records} == digests
    assert len(digests) == 40


def test_what_is_being_appended_is_there_before_it_is_closed(path, monkeypatch):
    """Otherwise the next holder's payments would be overwritten."""
    writing, close = threading.Event(), threading.Event()

    def slowly(*args):
        writing.set()
        assert close.wait(60)
        write_durably(*args)

    with ThreadPoolExecutor(2) as threads:
        ledger = Ledger.open(path, population="p")
        monkeypatch.setattr(ledger_module, "write_durably", slowly)
        appending = threads.submit(ledger.append, ROUND, run="a", round=1)
        assert writing.wait(60)
        closing = threads.submit(ledger.close)
        with pytest.raises(LedgerBusyError):
            Ledger.open(path, population="p", timeout=0.2)
        close.set()
        appending.result()
        closing.result()
    assert len(read_ledger(path).records) == 1


def test_a_ledger_of_something_else_is_refused(path):
    filled(path)
    with pytest.raises(LedgerError, match="belongs to population 'p', not to 'q'"):
        Ledger.open(path, population="q")
    with pytest.raises(LedgerError, match="one ledger holds one adjacency"):
        Ledger.open(path, population="p", adjacency=Adjacency.REPLACE_ONE)
    with Ledger.open(path, population="p") as ledger:
        with pytest.raises(ValueError, match="use replace-one"):
            ledger.append(GaussianRelease(1.0, FixedSize(1, 10)), run="a", round=0)
        assert len(ledger.records) == 3


def test_fixed_size_cohorts_keep_their_own_ledger(path):
    event = GaussianRelease(1.2, FixedSize(100, 1000))
    with Ledger.open(path, population="p", adjacency=Adjacency.REPLACE_ONE) as ledger:
        ledger.append(event, run="a", round=0)
        ledger.append(GaussianRelease(8.0, Full()), run="a", round=0)
        assert ledger.epsilon(DELTA) == epsilon(
            [event, GaussianRelease(8.0, Full())], delta=DELTA, adjacency=Adjacency.REPLACE_ONE
        )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_refused_and_the_line_named(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damage") / "ledger.jsonl"
    filled(path)
    text = path.read_bytes()
    lines = text.splitlines(keepends=True)
    kind = data.draw(st.sampled_from(["cut", "flip", "drop", "swap", "insert"]))
    if kind == "cut":
        end = data.draw(st.integers(0, len(text) - 1))
        damaged = text[:end]
        if damaged.endswith(b"\n"):
            # A file that ends with a whole line is an old copy: only a checkpoint can tell.
            return
    elif kind == "flip":
        at = data.draw(st.integers(0, len(text) - 1))
        damaged = text[:at] + bytes([text[at] ^ 1 << data.draw(st.integers(0, 7))]) + text[at + 1 :]
    elif kind == "drop":
        del lines[data.draw(st.integers(0, len(lines) - 2))]
        damaged = b"".join(lines)
    elif kind == "swap":
        lines[1], lines[2] = lines[2], lines[1]
        damaged = b"".join(lines)
    else:
        lines.insert(2, lines[1])
        damaged = b"".join(lines)
    path.write_bytes(damaged)
    with pytest.raises(LedgerError, match=r"line \d+ of the ledger|is empty"):
        read_ledger(path)
    with pytest.raises(LedgerError):
        Ledger.open(path, population="p")
    assert path.read_bytes() == damaged


def test_lines_of_another_ledger_do_not_fit_in(path):
    filled(path)
    with Ledger.open(path.with_name("other"), population="p") as other:
        for number in range(3):
            other.append(GaussianRelease(100.0, Full()), run="a", round=number)
    foreign = path.with_name("other").read_bytes().splitlines(keepends=True)
    lines = path.read_bytes().splitlines(keepends=True)
    # Its header is the same, and so is each position: only the chain can tell.
    path.write_bytes(b"".join([*lines[:2], *foreign[2:]]))
    with pytest.raises(LedgerError, match="line 3 of the ledger"):
        read_ledger(path)


def test_an_old_copy_is_found_out_by_a_checkpoint(path):
    position = filled(path)
    text = path.read_bytes()
    with Ledger.open(path, population="p", at_least=position) as ledger:
        assert ledger.position == position
    path.write_bytes(b"".join(text.splitlines(keepends=True)[:-1]))
    with pytest.raises(LedgerError, match="does not contain event 3"):
        Ledger.open(path, population="p", at_least=position)
    path.unlink()
    with pytest.raises(LedgerError, match="is missing"):
        Ledger.open(path, population="p", at_least=position)
    assert not path.exists()
    path.write_bytes(text)
    with pytest.raises(LedgerError, match="does not contain event 3"):
        Ledger.open(path, population="p", at_least=Position(3, "0" * 32))


def test_changed_behind_its_back(path):
    with Ledger.open(path, population="p") as ledger:
        path.write_bytes(path.read_bytes() + b"{}\n")
        with pytest.raises(LedgerError, match="was changed while"):
            ledger.append(ROUND, run="a", round=0)


def test_missing_folder_and_names(tmp_path):
    with pytest.raises(LedgerError, match="create it first"):
        Ledger.open(tmp_path / "no" / "ledger", population="p")
    with pytest.raises(ValueError, match="population is ''"):
        Ledger.open(tmp_path / "ledger", population="")
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(tmp_path / "none")
    with Ledger.open(tmp_path / "ledger", population="p") as ledger:
        with pytest.raises(ValueError, match="run is ''"):
            ledger.append(ROUND, run="", round=0)
        with pytest.raises(ValueError, match="round is -1"):
            ledger.append(ROUND, run="a", round=-1)
