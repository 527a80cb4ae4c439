"""The benchmark beside other projects: a peer that computes, ones that fail, environments."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from torch import nn

from benchmarks import __main__ as command
from benchmarks import encrypted_peers
from benchmarks._peers.asking import Asked
from benchmarks._peers.environments import NON_COMMERCIAL, NotMeasuredError, Peer, interpreter
from benchmarks._peers.serving import Case, read_case, write_case
from privacy.inference import Square, compile_model

# Computes what it is given in the clear, and is as talkative as libraries are.
IN_THE_CLEAR = """
import sys
import numpy as np
from benchmarks._peers.serving import Prepared, serve

def prepare(case):
    print("a library's greeting")

    def evaluate(values):
        print("and its progress bar")
        for layer in case.layers:
            if layer.kind == "conv":
                outputs, _, size, _ = layer.weight.shape
                windows = np.lib.stride_tricks.sliding_window_view(values, (size, size), (1, 2))
                windows = windows[:, :: layer.stride, :: layer.stride]
                values = np.einsum("chwij,ocij->ohw", windows, layer.weight)
                values = values + layer.bias[:, None, None]
            elif layer.kind == "linear":
                values = layer.weight @ values + layer.bias
            else:
                values = values**2 if layer.kind == "square" else values.ravel()
        return values

    return Prepared(lambda image: image, evaluate, list, "none", {"keys": 7, "query": 3})

serve(prepare)
"""
# Answers twice, which is the uncounted turn and one more, and then runs out of memory.
DIES = IN_THE_CLEAR.replace("def prepare(case):", "left = [0, 0]\n\ndef prepare(case):").replace(
    'print("and its', 'left.pop() if left else sys.exit("no memory")\n        print("and its'
)
NEVER_STARTS = "raise SystemExit('no such library')"
SILENT = "import sys; sys.stdin.read()"

COMPUTES, BREAKS, BROKEN = (Peer(name, name, ()) for name in ("computes", "breaks", "broken"))
ABSENT = Peer("absent", "absent", ())


def script(folder: Path, text: str) -> list[str]:
    file = folder / f"peer{len(list(folder.iterdir()))}.py"
    file.write_text(text)
    return [sys.executable, str(file)]


def model() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2), Square(), nn.Flatten(), nn.Linear(18, 10)
    ).eval()


def images(count: int) -> np.ndarray:
    return np.random.default_rng(1).uniform(size=(count, 1, 8, 8))


def test_sides_get_the_same_weights_and_failures_are_reported(tmp_path: Path) -> None:
    """Where a peer dies or is not there, the others are measured all the same."""
    network = model()
    compiled = compile_model(network, input_shape=(1, 8, 8), input_range=(0.0, 1.0))
    logged: list[str] = []
    rows = encrypted_peers.compare(
        "small",
        compiled,
        Case(encrypted_peers.layers(network), images(3)),
        {
            COMPUTES: script(tmp_path, IN_THE_CLEAR),
            BREAKS: script(tmp_path, DIES),
            BROKEN: script(tmp_path, NEVER_STARTS),
        },
        {ABSENT: "no environment"},
        logged.append,
    )
    by_metric = {(row.metric, row.peer_name): row for row in rows}
    assert by_metric["argmax agreement", "computes"].ratio == 1.0
    error = by_metric["largest logit error", "computes"]
    assert error.peer is not None
    assert error.peer.median < 1e-12 < error.ours.median < 2.0**compiled.plan.error_bits
    evaluation = by_metric["evaluation", "computes"]
    assert evaluation.peer is not None
    assert evaluation.peer.repetitions == evaluation.ours.repetitions == 3
    keys = by_metric["keys", "computes"]
    assert keys.peer is not None
    assert keys.peer.median == 7 < keys.ours.median
    for why in (
        "breaks: not measured: it ended with code 1: no memory",
        "broken: not measured: it ended with code 1: no such library",
        "absent: not measured: no environment",
    ):
        assert by_metric["evaluation", why].peer is None
        assert any(why in line for line in logged)
        assert why in command.table(rows)
    assert len(rows) == 5 + 3

    picture = tmp_path / "picture.png"
    encrypted_peers.draw({"rows": [row.as_dict() for row in rows]}, picture)
    assert picture.stat().st_size > 10_000


def test_a_peer_that_says_nothing_is_not_waited_for(tmp_path: Path) -> None:
    with pytest.raises(NotMeasuredError, match=r"did not answer within 0\.1 s"):
        Asked(script(tmp_path, SILENT), patience=0.1)


def test_a_case_comes_back_as_it_was_written(tmp_path: Path) -> None:
    case = Case(encrypted_peers.layers(model()), images(2))
    write_case(tmp_path / "case.npz", case)
    back = read_case(tmp_path / "case.npz")
    np.testing.assert_array_equal(back.images, case.images)
    assert [layer.kind for layer in back.layers] == ["conv", "square", "flatten", "linear"]
    assert (back.layers[0].stride, back.depth) == (2, 3)
    for ours, theirs in zip(case.layers, back.layers, strict=True):
        if ours.weight is not None:
            np.testing.assert_array_equal(theirs.weight, ours.weight)
            np.testing.assert_array_equal(theirs.bias, ours.bias)
    with pytest.raises(TypeError, match="Tanh"):
        encrypted_peers.layers(nn.Sequential(nn.Tanh()))


def test_an_environment_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    peer = Peer("tiny", "Tiny", ("tiny-peer==1.0",))
    logged: list[str] = []
    with pytest.raises(NotMeasuredError, match="--quick"):
        interpreter(peer, make=False, log=logged.append)
    assert not logged
    with pytest.raises(NotMeasuredError, match=r"does not install here.*tiny-peer==1\.0"):
        interpreter(peer, make=True, log=logged.append)
    with pytest.raises(NotMeasuredError, match="--quick"):  # what is half made is not used
        interpreter(peer, make=False, log=logged.append)

    with zipfile.ZipFile(wheels / "tiny_peer-1.0-py3-none-any.whl", "w") as wheel:
        about = "tiny_peer-1.0.dist-info/"
        wheel.writestr("tiny_peer.py", "answer = 42\n")
        wheel.writestr(about + "METADATA", "Metadata-Version: 2.1\nName: tiny-peer\nVersion: 1.0\n")
        wheel.writestr(
            about + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(about + "RECORD", "")
    python = interpreter(peer, make=True, log=logged.append)
    assert interpreter(peer, make=False, log=logged.append) == python
    assert len(logged) == 2
    program = (
        "import json, sys, numpy, tiny_peer; "
        "print(json.dumps([tiny_peer.answer, numpy.__version__, sys.prefix]))"
    )
    done = subprocess.run(
        [str(python), "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert json.loads(done.stdout) == [42, np.__version__, str(python.parents[1])]


def test_a_licence_is_the_users_to_accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: tmp_path)
    monkeypatch.delenv(NON_COMMERCIAL, raising=False)
    peer = Peer("bound", "Bound", ("bound==1",), non_commercial=True)
    with pytest.raises(NotMeasuredError, match=f"{NON_COMMERCIAL}=1"):
        interpreter(peer, make=True, log=print)
    assert not list(tmp_path.iterdir())
