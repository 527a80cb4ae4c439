"""Keys that are kept on a device: over reloads, under a passphrase, in one tab at a time."""

import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.privacy.inference_service.browser.test_page import (
    LABELS,
    PAGE,
    READY,
    X,
    asked,
    opened,
    status,
)
from tests.privacy.inference_service.serving import Service

Serve = Callable[..., AbstractContextManager[Service]]
PASSPHRASE = "seven small boats at dawn"  # noqa: S105
# Everything in the database, as hexadecimal digits of each array.
STORED = """async () => {
    const done = (request) => new Promise((resolve, reject) => {
        request.onsuccess = () => resolve(request.result);
        request.onerror = () => reject(request.error);
    });
    const database = await done(indexedDB.open("bloomseal"));
    const [name] = database.objectStoreNames;
    const store = database.transaction(name).objectStore(name);
    const digits = (n) => n.toString(16).padStart(2, "0");
    const hex = (each) => typeof each === "string" ? each :
        [...new Uint8Array(each.buffer ?? each)].map(digits).join("");
    const rows = (await done(store.getAll())).map((row) =>
        Object.fromEntries(Object.entries(row).map(([key, value]) => [key, hex(value)])));
    database.close();
    return rows;
}"""


def keep(page: Any) -> None:
    page.get_by_text("Keep my keys on this device").click()
    page.get_by_label("A new passphrase").fill(PASSPHRASE)
    page.get_by_role("button", name="Keep them").click()
    status(page, re.compile("^Ready. Your keys are kept"))


def unlock(page: Any, passphrase: str = PASSPHRASE) -> None:
    page.get_by_label("The passphrase of your keys").fill(passphrase)
    page.get_by_role("button", name="Open my keys").click()


def test_kept_keys_last_over_a_reload_and_the_passphrase_does_not_leave(
    serve: Serve, context: Any
) -> None:
    bodies: list[tuple[str, bytes]] = []
    with serve(page=PAGE, bodies=bodies) as service:
        requests: list[Any] = []
        context.on("request", lambda request: requests.append(request))
        page = opened(context, service)
        status(page, READY)
        keep(page)
        assert asked(page, X[0]) == str(LABELS[0])
        (before,) = page.evaluate(STORED)
        assert before.keys() == {"digest", "name", "salt", "nonce", "sealed"}
        assert asked(page, X[1]) == str(LABELS[1])
        (after,) = page.evaluate(STORED)
        # Counted again, under a nonce of its own; nothing of the material's session key in it.
        assert before["nonce"] != after["nonce"]
        (material,) = [body for method, body in bodies if method == "PUT"]
        assert material[70:102].hex() not in json.dumps([before, after])

        page.goto("about:blank")
        page = opened(context, service)
        status(page, re.compile("^Your keys are on this device"))
        assert page.evaluate("document.activeElement.id") == "passphrase"
        unlock(page, "another passphrase")
        status(page, re.compile("^Your kept keys are not used: .*another passphrase"))
        unlock(page)
        status(page, READY)
        assert asked(page, X[2]) == str(LABELS[2])
        methods = [each.method for each in requests]
        assert (methods.count("PUT"), methods.count("DELETE")) == (1, 0)
        assert PASSPHRASE.encode() not in b"".join(body for _, body in bodies)
        assert not [each for each in requests if "boats" in each.url]

        # A second tab has keys of its own.
        other = opened(context, service)
        status(other, re.compile("^Your kept keys are in use in another tab. Ready"))
        assert asked(other, X[3]) == str(LABELS[3])
        assert asked(page, X[0]) == str(LABELS[0])
        other.close()

        # Keys that the service lost are replaced, and those are kept.
        service.clock.now += 24 * 3600
        assert asked(page, X[1]) == str(LABELS[1])
        (replaced,) = page.evaluate(STORED)
        assert replaced["name"] != after["name"]
        assert replaced["salt"] == after["salt"]

        page.goto("about:blank")
        page = opened(context, service)
        page.get_by_role("button", name="Delete them").click()
        status(page, READY)
        assert page.evaluate(STORED) == []
        assert asked(page, X[2]) == str(LABELS[2])


def test_keys_of_another_plan_are_not_used(serve: Serve, context: Any) -> None:
    with serve(page=PAGE) as service:
        page = opened(context, service)
        status(page, READY)
        keep(page)
        page.goto("about:blank")
        plan = json.loads(service.pool.plan.to_json())
        plan["model_version"] = "0" * 32
        changed = json.dumps(plan, sort_keys=True, separators=(",", ":"))
        context.route("**/v1/plan", lambda route: route.fulfill(body=changed))
        page = opened(context, service)
        unlock(page)
        status(page, re.compile("the model has changed since these keys were made, and they were"))
        assert page.evaluate(STORED) == []


@pytest.mark.parametrize("reload", [False, True])
def test_a_reload_resets_no_limit_of_release(
    serve: Serve, context: Any, modules: Any, reload: bool
) -> None:
    """Two answers a key, one of them before the reload."""
    with serve(origins=(modules.url.rstrip("/"),)) as service:
        page = context.new_page()
        page.goto(modules.url)
        begin = """async ([service, token, first, passphrase]) => {
            const { OwnerSession } = await import("/browser/session.js");
            const contract = { inputShape: [8], inputRange: [-1, 1], classes: 3 };
            const release = { kind: "flooded", statisticalBits: 2, queries: 2 };
            globalThis.session = new OwnerSession({ service, token, contract, release });
            await session.plan();
            if (first) await session.keep(passphrase);
            else {
                if ((await session.kept()) !== "here") throw new Error("no keys");
                await session.unlock(passphrase);
            }
        }"""
        given = [service.url, service.tokens["ada"]]
        ask = "async (x) => (await session.ask(x)).answer.logits[0].length"
        page.evaluate(begin, [*given, True, PASSPHRASE])
        assert page.evaluate(ask, X[0].tolist()) == 3
        if reload:
            page.reload()
            page.evaluate(begin, [*given, False, PASSPHRASE])
        assert page.evaluate(ask, X[1].tolist()) == 3
        with pytest.raises(Exception, match="2 answers were released under this key"):
            page.evaluate(ask, X[2].tolist())
