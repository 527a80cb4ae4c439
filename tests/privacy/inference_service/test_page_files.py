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
from privacy.inference import InputContract
from privacy.inference_service import Page
from tests.privacy.inference_service.serving import CONTRACT, Service

Serve = Callable[..., AbstractContextManager[Service]]
SOURCES = Path(privacy.inference_service.__file__).parent / "browser"
PAGE = Page("Ask", CONTRACT, "numbers")


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
    files, modules = PAGE.files, data(PAGE)["modules"]
    scripts = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.js")}
    assert {name for name, _ in modules} | {"boot.js"} == scripts
    seen: set[str] = set()
    for name, integrity in modules:
        content = files[f"browser/{name}"]
        assert integrity == sha384(content)
        for other in re.findall(r'from "(\..+?)";', content.decode()):
            target = (SOURCES / name).parent / other
            assert target.resolve().relative_to(SOURCES.resolve()).as_posix() in seen, name
        seen.add(name)
    for name in ("boot.js", "page.css"):
        assert f'integrity="{sha384(files[f"browser/{name}"])}"' in files["index.html"].decode()


def test_nothing_comes_from_elsewhere_and_nothing_runs_in_the_page_itself() -> None:
    text = PAGE.files["index.html"].decode()
    assert re.findall(r"https?://[^\s\"]+", text) == []
    assert re.findall(r"\son\w+=|\sstyle=|javascript:", text) == []
    assert "default-src &#x27;none&#x27;" in text
    assert "unsafe" not in PAGE.policy
    assert {path for path in PAGE.files if path != "index.html"} >= {"browser/boot.js"}
    assert sum(map(len, PAGE.files.values())) < 100_000  # unpacked
    assert sum(len(gzip.compress(content)) for content in PAGE.files.values()) < 40_000  # as sent
    assert len(copy_of(PAGE).single_file) < 100 * 1024


def test_scripts_lose_their_comments_and_nothing_else() -> None:
    for path in SOURCES.rglob("*.js"):
        sent = PAGE.files[f"browser/{path.relative_to(SOURCES).as_posix()}"].decode()
        assert "/**" not in sent
        lines = iter(sent.splitlines())
        for line in map(str.strip, path.read_text().splitlines()):
            if (
                "/**" not in line
                and not line.startswith(("* ", "*/", "//"))
                and line not in ("", "*")
            ):
                assert line in lines, (path, line)  # in their order


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
        ({"service": "model.example"}, "write https://host:port"),
        ({"service": "javascript:alert(1)"}, "write https://host:port"),
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


def test_a_service_without_a_page_has_none(service: Service) -> None:
    with httpx.Client(verify=trusting(service)) as http:
        assert http.get(service.url).status_code == 404


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
