"""A worker's server: whatever is no question of the data owner's gets no answer."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privacy.shared_inference import (
    SharedModel,
    Worker,
    WorkerLimits,
    WorkerServer,
    compile_model,
)
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError
from privacy.shared_inference.frames import Kind, State, frame, refusal, refused, split
from tests.privacy.shared_inference.parties import session
from tests.privacy.shared_inference.shared_models import made
from tests.privacy.shared_inference.test_parties import mutations

INPUT = np.linspace(-1, 1, 10)


@pytest.fixture(scope="module")
def compiled() -> SharedModel:
    shape, model = made("relu")
    return compile_model(model, input_shape=shape, input_range=(-1, 1))


@contextlib.contextmanager
def serving(worker: Worker) -> Iterator[WorkerServer]:
    """Bob's server, which nobody calls."""
    listening = socket.create_server(("127.0.0.1", 0))
    with WorkerServer(worker, listening, listens=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)) as server:
        yield server


def test_no_altered_frame_of_ten_thousand_is_answered(compiled: SharedModel) -> None:
    here = session(compiled, 2)
    asked = frame(Kind.QUESTION, here.owner.ask(INPUT).for_bob)
    here.bob.prepare()
    with serving(here.bob) as server:
        for altered in mutations(asked, 10_000, seed=0):
            kind, body = split(server.reply(altered))
            assert kind == Kind.REFUSAL or (kind == Kind.STATE and altered[0] == Kind.STATE)
            if kind == Kind.STATE:
                assert State.from_bytes(body).next_question == 0
    assert here.bob.material.next_question == 0


def test_new_files_of_material_are_taken_in_when_they_are_whole(
    compiled: SharedModel, tmp_path: Path
) -> None:
    here = session(compiled, 0, tmp_path)
    folders = {name: tmp_path / f"new-{name}" for name in ("alice", "bob", "data_owner")}
    written = here.provider.write_material(5, **folders, questions_a_file=2)
    assert [path.name for path in written[::3]] == [f"{first:012d}.material" for first in (0, 2, 4)]
    store, own = here.bob.material, tmp_path / "BOB"
    for path in (folders["bob"]).iterdir():
        content = path.read_bytes()
        (own / path.name).write_bytes(content[:-1])
        assert store.look() == 0
        (own / path.name).write_bytes(content)
        assert store.look() in (1, 2)
    assert store.left == 5
    strange = own / "strange.material"
    strange.write_bytes(written[0].read_bytes())
    with pytest.raises(MessageError, match=r"strange\.material.*another party.*remove it"):
        store.look()
    strange.unlink()
    for path in folders["alice"].iterdir():
        here.alice.material.add(path.read_bytes())
    for path in folders["data_owner"].iterdir():
        here.owner.material.add(path.read_bytes())
    for _ in range(5):
        assert np.abs(here.logits(INPUT) - compiled.predict(INPUT[None])).max() <= (
            compiled.plan.error
        )
    assert not [*own.glob("*.material")]


@pytest.mark.parametrize("error", [MaterialError("a"), LinkError("b"), MessageError("c")])
def test_refusals_say_why(error: Exception) -> None:
    kind, body = split(refusal(error))
    assert kind == Kind.REFUSAL
    raised = refused(body, "bob")
    assert (type(raised), str(raised)) == (type(error), f"bob: {error}")


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"reason": "x", "text": ""}', b"[" * 9999])
def test_refusals_that_are_none_are_errors(body: bytes) -> None:
    assert "cannot be read" in str(refused(body, "bob"))


def test_a_worker_alone_says_who_is_missing(compiled: SharedModel) -> None:
    here = session(compiled, 2)
    listening = socket.create_server(("127.0.0.1", 0))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    limits = WorkerLimits(patience=0.05)
    with WorkerServer(here.bob, listening, listens=context, limits=limits) as server:
        kind, body = split(server.reply(frame(Kind.QUESTION, here.owner.ask(INPUT).for_bob)))
    assert kind == Kind.REFUSAL
    assert "alice has not called" in str(refused(body, "bob"))
