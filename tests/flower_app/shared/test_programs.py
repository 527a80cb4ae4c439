"""The programs of inference in shares: one session, from a trained model to answers."""

import contextlib
import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from flower_app.__main__ import main
from flower_app.commands.ask_shared import ask_workers
from flower_app.data import load_dataset
from flower_app.errors import CommandFailedError
from flower_app.models.build import build_model
from flower_app.shared.folders import NAMES, PartyFolder, write_secret
from flower_app.shared.session import begin_session
from flower_app.tasks import build_for, read_task
from privacy.shared_inference import Address, DataOwner, RemoteWorkers
from privacy.shared_inference.errors import LinkError, MaterialError
from tests.flower_app.tasks.projects import project

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The provider's folder of a session with the app's MLP, in which parties' folders are."""
    results = tmp_path_factory.mktemp("results")
    torch.manual_seed(0)
    model = build_model("mlp")
    torch.nn.init.normal_(model[-1].weight)
    save_file(model.state_dict(), results / "model.safetensors")
    (results / "config.json").write_text(json.dumps({"model": "mlp"}))
    folder = results / "session"
    for command in (
        ["share", "plan", str(results), str(results / "plan"), "--answer", "logits"],
        ["provider", "begin", str(results / "plan"), str(folder)],
        ["share", "model", str(results), str(folder / "model-owner")],
        ["provider", "deal", str(folder), "--questions", "40"],
    ):
        assert main(command) == 0
    for worker in ("alice", "bob"):
        shutil.copy(folder / "model-owner" / f"{worker}.model", folder / worker / "model")
    return folder


@contextlib.contextmanager
def started(name: str, folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A worker's process, and its address."""
    command = [sys.executable, "-m", "flower_app", "worker", name, str(folder / name)]
    command += ["--patience", "10", *options]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"{name} listens on" in line, line + process.communicate()[1]
            yield process, line.split(" listens on ")[1].split(",")[0]
        finally:
            process.kill()


def test_a_worker_that_is_killed_and_restarted_loses_that_question_only(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = load_dataset("mnist", data_dir=None).test.images[:2]
    np.save(tmp_path / "images.npy", images)
    ask = ["ask", "", str(tmp_path / "images.npy"), "--shared", str(session / "data-owner")]
    own = PartyFolder(session / "data-owner")
    inputs = images[0][None] / 255.0
    with started("bob", session, "--listen", "127.0.0.1:0") as (bob, bobs):
        calls = ("--listen", "127.0.0.1:0", "--bob", bobs)
        with started("alice", session, *calls) as (alice, alices):
            ask[1] = f"{alices},{bobs}"
            assert main(ask) == 0
            expected = capsys.readouterr().out.split()
            assert len(expected) == 4  # two names, with a class each
            ask[1] = f"127.0.0.1:1,{bobs}"
            assert main(ask) == 1
            assert "alice at 127.0.0.1:1 cannot be reached" in capsys.readouterr().err
            ask[1] = f"{bobs},{bobs}"
            assert main(ask) == 1
            assert "its certificate is that of 'bob'" in capsys.readouterr().err
            port = int(alices.rpartition(":")[2])
            owner = DataOwner(own.plan(), own.letter(), own.material)
            there = RemoteWorkers(
                owner,
                alice=Address("127.0.0.1", port),
                bob=Address.parse(bobs),
                context=own.context(listens=False),
            )
            with ThreadPoolExecutor(1) as thread, there, contextlib.closing(owner):
                logits = there.logits(inputs)
                alice.send_signal(signal.SIGSTOP)
                lost = thread.submit(there.logits, inputs)
                alice.kill()
                with pytest.raises(LinkError, match="alice"):
                    lost.result()
                restarted = ("--listen", f"127.0.0.1:{port}", *calls[2:])
                with started("alice", session, *restarted) as (alice, _):
                    # Rounding may differ in the last bits: what is shortened may be one more.
                    error = 2 * owner.plan.error
                    assert np.abs(there.logits(inputs) - logits).max() <= error
                    bob.send_signal(signal.SIGTERM)
                    assert bob.wait() == 128 + signal.SIGTERM
                    with started("bob", session, "--listen", bobs) as (bob, _):
                        for _ in range(3):
                            assert np.abs(there.logits(inputs) - logits).max() <= error
                    assert owner.material.next_question <= 6 + 2 * 17
                    alice.send_signal(signal.SIGTERM)
                    assert alice.wait() == 128 + signal.SIGTERM
    assert not [path for path in session.rglob("*") if ".new" in path.name]


def test_an_input_outside_its_range_costs_that_question_alone(
    session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = load_dataset("mnist", data_dir=None).test.images[0] / np.float32(255)
    inputs = [image[None], image[None] * 2, image[None]]
    questions = [(1, f"images.npy[{n}]", each) for n, each in enumerate(inputs)]
    with started("bob", session, "--listen", "127.0.0.1:0") as (_, bobs):
        calls = ("--listen", "127.0.0.1:0", "--bob", bobs)
        with started("alice", session, *calls) as (_, alices):
            failed = ask_workers(
                f"{alices},{bobs}",
                session / "data-owner",
                lambda _: iter(questions),
                1,
                names=(),
                top=None,
                as_json=False,
            )
    output = capsys.readouterr()
    assert failed == 1
    assert [line.split(":")[0] for line in output.out.splitlines()] == [
        "images.npy[0]",
        "images.npy[2]",
    ]
    assert "error: images.npy[1]: an input has a value outside [0, 1]" in output.err


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["worker", "alice", "{}/bob"], "is bob's folder"),
        (["worker", "bob", "{}/model-owner"], "certificates in"),
        (["worker", "bob", "{}/bob", "--bob", "localhost:1"], "--bob is for alice"),
        (["worker", "bob", "{}/bob", "--listen", "localhost"], "give host:port"),
        (["worker", "bob", "{}/bob", "--connections", "0"], "connections is 0"),
        (["provider", "begin", "{}/plan", "{}"], "has a session already"),
        (["provider", "deal", "{}/alice", "--questions", "1"], "has no session"),
        (["provider", "deal", "{}", "--questions", "0"], "--questions is 0"),
        (["ask", "alice", "{}/plan", "--shared", "{}/data-owner"], "alice's and bob's addresses"),
        (["ask", "a:1,b:2", "{}/plan", "--shared", "{}/d", "--one-time-keys"], "--one-time-keys"),
        (["ask", "a:1,b:2", "{}/plan", "--shared", "{}/d"], "d/plan cannot be read"),
        (["ask", "a:1,b:2", "{}/plan", "--shared", "{}/alice"], "another party than data_owner"),
        (["ask", "a:1,b:2", "{}/plan", "--shared", "{}/model-owner"], "certificates in"),
        (["ask", "a:1,b:2", "{}/plan", "--shared", "{}"], "certificates in"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_remedy(
    command: list[str], words: str, session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (session / "digit.npy").touch()
    given = [word.replace("{}", str(session)) for word in command]
    if given[0] == "ask":
        given[2] = str(session / "digit.npy")
    assert main(given) == 1
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (["--days", "10000000"], "--days is 10000000; give 1 to 36,525"),
        (["--days", "0"], "--days is 0"),
        (["--alice", "klinik-münchen.example"], "host is 'klinik-münchen.example'; give a name"),
        (["--bob", "bob.example:7442"], "host is 'bob.example:7442'; give a name"),
        (["--bob", ""], "host is ''; give a name"),
    ],
)
def test_a_session_that_cannot_begin_leaves_nothing_behind(
    mistake: list[str],
    words: str,
    session: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    begin = ["provider", "begin", str(session / "plan"), str(tmp_path)]
    assert main([*begin, *mistake]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err
    assert len(output.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
    assert main([*begin, "--alice", "xn--klinik-mnchen-0ob.example", "--bob", "::1"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in parts(session)}
    assert all(path.stat().st_mode & 0o077 == 0 for path in parts(tmp_path))


def parts(folder: Path) -> list[Path]:
    """What `provider begin` makes in the provider's folder."""
    return [folder / name for name in (*NAMES.values(), "plan", "state")]


@pytest.mark.parametrize("there", ["plan", "bob", "state"])
def test_what_is_in_the_providers_folder_is_left_alone(
    there: str, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / there).write_text("mine")
    assert main(["provider", "begin", str(session / "plan"), str(tmp_path)]) == 1
    assert "give another folder" in capsys.readouterr().err
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As on a disk that is full: what would make a file larger is refused."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_no_part_of_a_session(session: Path, tmp_path: Path) -> None:
    plan = PartyFolder(session).plan()
    sizes = sorted({path.stat().st_size for path in session.glob("**/*") if path.is_file()})
    begin = partial(begin_session, plan, tmp_path, alice="a", bob="b", lifetime=timedelta(days=1))
    for size in (0, *sizes[:4]):
        with files_of_at_most(size), pytest.raises(CommandFailedError, match="too large"):
            begin()
        assert not list(tmp_path.iterdir())
    with files_of_at_most(1000), pytest.raises(CommandFailedError, match="cannot be written"):
        write_secret(tmp_path / "secret", bytes(1001))
    assert not list(tmp_path.iterdir())


def test_both_shares_of_a_model_are_written_or_none(
    session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "model-owner"
    shutil.copytree(session / "model-owner", own)
    (own / "alice.model").unlink()
    share = ["share", "model", str(session.parent), str(own)]
    assert main(share) == 1
    assert "bob.model cannot be written: File exists" in capsys.readouterr().err
    assert not (own / "alice.model").exists()
    (own / "bob.model").unlink()
    assert main(share) == 0


def test_a_worker_listens_on_ipv6(session: Path) -> None:
    with started("bob", session, "--listen", "[::1]:0") as (_, bobs):
        address = Address.parse(bobs)
        assert address.host == "::1"
        with socket.create_connection((address.host, address.port), timeout=30):
            pass


def test_the_same_material_is_refused_to_two_processes(
    session: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = PartyFolder(session / "data-owner")
    owner = DataOwner(own.plan(), own.letter(), own.material)
    with contextlib.closing(owner):
        with pytest.raises(MaterialError, match="another worker or data owner"):
            DataOwner(own.plan(), own.letter(), own.material)
        (session / "digit.npy").touch()
        asked = ["ask", "a:1,b:2", str(session / "digit.npy"), "--shared", str(own.path)]
        assert main(asked) == 1
        assert "another worker or data owner uses the material" in capsys.readouterr().err


def test_folders_are_taken_from_where_the_command_is_started(
    session: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(session / "plan", tmp_path / "plan")
    monkeypatch.chdir(tmp_path)
    np.save("digit.npy", np.triu(np.full((28, 28), 255, dtype=np.uint8)))
    assert main(["provider", "begin", "plan", "provider"]) == 0
    assert main(["provider", "deal", "provider", "--questions", "1"]) == 0
    model = Path("provider/alice/model")
    shutil.copy(session / "alice" / "model", model)
    capsys.readouterr()
    assert main(["worker", "alice", "provider/alice"]) == 1
    assert "another session" in capsys.readouterr().err
    ask = ["ask", "127.0.0.1:1,127.0.0.1:1", "digit.npy", "--shared", "provider/data-owner"]
    assert main(ask) == 1
    assert "alice at 127.0.0.1:1 cannot be reached" in capsys.readouterr().err


def test_rows_of_a_task_are_answered_by_their_columns_and_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = project(tmp_path / "project")
    results = tmp_path / "results"
    results.mkdir()
    own = read_task(task)
    model = build_for(own)
    torch.nn.init.constant_(model[-1].weight[1], 1.0)
    save_file(model.state_dict(), results / "model.safetensors")
    (results / "config.json").write_text(json.dumps({"model": own.model, "task": str(task)}))
    shutil.copy(task, results / "task.toml")
    folder = tmp_path / "session"
    for command in (
        ["share", "plan", str(results), str(tmp_path / "plan"), "--public-model"],
        ["provider", "begin", str(tmp_path / "plan"), str(folder)],
        ["share", "model", str(results), str(folder / "model-owner")],
        ["provider", "deal", str(folder), "--questions", "3"],
    ):
        assert main(command) == 0
    for worker in ("alice", "bob"):
        shutil.copy(folder / "model-owner" / f"{worker}.model", folder / worker / "model")
    ask = ["--shared", str(folder / "data-owner"), "--task", str(task)]
    rows = ["age=100,sex=male", "age=1,sex=male"]
    with (
        started("bob", folder, "--listen", "127.0.0.1:0") as (_, bob),
        started("alice", folder, "--listen", "127.0.0.1:0", "--bob", bob) as (_, alice),
    ):
        capsys.readouterr()
        assert main(["ask", f"{alice},{bob}", *rows, *ask]) == 0
        out = capsys.readouterr().out
        assert out == f"[1/2] {rows[0]}: a visit\n[2/2] {rows[1]}: no visit\n"
        np.save(tmp_path / "digit.npy", np.zeros((28, 28), dtype=np.uint8))
        assert main(["ask", f"{alice},{bob}", str(tmp_path / "digit.npy"), *ask[:2]]) == 1
        assert "which no model here has; give --task FILE" in capsys.readouterr().err
        task.write_text(task.read_text().replace("age = [0, 110]", "age = [0, 120]"))
        assert main(["ask", f"{alice},{bob}", *rows, *ask]) == 1
        assert "which the task visits does not have" in capsys.readouterr().err
