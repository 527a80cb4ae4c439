"""Both sides' command lines: ``serve``, ``ask`` and ``token``."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flower_app.__main__ import main
from flower_app.commands.ask import accepted_plan, ask_all
from flower_app.data import encode
from flower_app.models.build import build_model
from privacy.inference import compile_model
from privacy.inference.errors import PlanRefusedError
from privacy.inference_service import KeyFile, OwnerSession, ServiceClient, TokenFile
from tests.privacy.inference_service.serving import (
    CONTRACT,
    Service,
    X,
    serve_command,
    small_model,
)
from tests.privacy.test_tls_files import WRONG_PAIRS, tls_files

ROOT = Path(__file__).parents[3]
# Light on dark: what is drawn leaves a margin, as MNIST's digits do.
IMAGES = np.pad(
    np.random.default_rng(0).integers(0, 256, (4, 20, 20), dtype=np.uint8), ((0, 0), (4, 4), (4, 4))
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    torch.manual_seed(0)
    state = {
        name: torch.randn_like(t) for name, t in build_model("hog-linear").state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model": "hog-linear"}))
    return folder


@pytest.fixture(scope="module")
def served(results: Path) -> Iterator[tuple["subprocess.Popen[str]", list[str]]]:
    with serve_command(results) as running:
        yield running


def the_labels(results: Path, images: np.ndarray) -> list[int]:
    model = build_model("hog-linear")
    model.load_state_dict(load_file(results / "model.safetensors"))
    with torch.no_grad():
        return model(torch.from_numpy(encode(images, "hog"))).argmax(dim=1).tolist()


@pytest.mark.parametrize("keys", ["/dev/null/inside/keys", "one.npy/keys", "x" * 300])
def test_a_place_where_no_keys_can_be_stored_is_an_error_of_one_line(
    keys: str,
    served: tuple["subprocess.Popen[str]", list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOOMSEAL_PASSPHRASE", "correct horse")
    np.save("one.npy", IMAGES[0])
    ask = ["one.npy" if word == "IMAGE_OR_FOLDER" else word for word in served[1]]
    assert main([*ask, "--keys", keys]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert f"{keys} cannot be used" in output.err
    assert len(output.err.splitlines()) == 1


def test_a_passphrase_that_is_no_text_is_refused_and_not_shown(
    served: tuple["subprocess.Popen[str]", list[str]], tmp_path: Path
) -> None:
    np.save(tmp_path / "one.npy", IMAGES[0])
    ask = [str(tmp_path / "one.npy") if word == "IMAGE_OR_FOLDER" else word for word in served[1]]
    ended = subprocess.run(
        [sys.executable, "-m", "flower_app", *ask, "--keys", str(tmp_path / "keys")],
        cwd=ROOT,
        env={os.fsencode(name): os.fsencode(value) for name, value in os.environ.items()}
        | {b"PYTHONPATH": os.fsencode(ROOT), b"BLOOMSEAL_PASSPHRASE": b"stra\xdfe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert "passphrase holds bytes that are no UTF-8 text" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert "stra" not in ended.stderr


# It ends the service, so it comes after the others that ask.
def test_the_printed_command_asks_and_prints_classes_only(
    served: tuple["subprocess.Popen[str]", list[str]],
    results: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    process, command = served
    folder = tmp_path / "digits"
    folder.mkdir()
    for index, image in enumerate(IMAGES[:2]):
        Image.fromarray(image).save(folder / f"{index}.png")
    np.save(folder / "more.npy", IMAGES[2:])
    ask = [str(folder) if word == "IMAGE_OR_FOLDER" else word for word in command]
    keys = tmp_path / "owner.keys"
    right = the_labels(results, IMAGES)

    monkeypatch.delenv("BLOOMSEAL_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main([*ask, "--keys", str(keys)]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("error: there is no terminal")
    assert len(output.err.splitlines()) == 1

    monkeypatch.setenv("BLOOMSEAL_PASSPHRASE", "correct horse")
    assert main([*ask, "--keys", str(keys)]) == 0
    names = ["0.png", "1.png", "more.npy[0]", "more.npy[1]"]
    assert [line.split("] ", 1)[1] for line in capsys.readouterr().out.splitlines()] == [
        f"{name}: {label}" for name, label in zip(names, right, strict=True)
    ]
    assert keys.stat().st_mode & 0o777 == 0o600

    # While somebody else asks with the usual file of keys, keys are made for this call.
    monkeypatch.setattr("flower_app.commands.ask.user_data_path", lambda name: tmp_path / name)
    assert main(ask) == 0
    capsys.readouterr()
    (usual,) = (tmp_path / "bloomseal" / "keys").glob("*.keys")
    with KeyFile(usual, "correct horse"):
        assert main([*ask, "--keys", str(usual)]) == 1
        assert "another session uses" in capsys.readouterr().err
        assert main([*ask, "--json"]) == 0
        output = capsys.readouterr()
    assert [json.loads(line)["classes"] for line in output.out.splitlines()] == [[x] for x in right]
    assert "makes keys for itself" in output.err

    monkeypatch.setenv("BLOOMSEAL_PASSPHRASE", "wrong horse")
    assert main([*ask, "--keys", str(keys)]) == 1
    assert "does not open" in capsys.readouterr().err

    # An image that is none costs only itself, and the exit code.
    Image.new("L", (29, 28)).save(folder / "blank.png")
    (folder / "broken.png").write_bytes(b"\x89PNG")
    assert main([*ask, "--one-time-keys", "--json", "--top", "2"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["classes"][0] for line in lines] == right
    assert all(len(line["classes"]) == 2 for line in lines)
    assert "blank.png is blank" in output.err
    assert "broken.png cannot be read" in output.err

    # Several paths, one of which is not there; a dark drawing; a table on standard input.
    Image.fromarray(255 - IMAGES[1]).save(tmp_path / "dark.png")
    table = "\n".join(",".join(map(str, image.ravel())) for image in IMAGES[2:])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(table.encode())))
    paths = [str(folder / "0.png"), str(tmp_path / "none.png"), str(tmp_path / "dark.png"), "-"]
    assert command[2] == "IMAGE_OR_FOLDER"
    several = [*command[:2], *paths, *command[3:]]
    assert main([*several, "--one-time-keys", "--json"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    assert [line["classes"] for line in lines] == [[label] for label in right]
    assert [line["image"] for line in lines[2:]] == ["standard input[0]", "standard input[1]"]
    assert "note: dark.png: dark on light, so inverted" in output.err.splitlines()
    assert f"error: {tmp_path / 'none.png'} is not there" in output.err

    # Nothing is asked where nothing can be answered, and keys need not be made for that.
    for top, words in (("0", "--top is 0"), ("-1", "--top is -1"), ("11", "has 10 classes")):
        assert main([*ask, "--one-time-keys", "--top", top]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert words in output.err
        assert len(output.err.splitlines()) == 1

    monkeypatch.setenv("BLOOMSEAL_TOKEN", "guess")
    without = [word for word in ask if not word.endswith(".token") and word != "--token-file"]
    assert main([*without, "--one-time-keys"]) == 1
    assert capsys.readouterr().err.startswith("error: the token is missing, not known or expired")

    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert not Path(ask[ask.index("--token-file") + 1]).exists()  # the trial's files are gone


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "give --tls-certificate"),  # noqa: S104 - it must be refused
        (["--host", "0.0.0.0", "--insecure-no-tls"], "token add"),  # noqa: S104
        (["--tls-key", "key.pem"], "give both"),
        (["--tls-key", "key.pem", "--tls-certificate", "none.pem"], "is not there"),
        (["--tokens", "none.json"], "holds no tokens"),
        (["--queue", "0"], "queue is 0"),
        (["--key-hours", "nan"], "key_hours is nan"),
    ],
)
def test_serve_starts_only_if_callers_are_kept_out(
    arguments: list[str], why: str, results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", str(results), *arguments]) == 1
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "localhost"), ("127.0.0.2", "127.0.0.2"), ("::1", "[::1]")],
)
def test_the_printed_address_is_listened_on_and_in_the_certificate(
    host: str, url: str, tmp_path: Path
) -> None:
    small_model().save(tmp_path / "model")
    with serve_command(tmp_path / "model", "--host", host) as (_, ask):
        option = dict(pairwise(ask))
        assert re.fullmatch(rf"https://{re.escape(url)}:\d+", ask[1])
        token = Path(option["--token-file"]).read_text()
        with ServiceClient(ask[1], token=token, ca=option["--ca"]) as client:
            assert client.plan(CONTRACT).input_shape == CONTRACT.input_shape


@pytest.mark.parametrize(("certificate", "key", "words"), WRONG_PAIRS)
def test_serve_looks_into_tls_files_before_it_compiles(
    certificate: str,
    key: str,
    words: str,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = tls_files(tmp_path)
    given = ["--tls-certificate", str(files / certificate), "--tls-key", str(files / key)]
    assert main(["serve", str(results), "--port", "0", *given]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.match(f"error: --tls-{words}", output.err)
    assert len(output.err.splitlines()) == 1


def test_serve_starts_only_if_it_can_count_the_questions_of_invitations(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = TokenFile(tmp_path / "tokens.json")
    tokens.add("guest", questions=3)
    tokens.questions_file.mkdir()  # as on a file system that is read-only
    assert main(["serve", str(results), "--tokens", str(tmp_path / "tokens.json")]) == 1
    assert "counts the questions of invitations; keep tokens in a folder" in capsys.readouterr().err


def test_asking_without_tls_must_be_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "one.npy", IMAGES[0])
    assert main(["ask", "http://localhost:1", str(tmp_path)]) == 1
    assert "--insecure-no-tls" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["https://localhost:1", "missing.png"], "missing.png is not there"),
        (["https://localhost:1", "-", "-"], "- is given twice"),
        (["https://localhost:1", "one.npy", "--top", "0"], "--top is 0"),
        (["https://localhost:1", "one.npy", "--ca", "none.pem"], "--ca is 'none.pem'"),
        (["https://localhost:1", "one.npy", "--ca", "one.npy"], "--ca is 'one.npy'"),
        (["https://localhost:99999", "one.npy"], "url is 'https://localhost:99999'"),
        (["https://localhost:1", "one.npy", "--token-file", "token"], "token holds"),
        (["https://localhost:1", "one.npy", "--token-file", "none"], "token cannot be read"),
        (["https://localhost:1", "one.npy", "--one-time-keys"], "cannot be asked"),
    ],
)
def test_a_wrong_question_is_an_error_of_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("one.npy", IMAGES[0])
    Path("token").write_text("two words")
    assert main(["ask", *arguments]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert words in output.err
    assert len(output.err.splitlines()) == 1
    assert "two words" not in output.err  # a token is a secret


def test_a_row_outside_its_range_costs_that_row_alone(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    client = service.client()
    plan = client.plan(CONTRACT)
    rows = [X[0], np.where(np.arange(8) == 3, 7.0, X[1]), X[2]]
    questions = iter([(1, f"rows.csv[{n}]", row) for n, row in enumerate(rows)])
    assert ask_all(OwnerSession(client, plan), plan, questions, 1, as_json=False) == 1
    output = capsys.readouterr()
    assert [line.split(":")[0] for line in output.out.splitlines()] == [
        "rows.csv[0]",
        "rows.csv[2]",
    ]
    assert output.err.splitlines()[0].startswith("error: rows.csv[1]: the input has elements in [")
    assert "2 answered, 1 not" in output.err


def test_tokens_are_shown_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "tokens.json")
    assert main(["token", "add", file, "clinic"]) == 0
    token = capsys.readouterr().out.strip()
    assert token.startswith("bloomseal_")
    assert main(["token", "list", file]) == 0
    assert capsys.readouterr().out == "clinic\towner\n"
    assert main(["token", "add", file, "clinic"]) == 1
    assert main(["token", "remove", file, "clinic"]) == 0
    assert main(["token", "remove", file, "clinic"]) == 1


def test_a_plan_for_something_else_is_refused_before_keys_are_made() -> None:
    model = build_model("hog-linear")
    torch.nn.init.normal_(model[0].weight)
    wide = compile_model(model, input_shape=(392,), input_range=(-2.0, 2.0)).plan
    with pytest.raises(PlanRefusedError, match="input_range"):
        accepted_plan(wide.to_json())
    for text in ("", "[]", "{}", '{"input_shape": [3]}', "[" * 100_000):
        with pytest.raises(PlanRefusedError):
            accepted_plan(text)


@pytest.mark.parametrize("command", ["serve", "certify"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda file: file.write_bytes(b"junk"), "is damaged"),
        (lambda file: file.write_bytes(b""), "is damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "is damaged"),
        (lambda file: save_file({"0.weight": torch.zeros(10, 3)}, file), "does not hold the"),
        (lambda file: save_file({"weight": torch.zeros(10, 392)}, file), "does not hold the"),
        (
            lambda file: save_file({"0.weight": torch.full((10, 392), torch.nan)}, file),
            "not finite",
        ),
    ],
)
def test_a_damaged_model_is_an_error_of_one_sentence(
    command: str,
    damage: Callable[[Path], object],
    words: str,
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = {"model": "hog-linear", "dataset": "mnist", "data-dir": ""}
    (tmp_path / "config.json").write_text(json.dumps(config))
    file = tmp_path / "model.safetensors"
    file.write_bytes((results / "model.safetensors").read_bytes())
    damage(file)
    assert main([command, str(tmp_path)]) == 1
    output = capsys.readouterr()
    assert str(file) in output.err
    assert words in output.err
    assert len(output.err.splitlines()) == 1
