"""The page in a real browser, with a real service: answers, refusals, and what leaves it."""

import hashlib
import http.server
import json
import re
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privacy.inference.ckks import Ring, is_ternary
from privacy.inference.messages import Reader
from privacy.inference_service import Choice, InsecureNoAuthentication, Page
from tests.privacy.inference_service.serving import CONTRACT, Service, X, small_model
from tools import wire_vectors

Serve = Callable[..., AbstractContextManager[Service]]
NAMES = tuple(f"marker {n}" for n in range(8))
PAGE = Page("Ask about eight numbers", CONTRACT, "numbers", feature_names=NAMES)
LABELS = small_model().predict(X).argmax(axis=1).tolist()
READY = re.compile("^Ready")
ANSWERED = re.compile("^Answered")


@pytest.fixture
def served(serve: Serve) -> Iterator[Service]:
    with serve(page=PAGE) as service:
        yield service


def opened(context: Any, service: Service, name: str = "ada") -> Any:
    page = context.new_page()
    page.goto(f"{service.url}/#token={service.tokens[name]}")
    return page


def status(page: Any, says: str | re.Pattern[str]) -> None:
    from playwright.sync_api import expect

    expect(page.locator("#status")).to_have_text(says, timeout=30_000)


def typed(page: Any, x: np.ndarray) -> None:
    for name, value in zip(NAMES, x, strict=True):
        page.get_by_label(name).fill(repr(float(value)))


def asked(page: Any, x: np.ndarray) -> str:
    """Type an input and ask; the class that the page shows."""
    typed(page, x)
    page.get_by_role("button", name="Ask").click()
    status(page, ANSWERED)
    return str(page.locator("#answer strong").inner_text())


def test_a_form_is_answered_as_in_the_clear_and_says_what_was_sent(
    served: Service, context: Any
) -> None:
    page = opened(context, served)
    status(page, READY)
    assert "token" not in page.url
    assert [asked(page, x) for x in X] == [str(label) for label in LABELS]
    plan = served.pool.plan
    table = page.get_by_role("table").inner_text()
    for size in (plan.public_bytes, plan.query_bytes, plan.answer_bytes):
        assert f"{size / 1000:.1f} kB" in table
    assert page.locator("#noise").get_attribute("aria-label").startswith("Noise")


def test_every_request_is_one_of_the_protocols_and_none_has_a_key_or_the_input(
    serve: Serve, context: Any
) -> None:
    requests: list[Any] = []
    context.on("request", lambda request: requests.append(request))
    bodies: list[tuple[str, bytes]] = []
    with serve(page=PAGE, bodies=bodies) as served:
        page = opened(context, served)
        status(page, READY)
        for x in X:
            asked(page, x)
        plan, token = served.pool.plan, served.tokens["ada"]
        sent = []
        for request in requests:
            if request.url.startswith(("blob:", "about:")):
                continue
            # No other host: what the service read is all that was sent.
            assert request.url.startswith(served.url + "/"), request.url
            path = request.url.removeprefix(served.url)
            headers = request.all_headers()
            assert token not in path
            assert "cookie" not in headers
            assert "referer" not in headers
            if not path.startswith("/v1/"):
                assert request.method == "GET"
                assert "authorization" not in headers
                continue
            assert headers["authorization"] == f"Bearer {token}"
            length = int(headers.get("content-length", 0))
            sent.append((request.method, re.sub("[0-9a-f]{32}", "KEYS", path), length))
    assert sent.count(("PUT", "/v1/keys", plan.public_bytes)) == 1
    assert sent.count(("POST", "/v1/keys/KEYS/answers", plan.query_bytes)) == len(X)
    assert {(method, path) for method, path, _ in sent} == {
        ("GET", "/v1/plan"),
        ("GET", "/v1/keys/binding"),
        ("PUT", "/v1/keys"),
        ("POST", "/v1/keys/KEYS/answers"),
    }
    assert len(requests) > 20
    written = [(method, body) for method, body in bodies if body]
    assert sorted((method, len(body)) for method, body in written) == sorted(
        (method, length) for method, _, length in sent if length
    )
    ring = Ring(plan.degree, plan.prime_bits)
    for method, body in written:
        for x in X:
            for kind in ("<f8", "<f4", ">f8"):
                for value in x:
                    assert np.array([value], dtype=kind).tobytes() not in body
            assert repr(float(x[0])).encode() not in body
        for polynomial in _polynomials(body, plan, method):
            assert not is_ternary(ring, polynomial)


def _polynomials(body: bytes, plan: Any, method: str) -> Iterator[np.ndarray]:
    """Of material and queries of a plan that is one affine map."""
    if method == "PUT":
        reader = Reader(memoryview(body[70 + 32 :]))
        yield reader.residues(Ring(plan.degree, plan.prime_bits).primes, plan.degree)
    elif method == "POST":
        reader = Reader(memoryview(body[70:]))
        for _ in range(plan.ciphertexts):
            yield reader.residues(
                Ring(plan.degree, plan.prime_bits).primes[: plan.levels], plan.degree
            )
            reader.raw(32)


def test_the_service_forgets_the_keys_of_a_page_that_is_closed(
    served: Service, context: Any
) -> None:
    page = opened(context, served)
    status(page, READY)
    with served.client("operator") as operator:
        assert b"bloomseal_key_sets 1.0" in operator._request("GET", "/metrics", largest=1 << 16)[0]
        page.goto("about:blank")
        # The last request may be on its way.
        while (
            b"bloomseal_key_sets 0.0"
            not in operator._request("GET", "/metrics", largest=1 << 16)[0]
        ):
            page.title()


def test_what_leaves_the_owner_has_no_secret_key_in_it(modules: Any) -> None:
    """The key is known here: its coefficients and residues are looked for, in every form."""
    plan = wire_vectors.plans()["slots"]
    sent = modules.evaluate(
        "async (given) => (await import('/vectors.js')).messages(...given)",
        [plan.to_json(), wire_vectors.SESSION_KEY.hex(), [[0.5] * 6], ""],
    )
    material, query = map(bytes.fromhex, sent)
    secret = wire_vectors.secret_of(plan.degree)
    ring = Ring(plan.degree, plan.prime_bits)
    residues = ring.transformed(secret.astype(np.float64), (0, 1, 2)).astype("<u8")
    forms = [secret.astype(kind)[:64].tobytes() for kind in ("i1", "<i4", "<i8", "<f4", "<f8")]
    for row, prime in zip(residues, ring.primes, strict=True):
        forms += [
            row[:4].tobytes(),
            row[:4].astype("<f8").tobytes(),
            (secret % prime).astype("<u8")[:64].tobytes(),
        ]
    assert not [form for form in forms if form in material or form in query]
    assert material.count(wire_vectors.SESSION_KEY) == 1
    assert wire_vectors.SESSION_KEY not in query


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input_range": [-1.0, 0.5]}, "it is for inputs in another range"),
        ({"input_shape": [9], "packing_shape": [1, 9]}, "another shape"),
        ({"prime_bits": [50, 50]}, "100 bits"),
        ({"input_scale_bits": 60}, "could overflow"),
        ({"input_scale_bits": -3}, "keep no precision"),
        ({"degree": 1000}, "degree cannot be used"),
        ({"degree": "2048"}, "degree cannot be used"),
        ({"class_names": ["a", "b\u00a0c", "d"]}, "class_names cannot be used"),
        ({"feature_names": ["a", "b"]}, "does not name all features"),
        ({"feature_names": []}, "feature_names cannot be used"),
        ({"model_version": "none"}, "model_version cannot be used"),
        ({"logits": 4, "answers": [[0, 1, 2, 3]]}, "4 classes, not 3"),
        ({"parties": ["a", "b", "c"]}, "encrypted weights"),
        ({"surprise": 1}, "unknown fields"),
    ],
)
def test_a_plan_that_lies_is_refused_before_keys_are_made(
    served: Service, context: Any, changes: dict[str, Any], says: str
) -> None:
    plan = json.loads(served.pool.plan.to_json()) | changes
    context.route("**/v1/plan", lambda route: route.fulfill(json=plan))
    sent: list[str] = []
    context.on("request", lambda request: sent.append(request.method))
    page = opened(context, served)
    status(page, re.compile(f"^The service's plan was refused, and nothing was sent: .*{says}"))
    assert set(sent) == {"GET"}
    assert page.get_by_role("button", name="Ask").is_disabled()


def test_a_plan_that_is_nested_beyond_the_stack_is_refused_too(
    served: Service, context: Any
) -> None:
    low = "[" * 100_000 + "-1.0" + "]" * 100_000
    text = served.pool.plan.to_json().replace("[-1.0,1.0]", f"[{low},1.0]")
    context.route("**/v1/plan", lambda route: route.fulfill(body=text))
    page = opened(context, served)
    status(page, re.compile("^The service's plan was refused, and nothing was sent"))


def _replayed() -> Callable[[bytes], bytes]:
    """The first answer, again and again."""
    first: list[bytes] = []

    def replay(answer: bytes) -> bytes:
        first.append(answer)
        return first[0]

    return replay


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda answer: answer[:200] + bytes([answer[200] ^ 1]) + answer[201:], "was altered"),
        (lambda answer: answer[:-1], "was cut or changed"),
        (lambda answer: answer[:54] + struct.pack("<Q", 9) + answer[62:], "was altered"),
        (lambda answer: answer[:6] + bytes(32) + answer[38:], "another plan"),
        (_replayed(), "was given before"),
    ],
    ids=["altered", "cut", "another question's", "another plan's", "replayed"],
)
def test_an_answer_that_is_none_is_refused_with_a_sentence(
    served: Service, context: Any, change: Callable[[bytes], bytes], says: str
) -> None:
    page = opened(context, served)
    status(page, READY)
    if says == "was given before":
        # The first answer, taken by the page, comes again.
        context.route("**/answers", lambda route: _changed(route, change))
        asked(page, X[0])
    else:
        asked(page, X[0])
        context.route("**/answers", lambda route: _changed(route, change))
    typed(page, X[1])
    page.get_by_role("button", name="Ask").click()
    status(page, re.compile(f"^The service's answer was refused: .*{says}"))
    assert page.locator("#answer strong").count() == 0


def _changed(route: Any, change: Callable[[bytes], bytes]) -> None:
    response = route.fetch()
    route.fulfill(response=response, body=change(response.body()))


def test_without_a_network_a_question_waits_and_two_tabs_have_keys_of_their_own(
    served: Service, context: Any
) -> None:
    one, other = (opened(context, served) for _ in range(2))
    for page in (one, other):
        status(page, READY)
    assert asked(one, X[0]) == str(LABELS[0])
    assert asked(other, X[1]) == str(LABELS[1])
    context.set_offline(True)
    typed(one, X[2])
    one.get_by_role("button", name="Ask").click()
    status(one, re.compile("^The service cannot be reached"))
    context.set_offline(False)
    status(one, "You are online again.")
    assert asked(one, X[2]) == str(LABELS[2])
    assert asked(other, X[3]) == str(LABELS[3])


def test_a_slow_network_is_only_slow(served: Service, context: Any) -> None:
    page = opened(context, served)
    context.new_cdp_session(page).send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 200, "downloadThroughput": 1e5, "uploadThroughput": 1e5},
    )
    status(page, READY)
    assert asked(page, X[0]) == str(LABELS[0])


def test_keys_that_the_service_lost_are_made_anew(served: Service, context: Any) -> None:
    page = opened(context, served)
    status(page, READY)
    assert asked(page, X[0]) == str(LABELS[0])
    served.clock.now += 24 * 3600
    assert asked(page, X[1]) == str(LABELS[1])


def test_a_stranger_is_asked_for_an_invitation(served: Service, context: Any) -> None:
    page = context.new_page()
    page.goto(served.url)
    status(page, re.compile("the token is missing"))
    page.get_by_label("Your invitation").fill(served.tokens["ben"])
    page.keyboard.press("Enter")
    status(page, READY)
    assert asked(page, X[0]) == str(LABELS[0])


def test_the_page_fits_a_phone_in_light_and_dark_and_is_used_by_keyboard_alone(
    served: Service, context: Any
) -> None:
    page = opened(context, served)
    status(page, READY)
    page.set_viewport_size({"width": 320, "height": 640})
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") == 320
        for selector in ("h1", ".lead", "#status", "#ask", "#received", "label", "thead th"):
            # What WCAG 2 asks of small text.
            assert _contrast(page, selector) >= 4.5, (scheme, selector)
    page.get_by_label(NAMES[0]).focus()
    for value in X[0]:
        page.keyboard.type(repr(float(value)))
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask"
    page.keyboard.press("Enter")
    status(page, ANSWERED)
    answer = page.get_by_role("status", name="Answer")  # which a screen reader reads out
    assert answer.locator("strong").inner_text() == str(LABELS[0])
    assert page.get_by_role("heading", level=1).inner_text() == PAGE.title
    assert page.get_by_role("rowheader", name="Encrypted").is_visible()
    assert page.get_by_role("img", name=re.compile("^Noise")).is_visible()


def _contrast(page: Any, selector: str) -> float:
    """Of an element's text and what is behind it, as WCAG 2 defines it."""
    colours = page.locator(selector).first.evaluate(
        """(element) => {
            const ground = (each) => {
                const { backgroundColor } = getComputedStyle(each);
                const clear = backgroundColor === "rgba(0, 0, 0, 0)";
                return clear ? ground(each.parentElement) : backgroundColor;
            };
            return [getComputedStyle(element).color, ground(element)];
        }"""
    )
    luminances = []
    for colour in colours:
        levels = np.array([int(level) for level in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        luminances.append(float(linear @ [0.2126, 0.7152, 0.0722]))
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def test_an_input_outside_the_range_is_not_sent(served: Service, context: Any) -> None:
    page = opened(context, served)
    status(page, READY)
    sent: list[str] = []
    context.on("request", lambda request: sent.append(request.method))
    typed(page, np.full(8, 0.5))
    page.get_by_label(NAMES[3]).fill("1.5")
    page.get_by_role("button", name="Ask").click()
    assert page.locator("#number-3:invalid").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.validationMessage") == (
        "Write a number from -1 to 1."
    )
    assert sent == []


def test_a_number_may_have_a_comma_and_what_is_none_or_two_is_not_sent(
    served: Service, context: Any
) -> None:
    page = opened(context, served)
    status(page, READY)
    x = np.full((1, 8), 0.25)
    typed(page, x[0])
    field, button = page.get_by_label(NAMES[3]), page.get_by_role("button", name="Ask")
    sent: list[str] = []
    context.on("request", lambda request: sent.append(request.method))
    for text, says in (
        ("1,125", "This can mean two numbers: write 1125 or 1.125."),
        ("1.2.3", "Write a number, such as 0.5 or 0,5."),
        ("0 5", "Write a number, such as 0.5 or 0,5."),
        ("half", "Write a number, such as 0.5 or 0,5."),
        (" ", "Fill in a number."),
        ("-1,5", "Write a number from -1 to 1."),
    ):
        field.fill("")
        field.press_sequentially(text)
        button.click()
        assert page.evaluate("document.activeElement.validationMessage") == says
        assert field.get_attribute("aria-invalid") == "true"
    assert sent == []
    answer = page.locator("#answer strong")
    for text, value in (("-0,125", -0.125), (" .5 ", 0.5), ("\u22127e-1", -0.7)):
        field.fill("")
        field.press_sequentially(text)
        page.locator("#status").evaluate("status => { status.textContent = ''; }")
        button.click()
        status(page, ANSWERED)
        x[0, 3] = value
        assert answer.inner_text() == str(small_model().predict(x).argmax())
        field.fill("0.1")  # to which this was no answer
        assert answer.count() == 0


def test_numbers_that_belong_together_are_one_choice_and_what_is_not_known_is_left_empty(
    serve: Serve, context: Any
) -> None:
    colour = Choice("colour", 2, ("red", "green", "blue"))
    form = replace(PAGE, choices=(colour,), may_be_empty=True)
    with serve(page=form) as service:
        page = opened(context, service)
        status(page, READY)
        button, answer = page.get_by_role("button", name="Ask"), page.locator("#answer strong")
        assert page.locator("#numbers input, #numbers select").count() == 6
        draw = np.random.default_rng(0)
        for place, chosen in enumerate((*colour.options, "not known")):
            while True:  # until the answer tells this choice from the next one
                x = np.round(draw.uniform(-1, 1, 8), 2)
                x[0] = 0  # the middle of its range
                each = np.stack([x] * 4)
                each[:, 2:5] = np.eye(4, 3)
                labels = small_model().predict(each).argmax(axis=1)
                if labels[place] != labels[(place + 1) % 4]:
                    break
            for n in (1, 5, 6, 7):
                page.get_by_label(NAMES[n]).fill(str(x[n]))
            page.get_by_label("colour").select_option(chosen)
            page.locator("#status").evaluate("status => { status.textContent = ''; }")
            button.click()
            status(page, ANSWERED)
            assert answer.inner_text() == str(labels[place])


def test_a_choice_that_was_not_made_is_not_sent(serve: Serve, context: Any) -> None:
    form = replace(PAGE, choices=(Choice("colour", 2, ("red", "green", "blue")),))
    with serve(page=form) as service:
        page = opened(context, service)
        status(page, READY)
        for name in (*NAMES[:2], *NAMES[5:]):
            page.get_by_label(name).fill("0")
        page.get_by_role("button", name="Ask").click()
        assert page.get_by_label("colour").get_attribute("aria-invalid") == "true"


def test_a_start_that_failed_is_tried_again_with_the_same_invitation(
    served: Service, context: Any
) -> None:
    for path, again in (("**/v1/plan", "by itself"), ("**/v1/keys", "by the button")):
        context.route(path, lambda route: route.abort())
        page = opened(context, served)
        status(page, re.compile("^The service cannot be reached"))
        context.unroute(path)
        if again == "by itself":  # as soon as there is a network
            page.evaluate("() => { dispatchEvent(new Event('online')); }")
        else:
            page.get_by_role("button", name="Try again").click()
        status(page, READY)
        assert page.get_by_role("button", name="Try again").is_hidden()
        assert asked(page, X[0]) == str(LABELS[0])


def test_an_invitation_is_a_link_or_a_token_and_may_come_later(
    served: Service, context: Any
) -> None:
    """In the field, or in the address bar of the page that asks for it."""
    page = context.new_page()
    page.goto(f"{served.url}/?from=mail")
    status(page, re.compile("the token is missing"))
    page.get_by_label("Your invitation").fill(f" {served.url}/#token={served.tokens['ben']} ")
    page.keyboard.press("Enter")
    status(page, READY)
    # Another one, once this has ended.
    served.token_file.remove("ben")
    typed(page, X[0])
    page.get_by_role("button", name="Ask").click()
    status(page, re.compile("the token is missing, not known or expired"))
    assert page.evaluate("document.activeElement.id") == "token"
    assert page.locator("#token").input_value() == ""
    page.evaluate("(token) => { location.hash = `token=${token}`; }", served.tokens["cyd"])
    status(page, READY)
    assert page.url == f"{served.url}/?from=mail"
    assert page.get_by_label("Your invitation").is_hidden()
    assert asked(page, X[0]) == str(LABELS[0])


def test_an_invitation_that_is_used_up_is_followed_by_another(
    served: Service, context: Any
) -> None:
    token = served.token_file.add("guest", questions=1)
    page = context.new_page()
    page.goto(f"{served.url}/#token={token}")
    status(page, READY)
    assert asked(page, X[0]) == str(LABELS[0])
    page.get_by_role("button", name="Ask").click()
    status(page, re.compile("questions? of this invitation ha(s|ve) been asked"))
    page.get_by_label("Your invitation").fill(served.tokens["ada"])
    page.keyboard.press("Enter")
    status(page, READY)
    assert asked(page, X[1]) == str(LABELS[1])


def test_a_busy_service_is_asked_again_and_the_page_says_so(served: Service, context: Any) -> None:
    refused: list[str] = []

    def busy(route: Any) -> None:
        if refused:
            route.continue_()
            return
        refused.append(route.request.url)
        route.fulfill(status=503, json={"error": "busy"}, headers={"Retry-After": "1"})

    context.route("**/answers", busy)
    page = opened(context, served)
    status(page, READY)
    page.evaluate(
        """() => {
            globalThis.told = [];
            const status = document.getElementById("status");
            new MutationObserver(() => told.push(status.textContent))
                .observe(status, { childList: true });
        }"""
    )
    assert asked(page, X[0]) == str(LABELS[0])
    assert any(
        text.startswith("The service is busy. Asking again in") for text in page.evaluate("told")
    )


def test_the_page_gives_itself_as_one_file_with_its_hash(serve: Serve, context: Any) -> None:
    with serve(page=PAGE, origins=("null",)) as service:
        page = opened(context, service)
        status(page, READY)
        page.get_by_text("Whom you trust").click()
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Download this page").click()
        content = waiting.value.path().read_bytes()
        assert waiting.value.suggested_filename == "page.html"
        assert content == replace(PAGE, service=service.url).single_file
        digest = hashlib.sha256(content).hexdigest()
        assert page.locator("#copied").inner_text() == f"SHA-256 of page.html: {digest}"
    with serve(page=PAGE, tokens=service.token_file) as service:
        page = context.new_page()
        page.goto(service.url)
        page.get_by_text("Whom you trust").click()
        page.get_by_role("button", name="Download this page").click()
        expected = re.compile("^There is none: this service lets no page ask that is a file")
        from playwright.sync_api import expect

        expect(page.locator("#copied")).to_have_text(expected)


def test_the_page_runs_no_other_script_and_reaches_no_other_host(
    served: Service, context: Any
) -> None:
    page = opened(context, served)
    status(page, READY)
    injected = page.evaluate(
        """() => {
            const script = document.createElement("script");
            script.textContent = "globalThis.ran = true";
            document.body.append(script);
            return globalThis.ran ?? false;
        }"""
    )
    assert injected is False
    other = "fetch('https://127.0.0.1:9/').then(() => 'sent', (error) => String(error))"
    blocked: list[str] = []
    page.on("console", lambda message: blocked.append(message.text))
    page.evaluate(f"() => {other}")
    assert any("Content Security Policy" in text for text in blocked), blocked


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def hosted(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the origin at which it is hosted."""
    folder = tmp_path / "hosted"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(_Quiet, directory=str(folder))
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://localhost:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("named", [True, False])
def test_a_copy_elsewhere_may_ask_where_its_origin_is_named(
    serve: Serve, context: Any, hosted: tuple[Path, str], named: bool
) -> None:
    folder, origin = hosted
    with serve(origins=(origin,) if named else ("https://another.example",)) as service:
        Page("A copy", CONTRACT, "numbers", feature_names=NAMES, service=service.url).write(folder)
        page = context.new_page()
        page.goto(f"{origin}/#token={service.tokens['ada']}")
        if named:
            status(page, READY)
            assert asked(page, X[0]) == str(LABELS[0])
        else:
            status(page, re.compile("^The service cannot be reached"))


def test_a_site_of_ones_own_asks_in_a_few_lines(serve: Serve, context: Any, modules: Any) -> None:
    """With the session and its worker as modules, beside the site's own."""
    site = modules.url
    with serve(origins=(site.rstrip("/"),)) as service:
        page = context.new_page()
        page.goto(site)
        given = [service.url, service.tokens["ada"], X[0].tolist()]
        answer = page.evaluate(
            """async ([service, token, x]) => {
                const { OwnerSession } = await import("/browser/session.js");
                const contract = { inputShape: [8], inputRange: [-1, 1], classes: 3 };
                const release = { kind: "top", count: 2 };
                const session = new OwnerSession({ service, token, contract, release });
                const { answer } = await session.ask(x);
                session.end();
                return answer;
            }""",
            given,
        )
    order = np.argsort(-small_model().predict(X[:1])[0]).tolist()
    assert (answer["labels"], answer["top"]) == ([LABELS[0]], [order[:2]])
    assert answer["logits"] is None


@pytest.mark.parametrize(
    ("name", "says"), [("owner/keys.js", "does not start"), ("boot.js", "^Starting")]
)
def test_a_script_that_was_changed_does_not_run(
    served: Service, context: Any, hosted: tuple[Path, str], name: str, says: str
) -> None:
    folder, origin = hosted
    Page("A copy", CONTRACT, "numbers", service=served.url).write(folder)
    script = folder / "browser" / name
    script.write_bytes(script.read_bytes() + b"\nglobalThis.changed = true;\n")
    page = context.new_page()
    page.goto(origin)
    status(page, re.compile(says))
    assert page.evaluate("globalThis.changed ?? false") is False


def test_a_page_that_came_without_tls_says_that_it_cannot_encrypt(
    served: Service, context: Any
) -> None:
    page = context.new_page()
    # Any host name but localhost would do; the tests have no other.
    page.add_init_script("Object.defineProperty(globalThis, 'isSecureContext', { value: false })")
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.goto(served.url)
    status(page, re.compile("^This page needs https"))
    assert not [url for url in sent if "/v1/" in url]


def test_a_page_without_authentication_needs_no_invitation(serve: Serve, context: Any) -> None:
    with serve(page=PAGE, authentication=InsecureNoAuthentication()) as service:
        page = context.new_page()
        page.goto(service.url)
        status(page, READY)
        assert asked(page, X[0]) == str(LABELS[0])
