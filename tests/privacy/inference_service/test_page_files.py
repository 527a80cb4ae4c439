"""The page's files, as they are written and as the service sends them."""

import base64
import gzip
import hashlib
import html
import json
import re
import ssl
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import privacy.inference_service
from flower_app.__main__ import main
from flower_app.commands.page import page_of
from flower_app.models.specs import MODELS
from flower_app.tasks import read_task, task_spec
from privacy.inference import InputContract
from privacy.inference_service import Choice, Page
from tests.flower_app.tasks.projects import project
from tests.flower_app.tasks.test_pictures import TASK as PICTURES
from tests.privacy.inference_service.serving import CONTRACT, Service

Serve = Callable[..., AbstractContextManager[Service]]
SOURCES = Path(privacy.inference_service.__file__).parent / "browser"
PAGE = Page("Ask", CONTRACT, "numbers")
PAGES = (PAGE, page_of(MODELS["hog-linear"]))
TOKENS = re.compile(r"\w+|[^\w\s]")


def data(page: Page) -> dict[str, Any]:
    text = page.files["index.html"].decode()
    found = re.search(r'id="page-data">(.*?)</script>', text)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def sha384(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def trusting(service: Service) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=service.certificates.ca)


def test_the_page_names_every_script_by_its_hash_behind_those_it_imports() -> None:
    used = {"boot.js"}
    for page in PAGES:
        files, seen = page.files, set()
        for name, integrity in data(page)["modules"]:
            content = files[f"browser/{name}"]
            assert integrity == sha384(content)
            for other in re.findall(r'from "(\..+?)";', content.decode()):
                target = (SOURCES / name).parent / other
                assert target.resolve().relative_to(SOURCES.resolve()).as_posix() in seen, name
            seen.add(name)
        for name in ("boot.js", "page.css"):
            assert f'integrity="{sha384(files[f"browser/{name}"])}"' in files["index.html"].decode()
        used |= seen
    assert used == {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.js")}


def test_nothing_comes_from_elsewhere_and_nothing_runs_in_the_page_itself() -> None:
    text = PAGE.files["index.html"].decode()
    assert re.findall(r"https?://[^\s\"]+", text) == []
    assert re.findall(r"\son\w+=|\sstyle=|javascript:", text) == []
    assert "default-src &#x27;none&#x27;" in text
    assert "unsafe" not in PAGE.policy
    assert {path for path in PAGE.files if path != "index.html"} >= {"browser/boot.js"}
    for page in PAGES:
        assert sum(map(len, page.files.values())) < 100_000  # unpacked
        assert sum(len(gzip.compress(content)) for content in page.files.values()) < 40_000  # sent
        assert len(copy_of(page).single_file) < 100 * 1024


def test_scripts_lose_comments_and_spaces_and_nothing_else() -> None:
    sent = PAGES[0].files | PAGES[1].files
    for path in SOURCES.rglob("*.js"):
        text = sent[f"browser/{path.relative_to(SOURCES).as_posix()}"].decode()
        assert "/**" not in text
        lines = iter(text.splitlines())
        for line in map(str.strip, path.read_text().splitlines()):
            if "/**" in line or line.startswith(("* ", "*/", "//")) or line in ("", "*"):
                continue
            exact = set(line) & set("\"'`/")
            tokens = TOKENS.findall(line)
            # In their order.
            assert any(
                there == line if exact else TOKENS.findall(there) == tokens for there in lines
            ), (path, line)


def test_files_are_the_same_where_git_writes_other_line_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = copy_of(PAGE).single_file
    for path in SOURCES.rglob("*.*"):
        (tmp_path / path.relative_to(SOURCES)).parent.mkdir(exist_ok=True)
        windows = path.read_bytes().replace(b"\n", b"\r\n")
        (tmp_path / path.relative_to(SOURCES)).write_bytes(windows)
    monkeypatch.setattr("privacy.inference_service.page._FOLDER", tmp_path)
    assert copy_of(PAGE).single_file == here


def copy_of(page: Page) -> Page:
    return replace(page, service="https://model.example:8443")


def test_one_file_holds_every_script_with_its_hash() -> None:
    page = copy_of(PAGE)
    text = page.single_file.decode()
    policy = html.unescape(text.partition('http-equiv="Content-Security-Policy" content="')[2])
    for kind, tag in (("script-src", 'script type="module"'), ("style-src", "style")):
        match = re.search(f"<{tag}>(.*?)</{tag.split()[0]}>", text, re.DOTALL)
        assert match is not None
        assert f"{kind} '{sha384(match[1].encode())}'" in policy
    inside = dict(
        re.findall(r'<script type="text/plain" id="(.*?)">(.*?)</script>', text, re.DOTALL)
    )
    modules = data(page)["modules"]
    assert [name for name, _ in modules] == list(inside)
    for name, integrity in modules:
        assert inside[name].encode() == page.files[f"browser/{name}"]
        assert integrity == sha384(inside[name].encode())
    with pytest.raises(ValueError, match="name the service"):
        _ = PAGE.single_file


def test_a_heading_or_a_name_cannot_become_markup() -> None:
    page = Page("<b>&", CONTRACT, "numbers", feature_names=("</script><script>",) * 8)
    text = page.files["index.html"].decode()
    assert "<b>" not in text
    assert text.count("<script") == PAGE.files["index.html"].decode().count("<script")
    assert data(page)["model"]["features"][0] == "</script><script>"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"inputs": "sounds"}, "inputs is 'sounds'"),
        ({"inputs": "hog"}, "which a page of hog does not make"),
        ({"feature_names": ("one",)}, "feature_names has 1 entries for 8"),
        ({"feature_units": ("mmol/l",) * 9}, "feature_units has 9 entries for 8"),
        (
            {"choices": (Choice("sex", 7, ("female", "male")),)},
            "of the numbers 7, 8, and the input",
        ),
        ({"choices": (Choice("sex", 3, ()),)}, "of the numbers none"),
        (
            {"choices": (Choice("a", 0, ("x", "y")), Choice("b", 1, ("z",)))},
            "two choices have .* 1",
        ),
        (
            {
                "choices": (Choice("sex", 0, ("female",)),),
                "contract": InputContract((8,), (-1.0, 0.5), classes=3),
            },
            "needs 0 and 1 in the contract's range",
        ),
        ({"service": "model.example"}, "write https://host:port"),
        ({"service": "javascript:alert(1)"}, "write https://host:port"),
        ({"service": "https://*"}, "write https://host:port"),
        ({"service": "https://model.example;script-src *"}, "write https://host:port"),
        ({"service": "https://ada:secret@model.example"}, "write https://host:port"),
        ({"service": "https://model.example/?to=elsewhere"}, "write https://host:port"),
        ({"service": "http://model.example"}, "without TLS"),
        ({"contract": InputContract((2, 4), (0.0, 1.0), classes=2)}, "does not make"),
    ],
)
def test_a_page_that_would_not_work_is_refused(changed: dict[str, Any], says: str) -> None:
    given = {"title": "Ask", "contract": CONTRACT, "inputs": "numbers"} | changed
    with pytest.raises(ValueError, match=says):
        Page(**given)


@pytest.mark.parametrize("model", [name for name, spec in MODELS.items() if spec.in_ckks])
def test_the_command_writes_a_copy_and_its_hash(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "copy"
    command = ["page", str(folder), model, "--service", "https://model.example:8443/"]
    assert main(command) == 0
    index = folder / "index.html"
    assert capsys.readouterr().out.split() == [
        hashlib.sha256(index.read_bytes()).hexdigest(),
        str(index),
    ]
    page = page_of(MODELS[model], service="https://model.example:8443/")
    assert data(page)["model"]["service"] == "https://model.example:8443"
    assert "connect-src 'self' https://model.example:8443;" in page.policy
    for name, content in page.files.items():
        assert (folder / name).read_bytes() == content
    assert main([*command[:-1], "nowhere"]) == 1
    assert "https://host:port" in capsys.readouterr().err
    file = tmp_path / "page.html"
    assert main(["page", str(file), *command[2:]]) == 0
    assert file.read_bytes() == page.single_file
    digest = hashlib.sha256(page.single_file).hexdigest()
    assert capsys.readouterr().out.split() == [digest, str(file)]


def test_the_command_writes_a_copy_for_a_table_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, file = project(tmp_path / "visits"), tmp_path / "page.html"
    command = ["page", str(file), "--service", "https://model.example:8443", "--task"]
    assert main([*command, str(task)]) == 0
    # As `serve` has it.
    page = page_of(task_spec(read_task(task)), service="https://model.example:8443")
    assert file.read_bytes() == page.single_file
    assert data(page)["model"]["features"] == ["age", "sex = female", "sex = male"]
    assert data(page)["model"]["contract"]["featureNames"] == data(page)["model"]["features"]
    sex = {"name": "sex", "first": 1, "options": ["female", "male"]}
    assert data(page)["model"]["choices"] == [sex]
    task.write_text(PICTURES)
    (task.parent / "clients").mkdir()
    assert main([*command, str(task), "cnn"]) == main(command[:-1]) == 1
    assert "give the name of a model, or --task FILE" in capsys.readouterr().err
    assert main([*command, str(task)]) == 1
    assert "is of pictures, for which there is no page" in capsys.readouterr().err


def test_the_service_sends_the_page_to_everybody_with_strict_headers(serve: Serve) -> None:
    with serve(page=PAGE) as service, httpx.Client(verify=trusting(service)) as http:
        for name, content in PAGE.files.items():
            for coding in ("gzip", "identity"):
                path = "" if name == "index.html" else name
                got = http.get(f"{service.url}/{path}", headers={"Accept-Encoding": coding})
                assert got.content == content
                assert got.headers.get("content-encoding", "identity") == coding
                policy = got.headers["content-security-policy"]
                assert policy == f"{PAGE.policy}; frame-ancestors 'none'"
                assert got.headers["x-content-type-options"] == "nosniff"
        for path in ("browser/", "browser/../page.py", "browser/package.json", "index.html"):
            assert http.get(f"{service.url}/{path}").status_code == 404


@pytest.mark.parametrize("allowed", [True, False])
def test_the_page_is_had_as_one_file_where_files_may_ask(serve: Serve, allowed: bool) -> None:
    with (
        serve(page=PAGE, origins=("null",) if allowed else ()) as service,
        httpx.Client(verify=trusting(service)) as http,
    ):
        got = http.get(f"{service.url}/copy.html", params={"service": service.url})
        if not allowed:
            assert got.status_code == 404
            assert "--origin null" in got.json()["remedy"]
            return
        assert got.content == replace(PAGE, service=service.url).single_file
        assert got.headers["content-disposition"].startswith("attachment")
        for other in ("https://evil.example", f"{service.url}/?x=1", ""):
            got = http.get(f"{service.url}/copy.html", params={"service": other})
            assert (got.status_code, got.json()["error"]) == (400, "no-copy")


def test_a_service_without_a_page_has_none(service: Service) -> None:
    with httpx.Client(verify=trusting(service)) as http:
        assert http.get(service.url).status_code == 404


@pytest.mark.parametrize(
    "origin",
    ["*", "clinic.example", "https://clinic.example/", "https://Clinic.example", "Null", ""],
)
def test_what_no_browser_sends_as_an_origin_is_refused(serve: Serve, origin: str) -> None:
    with pytest.raises(ValueError, match="none that a browser sends"), serve(origins=(origin,)):
        pass


def test_other_origins_may_not_ask_unless_they_are_named(serve: Serve) -> None:
    origins = ("https://clinic.example",)
    with (
        serve(page=PAGE, origins=origins) as service,
        httpx.Client(verify=trusting(service)) as http,
    ):
        for origin, allowed in ((origins[0], True), ("https://other.example", False)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "PUT"}
            got = http.options(f"{service.url}/v1/keys", headers=headers)
            assert (got.headers.get("access-control-allow-origin") == origin) is allowed
            assert "access-control-allow-credentials" not in got.headers
