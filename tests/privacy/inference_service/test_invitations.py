"""Tokens for so many hours and questions, and links that hold them."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI
from filelock import FileLock

from flower_app.__main__ import main
from privacy.inference import InputContract
from privacy.inference_service import Page, ServiceClient, TokenFile
from privacy.inference_service.errors import ServiceError, TokenFileError
from privacy.inference_service.page import add_page
from privacy.inference_service.questions import Questions
from privacy.inference_service.tokens import Caller
from tests.privacy.inference_service.serving import Clock, Service

Serve = Callable[..., AbstractContextManager[Service]]


def test_a_token_is_known_for_its_hours(tmp_path: Path) -> None:
    clock = Clock()
    file = TokenFile(tmp_path / "tokens.json", clock=clock)
    token, lasting = file.add("guest", hours=1.5), file.add("clinic")
    clock.now += 1.5 * 3600 - 1
    assert file.caller(token) is not None
    clock.now += 1
    assert file.caller(token) is None
    assert file.caller(lasting) is not None
    assert TokenFile(tmp_path / "tokens.json", clock=clock).caller(token) is None


def test_so_many_questions_are_answered_and_no_more(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tokens.json"
    token = TokenFile(file).add("guest", questions=3)
    with serve(tokens=TokenFile(file)) as service:
        service.tokens["guest"] = token
        service.owner("guest").label()
    assert main(["token", "list", str(file)]) == 0
    assert "1 of 3 questions asked" in capsys.readouterr().out
    with serve(tokens=TokenFile(file)) as service:  # started again
        service.tokens["guest"] = token
        owner = service.owner("guest")
        query = owner.query()
        answer = owner.send(query)
        assert owner.keys.decrypt(answer).label in (0, 1, 2)
        with pytest.raises(ServiceError, match="answered before"):
            owner.send(query)  # is refused, and not counted
        owner.label()
        for asking in (owner, service.owner("guest")):  # other keys do not help
            with pytest.raises(ServiceError, match="3 questions of this invitation") as refused:
                asking.label()
            assert (refused.value.code, refused.value.status) == ("used-up", 403)


def test_questions_that_cannot_be_counted_are_not_answered(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    tokens = TokenFile(file)
    lasting = tokens.add("clinic")
    with serve(tokens=tokens) as service:
        service.tokens |= {"clinic": lasting, "guest": tokens.add("guest", questions=3)}
        tokens.questions_file.mkdir()  # as on a file system that is read-only
        service.owner("clinic").label()
        with pytest.raises(ServiceError) as refused:
            service.owner("guest").label()
        assert (refused.value.code, refused.value.status) == ("misconfigured", 500)


def test_a_file_whose_count_is_no_number_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    token = TokenFile(path).add("guest", questions=7)
    path.write_text(path.read_text().replace("7\n", '"7"\n'))
    with pytest.raises(TokenFileError, match="questions is '7'"):
        TokenFile(path).caller(token)


def test_a_question_that_fails_is_not_counted_and_none_is_asked_twice(tmp_path: Path) -> None:
    file, guest = tmp_path / "questions", Caller("guest", "owner", "id", questions=1)

    async def asked() -> None:
        one, other = Questions(file), Questions(file)  # two services with one file
        with pytest.raises(OSError, match="lost"):
            async with one.one_of(guest):
                raise OSError("lost")
        async with one.one_of(guest):
            with pytest.raises(ServiceError, match="have been asked"):
                async with other.one_of(guest):
                    pass
        assert other.asked(guest) == 1

    asyncio.run(asked())
    for content in ("[]", '{"id": -1}', "{"):
        file.write_text(content)
        with pytest.raises(TokenFileError, match="not a file of counts"):
            Questions(file).asked(guest)


def test_others_are_served_while_a_question_waits_to_be_given_back(tmp_path: Path) -> None:
    file, guest = tmp_path / "questions", Caller("guest", "owner", "id", questions=1)
    elsewhere = FileLock(f"{file}.lock", thread_local=False)  # of another service
    too_late = threading.Timer(20, elsewhere.release)

    async def asked() -> None:
        questions, fails = Questions(file), asyncio.Event()

        async def fail() -> None:
            async with questions.one_of(guest):
                elsewhere.acquire()
                too_late.start()
                fails.set()
                raise OSError("lost")

        question = asyncio.create_task(fail())
        await fails.wait()
        assert elsewhere.is_locked, "nothing else ran until the other service was done"
        elsewhere.release()
        with pytest.raises(OSError, match="lost"):
            await question
        assert questions.asked(guest) == 0

    try:
        asyncio.run(asked())
    finally:
        too_late.cancel()


def test_a_copy_of_the_page_is_made_in_a_thread() -> None:
    app = FastAPI()
    add_page(app, Page("Ask", InputContract((8,), (-1.0, 1.0), classes=3), "numbers"), copies=True)
    (made,) = [route.endpoint for route in app.routes if getattr(route, "name", "") == "copy"]
    assert not inspect.iscoroutinefunction(made)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        ({"hours": 0}, "hours is 0"),
        ({"questions": 0}, "questions is 0"),
        ({"hours": -1.0}, "hours"),
    ],
)
def test_an_invitation_for_nothing_is_refused(
    tmp_path: Path, limits: dict[str, float], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        TokenFile(tmp_path / "tokens.json").add("guest", **limits)  # type: ignore[arg-type]


def test_a_link_holds_a_token_where_no_server_reads_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], serve: Serve
) -> None:
    file = tmp_path / "tokens.json"
    arguments = ["token", "add", str(file), "guest", "--hours", "2", "--questions", "5"]
    assert main([*arguments, "--link", "https://model.example:8443/"]) == 0
    page, _, token = capsys.readouterr().out.strip().partition("#token=")
    assert page == "https://model.example:8443/"
    with serve(tokens=TokenFile(file)) as service:
        client = ServiceClient(service.url, token=token, ca=service.certificates.ca)
        assert len(client.key_binding()) == 32
    assert main(["token", "add", str(file), "other", "--hours", "nan"]) == 1
    assert "hours" in capsys.readouterr().err
