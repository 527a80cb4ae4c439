"""The owner's session by itself, as a site of one's own uses it: faults end in a sentence."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.privacy.inference_service.browser.conftest import MODULES
from tests.privacy.inference_service.browser.test_kept_keys import PASSPHRASE, STORED
from tests.privacy.inference_service.browser.test_page import X
from tests.privacy.inference_service.serving import Service

Serve = Callable[..., AbstractContextManager[Service]]
BEGIN = """async ([service, token, worker]) => {
    const { OwnerSession } = await import("/browser/session.js");
    const contract = { inputShape: [8], inputRange: [-1, 1], classes: 3 };
    const made = worker && new Worker(worker, { type: "module" });
    globalThis.session = new OwnerSession({ service, token, contract, worker: made ?? undefined });
}"""
# What a call of the session ends in, in words.
CALLED = """async ([name, ...given]) => {
    const late = new Promise((resolve) => setTimeout(resolve, 20_000, "nothing, for 20 s"));
    const call = session[name](...given).then(
        (value) => JSON.stringify(value) ?? "done",
        ({ name, message }) => `${name}: ${message}`,
    );
    return Promise.race([call, late]);
}"""


@pytest.fixture
def page(context: Any, modules: Any) -> Any:
    """A page of the site's own origin, which has the modules."""
    made = context.new_page()
    made.goto(modules.url)
    return made


def site(modules: Any) -> str:
    return str(modules.url).rstrip("/")


def test_keys_that_another_tab_uses_are_not_opened_and_not_deleted(
    serve: Serve, context: Any, modules: Any, page: Any
) -> None:
    with serve(origins=(site(modules),)) as service:
        given = [service.url, service.tokens["ada"], None]
        page.evaluate(BEGIN, given)
        assert "give a passphrase" in page.evaluate(CALLED, ["keep", ""])
        assert page.evaluate(CALLED, ["keep", PASSPHRASE]) == "done"
        other = context.new_page()
        other.goto(modules.url)
        other.evaluate(BEGIN, given)
        for call in (["unlock", PASSPHRASE], ["keep", PASSPHRASE], ["forget"]):
            assert "SecretsError: another tab uses the keys" in other.evaluate(CALLED, call)
        assert other.evaluate(CALLED, ["kept"]) == '"elsewhere"'
        assert "another tab" in other.evaluate(CALLED, ["unlock", PASSPHRASE])
        assert '"labels"' in page.evaluate(CALLED, ["ask", X[0].tolist()])
        # Without a word about kept keys before: they are opened, and deleted.
        for call in (["unlock", PASSPHRASE], ["forget"]):
            page.reload()
            page.evaluate(BEGIN, given)
            assert page.evaluate(CALLED, call) == "done"
        assert page.evaluate(STORED) == []


def test_a_worker_that_is_not_there_or_has_ended_keeps_nobody_waiting(
    serve: Serve, modules: Any, page: Any
) -> None:
    with serve(origins=(site(modules),)) as service:
        given = [service.url, service.tokens["ada"]]
        page.evaluate(BEGIN, [*given, "/browser/no-such-worker.js"])
        assert "worker that holds the key" in page.evaluate(CALLED, ["plan"])
        page.evaluate(BEGIN, [*given, None])
        page.evaluate("session.end()")
        assert "worker that holds the key" in page.evaluate(CALLED, ["prepare"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("**/v1/keys/binding", "<html>"),
        ("**/v1/keys/binding", '{"binding": 5}'),
        ("**/v1/keys", '{"key_id": "../../elsewhere"}'),
        ("**/v1/keys", "null"),
    ],
)
def test_a_reply_that_is_none_is_refused_with_a_sentence(
    serve: Serve, modules: Any, page: Any, path: str, body: str
) -> None:
    headers = {"Access-Control-Allow-Origin": site(modules)}
    with serve(origins=(site(modules),)) as service:
        page.route(path, lambda route: route.fulfill(body=body, headers=headers))
        page.evaluate(BEGIN, [service.url, service.tokens["ada"], None])
        assert "The service's reply is none" in page.evaluate(CALLED, ["prepare"])


def test_what_cannot_be_a_token_is_none(serve: Serve, modules: Any, page: Any) -> None:
    with serve(origins=(site(modules),)) as service:
        page.evaluate(BEGIN, [service.url, "мой ключ", None])
        assert "ServiceError: That is no invitation" in page.evaluate(CALLED, ["plan"])


def test_no_number_comes_from_a_generator_that_is_not_the_systems() -> None:
    for path in MODULES.rglob("*.js"):
        assert "Math.random" not in path.read_text(), path
