"""A worker's server: whatever is no question of the data owner's gets no answer."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.shared_inference import (
    Address,
    Link,
    RemoteWorkers,
    SharedModel,
    Worker,
    WorkerLimits,
    WorkerServer,
    compile_model,
)
from privacy.shared_inference.between import Between
from privacy.shared_inference.endpoints import call
from privacy.shared_inference.errors import LinkError, MaterialError, MessageError
from privacy.shared_inference.frames import Kind, State, frame, refusal, refused, split
from privacy.shared_inference.messages import OVERHEAD, Head, Party, Tag
from tests.privacy.shared_inference.parties import Session, session
from tests.privacy.shared_inference.shared_models import made
from tests.privacy.shared_inference.test_link import authority, connected, context
from tests.privacy.shared_inference.test_parties import mutations

INPUT = np.linspace(-1, 1, 10)


@pytest.fixture(scope="module")
def compiled() -> SharedModel:
    shape, model = made("relu")
    return compile_model(model, input_shape=shape, input_range=(-1, 1))


@contextlib.contextmanager
def serving(worker: Worker) -> Iterator[WorkerServer]:
    """Bob's server, which nobody calls."""
    bound = socket.create_server(("127.0.0.1", 0))
    nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    limits = WorkerLimits(patience=0.05)
    with WorkerServer(worker, bound, listens=nobody, limits=limits) as server:
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
    first = own / f"{0:012d}.material"
    content = first.read_bytes()
    first.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(MessageError, match=rf"{first.name}: .* altered.*copy it again"):
        store.read(1)
    first.write_bytes(content)
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


def test_material_that_is_no_good_loses_its_question_only(
    compiled: SharedModel, tmp_path: Path
) -> None:
    """Bob's first piece is altered, his third one's file is gone, and then his disk is full."""
    here = session(compiled, 0, tmp_path)
    for count in (2, 1, 1):
        here.provision(count)
    files = sorted((tmp_path / "BOB").glob("*.material"))
    content = bytearray(files[0].read_bytes())
    content[len(content) // 4] ^= 1
    files[0].write_bytes(content)
    asked = [frame(Kind.QUESTION, here.owner.ask(INPUT).for_bob) for _ in range(4)]
    with serving(here.bob) as server:
        server._ahead()  # as after each question: what is no good must not end the connection
        assert "was altered" in text_of(server.reply(asked[0]))
        assert "alice has not called" in text_of(server.reply(asked[1]))
        files[1].unlink()
        server._ahead()
        assert "cannot be read" in text_of(server.reply(asked[2]))
        here.bob.material._written = 0
        (tmp_path / "BOB" / "used").unlink()
        (tmp_path / "BOB" / "used").mkdir()
        assert "cannot be written" in text_of(server.reply(asked[3]))
        assert here.bob.material.next_question == 2  # of questions that were answered


def text_of(reply: bytes) -> str:
    kind, body = split(reply)
    assert kind == Kind.REFUSAL
    return str(refused(body, "bob"))


@contextlib.contextmanager
def listening(
    here: Session, name: str, folder: Path, limits: WorkerLimits | None = None
) -> Iterator[Address]:
    """A worker's server with certificates of a folder, at work."""
    given: dict[str, Any] = {"listens": context(folder, name, folder, listens=True)}
    if name == "alice":
        calling = context(folder, name, folder, listens=False)
        given |= {"calling": calling, "bob": Address("127.0.0.1", 1)}
    worker = here.alice if name == "alice" else here.bob
    bound = socket.create_server(("127.0.0.1", 0))
    address = Address(*bound.getsockname())
    with WorkerServer(worker, bound, **given, limits=limits) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listening socket was closed
                server.serve()

        threading.Thread(target=serve, daemon=True).start()
        yield address
        bound.shutdown(socket.SHUT_RDWR)


def calls(own: str, name: str, address: Address, folder: Path) -> Link:
    calling = context(folder, own, folder, listens=False)
    return call(address, name, calling, timeout=60.0, max_bytes=10_000)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates") / "trusted"
    return authority(folder, "alice", "bob", "data-owner", "model-owner")


@pytest.mark.parametrize(
    ("name", "caller"),
    [("bob", "bob"), ("bob", "model-owner"), ("alice", "alice"), ("alice", "bob")],
)
def test_nobody_asks_but_the_data_owner(
    name: str, caller: str, compiled: SharedModel, trusted: Path
) -> None:
    with listening(session(compiled, 1), name, trusted) as address:
        with calls(caller, name, address, trusted) as link, pytest.raises(LinkError, match="gone"):
            link.exchange(frame(Kind.STATE))
        with calls("data-owner", name, address, trusted) as link:
            assert link.exchange(frame(Kind.STATE))[0] == Kind.STATE


def test_strangers_without_a_certificate_keep_nobody_out(
    compiled: SharedModel, trusted: Path
) -> None:
    """Who says nothing holds no place, and goes when there are too many of them."""
    limits = WorkerLimits(connections=2)
    with (
        listening(session(compiled, 1), "bob", trusted, limits) as address,
        contextlib.ExitStack() as stack,
    ):
        silent = [socket.create_connection((address.host, address.port)) for _ in range(90)]
        for one in silent:
            stack.enter_context(one)
        links = [calls("data-owner", "bob", address, trusted) for _ in range(2)]
        for link in links:
            assert stack.enter_context(link).exchange(frame(Kind.STATE))[0] == Kind.STATE
        silent[0].settimeout(60.0)
        assert silent[0].recv(1) == b""
        with calls("data-owner", "bob", address, trusted) as link, pytest.raises(LinkError):
            link.exchange(frame(Kind.STATE))  # both places are taken
        links[0].close()
        for _ in range(1000):  # until the server has seen it
            with (
                contextlib.suppress(LinkError),
                calls("data-owner", "bob", address, trusted) as link,
            ):
                assert link.exchange(frame(Kind.STATE))[0] == Kind.STATE
                return
        pytest.fail("a place that was left is not given again")


def test_a_frame_longer_than_a_question_ends_the_connection(
    compiled: SharedModel, trusted: Path
) -> None:
    most = 8 * 10 + OVERHEAD + 1
    with (
        listening(session(compiled, 1), "bob", trusted) as address,
        calls("data-owner", "bob", address, trusted) as link,
    ):
        assert link.exchange(bytes(most))[0] == Kind.REFUSAL
        with pytest.raises(LinkError, match="gone"):
            link.exchange(bytes(most + 1))


def test_workers_of_another_plan_get_no_question(compiled: SharedModel, trusted: Path) -> None:
    there = session(compiled, 1)
    shape, model = made("relu", seed=1)
    another = compile_model(model, input_shape=shape, input_range=(-1, 1), batch_size=3)
    own = session(another, 1).owner
    with (
        listening(there, "alice", trusted) as alice,
        listening(there, "bob", trusted) as bob,
        RemoteWorkers(
            own,
            alice=alice,
            bob=bob,
            context=context(trusted, "data-owner", trusted, listens=False),
        ) as workers,
        pytest.raises(MessageError, match="alice works for another plan"),
    ):
        workers.logits(INPUT)
    assert own.material.left == 1


def test_a_failed_exchange_ends_the_workers_link(compiled: SharedModel) -> None:
    """Nothing of one question is left on it when the next one begins."""
    here = session(compiled, 1)
    one, other = connected()
    with serving(here.bob) as server, Link(one, timeout=60.0) as alice:
        server._between.offer(Link(other, timeout=60.0))
        question = here.owner.ask(INPUT)
        message = bytearray(next(here.alice.answer(question.for_alice)))
        message[-1] ^= 1
        alice.send(bytes(message))
        assert "was altered" in text_of(server.reply(frame(Kind.QUESTION, question.for_bob)))
        assert len(alice.receive()) == len(message)
        with pytest.raises(LinkError, match="gone"):
            alice.receive()


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
    with serving(here.bob) as server:
        reply = server.reply(frame(Kind.QUESTION, here.owner.ask(INPUT).for_bob))
    assert "alice has not called" in text_of(reply)


def about(question: int) -> bytes:
    return Head(Tag.EXCHANGE, Party.BOB, Party.ALICE, bytes(16), question).to_bytes() + bytes(28)


@contextlib.contextmanager
def between(*sent: bytes) -> Iterator[tuple[Between, list[Link]]]:
    """Alice's link to bob, who sends one message on each call and is silent after it."""
    pairs = [connected() for _ in sent]
    bobs = [Link(other, timeout=60.0) for _, other in pairs]
    for link, message in zip(bobs, sent, strict=True):
        link.send(message)
    calls = (Link(one, timeout=60.0) for one, _ in pairs)
    with contextlib.ExitStack() as stack:
        for link in bobs:
            stack.enter_context(link)
        made_of = Between("bob", call=lambda: next(calls), patience=60.0, timeout=60.0)
        stack.callback(made_of.close)
        yield made_of, bobs


def test_what_is_left_of_earlier_questions_is_left_behind() -> None:
    with between(about(3), b"?", about(5), about(6)) as (link, bobs):
        assert link.exchange(5, about(5)) == about(5)
        for bob in bobs[:3]:
            assert bob.receive() == about(5)  # the same bytes on every call
        with pytest.raises(LinkError, match="gone"):
            bobs[0].receive()
        bobs[2].close()
        with pytest.raises(LinkError, match="gone"):
            link.exchange(5, about(5))
        assert link.exchange(6, about(6)) == about(6)


def test_a_link_that_fails_makes_room_for_the_next() -> None:
    (first, gone), (second, bob) = connected(), connected()
    gone.close()
    called = iter([Link(first, timeout=60.0), Link(second, timeout=60.0)])
    link = Between("bob", call=lambda: next(called), patience=60.0, timeout=60.0)
    with Link(bob, timeout=60.0) as there, contextlib.closing(link):
        there.send(about(5))
        assert link.exchange(5, about(5)) == about(5)


def test_a_worker_that_is_ahead_is_an_error_at_once() -> None:
    with between(about(6)) as (link, _), pytest.raises(LinkError, match="is at question 6"):
        link.exchange(5, about(5))


def test_a_new_call_takes_the_place_of_the_last() -> None:
    with between() as (link, _):
        ends = [connected() for _ in range(2)]
        for one, _ in ends:
            link.offer(Link(one, timeout=60.0))
        with Link(ends[0][1], timeout=60.0) as old, pytest.raises(LinkError, match="gone"):
            old.receive()
        with Link(ends[1][1], timeout=60.0) as new:
            new.send(about(5))
            assert link.exchange(5, about(5)) == about(5)
