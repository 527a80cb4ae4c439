"""The owner's page: a question from a browser, with keys that are made there and stay there."""

import base64
import gzip
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

import httpx
from fastapi import FastAPI, Request, Response

from privacy.arguments import of_kind
from privacy.inference import InputContract
from privacy.inference_service.client import is_loopback
from privacy.inference_service.errors import ServiceError

Inputs = Literal["hog", "pixels", "numbers"]

_FOLDER = Path(__file__).parent / "browser"
_ROOT = "browser/"
_OWNER = (
    "errors",
    "residues",
    "primes",
    "transform",
    "embedding",
    "ring",
    "randomness",
    "seeds",
    "messages",
    "plan",
    "keys",
    "codec",
    "gaussian",
    "release",
    "owner",
)
_PAGE = ("vault", "worker", "session", "page")
_DRAWING = ("typical", "features", "picture", "pad", "drawing")
_COMMENT = re.compile(r"/\*\*.*?\*/", re.DOTALL)
_REMARK_OR_INDENT = re.compile(r"^[ \t]*//.*|^[ \t]+|[ \t]+$", re.MULTILINE)
_LINE_WITHOUT_TEXT = re.compile(r"""^[^"'`/\n]+$""", re.MULTILINE)
_SPACE_OF_CODE = re.compile(r" *([=!?:,;*<>&|(){}\[\]]) *")
_SPACE_OF_STYLE = re.compile(r"\s*([{}:;,])\s*")
# What stands in a Content-Security-Policy is a host, and no pattern of hosts.
_HOST_AND_PORT = re.compile(r"(?:[a-z0-9_-]+(?:\.[a-z0-9_-]+)*|\[[0-9a-f:]+\])(?::\d{1,5})?")
_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Vary": "Accept-Encoding",
}


@dataclass(frozen=True)
class Choice:
    """A field of a form in which one of several is chosen, in the place of a number for each.

    The numbers from ``first`` on, as many as there are ``options``, are 1 for the one chosen and 0
    for the others.

    Parameters
    ----------
    name : str
        Of the field.
    first : int
        The place of its first number in the input, from 0.
    options : tuple of str
    """

    name: str
    first: int
    options: tuple[str, ...]

    @property
    def numbers(self) -> range:
        """The places of its numbers."""
        return range(self.first, self.first + len(self.options))


@dataclass(frozen=True)
class Page:
    """The files of a page that asks about one kind of input.

    The page makes keys in the browser, checks the service's plan against ``contract``, encrypts,
    asks, and decrypts; it shows what the service received. It runs scripts of its own alone, whose
    SHA-384 stand in ``index.html``, and contacts the service alone.

    **Guarantee.** Whoever got an honest ``index.html`` runs honest scripts, from wherever they
    come: a browser refuses others.

    **Assumptions.** The browser. ``index.html`` is honest: compare its SHA-256, host a copy, or
    keep :attr:`single_file`.

    **Not covered.** A service that sends another page. It could send inputs to itself.

    Parameters
    ----------
    title : str
    contract : InputContract
        What the model takes; the page refuses a plan for anything else.
    inputs : {"hog", "pixels", "numbers"}
        How the input is made: histograms of gradients or pixels of a straightened image of a digit
        (``flower_app.data.encode``), or numbers in a form.
    feature_names : tuple of str
        Of numbers, in their order.
    feature_units : tuple of str
        In which the numbers are given, in the same order; "" where there is none.
    service : str
        URL of the service, for a page that is hosted elsewhere; "" where the service has the page.
    choices : tuple of Choice
        Numbers that belong together; the names of these are not shown.
    may_be_empty : bool
        Whether a field may be left empty: a number is the middle of its range then, and of a
        choice every number is 0.
    """

    title: str
    contract: InputContract
    inputs: Inputs
    feature_names: tuple[str, ...] = ()
    service: str = ""
    feature_units: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    may_be_empty: bool = False

    def __post_init__(self) -> None:
        of_kind("title", self.title, str, "a heading")
        of_kind("contract", self.contract, InputContract, "what the model takes")
        if self.inputs not in get_args(Inputs):
            raise ValueError(f"inputs is {self.inputs!r}; give one of {get_args(Inputs)}")
        shape = {"hog": (392,), "pixels": (1, 28, 28)}.get(self.inputs, self.contract.input_shape)
        if self.contract.input_shape != shape or len(shape) not in (1, 3):
            raise ValueError(
                f"the contract is for inputs of shape {self.contract.input_shape}, which a page of "
                f"{self.inputs} does not make"
            )
        if self.inputs == "numbers" and len(shape) != 1:
            raise ValueError(f"a form makes one vector, not inputs of shape {shape}")
        for name in ("feature_names", "feature_units"):
            count = len(getattr(self, name))
            if count not in (0, shape[0]):
                raise ValueError(f"{name} has {count} entries for {shape[0]} numbers")
        if self.inputs != "numbers" and (self.choices or self.may_be_empty):
            raise ValueError(f"a page of {self.inputs} has no fields; leave choices out")
        self._check_choices()
        if self.service:
            parsed = _parsed(self.service)
            if parsed is None or parsed.query or parsed.fragment or parsed.userinfo:
                raise ValueError(f"service is {self.service!r}; write https://host:port")
            if parsed.scheme == "http" and not is_loopback(parsed.host):
                raise ValueError(
                    f"service is {self.service!r}, without TLS: whoever listens could take tokens "
                    "and forge messages; write https://host:port"
                )

    def _check_choices(self) -> None:
        taken: set[int] = set()
        for choice in self.choices:
            places = set(choice.numbers)
            if not places or not places <= set(range(self.contract.input_shape[0])):
                raise ValueError(
                    f"the choice {choice.name!r} is of the numbers {_listed(places)}, and the "
                    f"input has those from 0 to {self.contract.input_shape[0] - 1}"
                )
            if places & taken:
                raise ValueError(f"two choices have the numbers {_listed(places & taken)}")
            lows, highs = self.contract.input_range
            if any(_at(lows, n) > 0 or _at(highs, n) < 1 for n in places):
                raise ValueError(
                    f"the choice {choice.name!r} needs 0 and 1 in the contract's range"
                )
            taken |= places

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files by their paths, ``index.html`` first; scripts without their comments."""
        scripts, boot, style = self._scripts(), _script("boot.js"), _style("page.css")
        of_boot = f'src="{_ROOT}boot.js" integrity="{_sha384(boot)}"'
        text = self._index(
            policy=self.policy,
            style=f'<link rel="stylesheet" href="{_ROOT}page.css" integrity="{_sha384(style)}">',
            boot=f'<script type="module" {of_boot}></script>',
            scripts=scripts,
        )
        named = {"boot.js": boot, "page.css": style} | scripts
        return {"index.html": text} | {_ROOT + name: content for name, content in named.items()}

    @property
    def single_file(self) -> bytes:
        """The page as one file, to be kept and opened from a disk.

        Its scripts stand in it; a browser runs them only with the hashes that stand there too.
        The service must name the origin of files: ``create_app(..., origins=["null"])``.

        Raises
        ------
        ValueError
            If the page names no ``service``.
        """
        if not self.service:
            raise ValueError(
                "a page in one file has no server; name the service, https://host:port"
            )
        scripts, boot, style = self._scripts(), _script("boot.js"), _style("page.css")
        return self._index(
            policy=self._policy(
                scripts=f"'{_sha384(boot)}'", styles=f"'{_sha384(style)}'", data="blob:"
            ),
            style=f"<style>{style.decode()}</style>",
            boot="".join(
                f'<script type="text/plain" id="{name}">{content.decode()}</script>\n'
                for name, content in scripts.items()
            )
            + f'<script type="module">{boot.decode()}</script>',
            scripts=scripts,
        )

    def _scripts(self) -> dict[str, bytes]:
        """The modules, each behind those that it imports; how inputs are made comes last."""
        of_inputs = ("form",) if self.inputs == "numbers" else _DRAWING
        names = (*(f"owner/{name}" for name in _OWNER), *_PAGE, *of_inputs)
        return {f"{name}.js": _script(f"{name}.js") for name in names}

    def _index(self, *, policy: str, style: str, boot: str, scripts: Mapping[str, bytes]) -> bytes:
        data = {
            "modules": [[name, _sha384(content)] for name, content in scripts.items()],
            "model": {
                "service": self.service.rstrip("/"),
                "inputs": self.inputs,
                "features": self.feature_names,
                "units": self.feature_units,
                "choices": [
                    {"name": each.name, "first": each.first, "options": each.options}
                    for each in self.choices
                ],
                "mayBeEmpty": self.may_be_empty,
                "contract": {
                    "inputShape": self.contract.input_shape,
                    "inputRange": self.contract.input_range,
                    "classes": self.contract.classes,
                    "multiLabel": self.contract.multi_label,
                    "maxBytes": self.contract.max_bytes,
                    "featureNames": self.contract.feature_names,
                },
            },
        }
        values = {
            "title": html.escape(self.title),
            "policy": html.escape(policy),
            "style": style,
            "boot": boot,
            # Inside a script no "<" may stand.
            "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        }
        template = _source("index.html").decode()
        return re.sub(r"\{\{(\w+)\}\}", lambda hole: values[hole[1]], template).encode()

    @property
    def policy(self) -> str:
        """The page's Content-Security-Policy."""
        return self._policy(scripts="'self'", styles="'self'", data="'self'")

    def _policy(self, *, scripts: str, styles: str, data: str) -> str:
        origin = origin_of(self.service)
        connect = f"{data} {origin}" if origin else data
        return (
            f"default-src 'none'; script-src {scripts} blob:; worker-src blob:; "
            f"style-src {styles}; img-src data:; connect-src {connect}; base-uri 'none'; "
            "form-action 'none'"
        )

    @property
    def sha256(self) -> str:
        """Of ``index.html``, which names the hashes of all else."""
        return hashlib.sha256(self.files["index.html"]).hexdigest()

    def write(self, folder: str | os.PathLike[str]) -> None:
        """Write the files into a folder, to be hosted elsewhere."""
        for name, content in self.files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def add_page(app: FastAPI, page: Page, *, copies: bool = False) -> None:
    """Serve a page at ``/``, to everybody: it holds no secret.

    With ``copies`` also as one file, at ``/copy.html?service=``, with the address of this service
    as the browser has it.
    """
    policy = f"{page.policy}; frame-ancestors 'none'"

    def add(name: str, content: bytes) -> None:
        packed = gzip.compress(content, mtime=0)
        kind = f"{_TYPES[Path(name).suffix]}; charset=utf-8"
        headers = _HEADERS | {"Content-Security-Policy": policy}

        @app.get("/" if name == "index.html" else f"/{name}", name="page")
        async def send(request: Request) -> Response:
            if "gzip" in request.headers.get("accept-encoding", ""):
                zipped = headers | {"Content-Encoding": "gzip"}
                return Response(packed, media_type=kind, headers=zipped)
            return Response(content, media_type=kind, headers=headers)

    for name, content in page.files.items():
        add(name, content)

    @app.get("/copy.html", name="copy")
    def copy(request: Request, service: str = "") -> Response:  # in a thread: it reads files
        if not copies:
            reason = "this service lets no page ask that is a file on a disk"
            raise ServiceError("no-copy", 404, reason, "its operator can, with --origin null")
        # For no other service: nobody's link gets a file from here that asks elsewhere.
        asked = request.headers.get("host", "").lower()
        if urlsplit(service).netloc != asked:
            raise ServiceError("no-copy", 400, "this is another service", "open its own page")
        try:
            content = replace(page, service=service).single_file
        except ValueError as error:
            raise ServiceError(
                "no-copy", 400, str(error), "open the page at such an address"
            ) from error
        names = {"Content-Disposition": 'attachment; filename="page.html"'}
        return Response(content, media_type="text/html; charset=utf-8", headers=_HEADERS | names)


def _at(ends: float | Sequence[float], place: int) -> float:
    """The end of one number's range: of all, of one each, or of several that are alike."""
    if not isinstance(ends, Sequence):
        return ends
    return ends[0 if len(ends) == 1 else place]


def _listed(places: set[int]) -> str:
    return ", ".join(map(str, sorted(places))) or "none"


def _source(name: str) -> bytes:
    """A file, with the same bytes wherever it was checked out."""
    return (_FOLDER / name).read_bytes().replace(b"\r\n", b"\n")


def _script(name: str) -> bytes:
    """A script without comments, and without most spaces: half of its weight.

    Lines in which a text, a template or a regular expression could stand keep their spaces.
    """
    bare = _REMARK_OR_INDENT.sub("", _COMMENT.sub("", _source(name).decode()))
    dense = _LINE_WITHOUT_TEXT.sub(lambda line: _SPACE_OF_CODE.sub(r"\1", line[0]), bare)
    return re.sub(r"\n{2,}", "\n", dense).lstrip("\n").encode()


def _style(name: str) -> bytes:
    return _SPACE_OF_STYLE.sub(r"\1", _source(name).decode()).encode()


def _sha384(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def check_origins(origins: Sequence[str]) -> None:
    """Refuse what no browser sends as a page's origin, patterns among it, with a ``ValueError``."""
    for origin in origins:
        if origin not in ("null", origin_of(origin)):
            raise ValueError(
                f"origin {origin!r} is none that a browser sends; write https://host or "
                "https://host:port, in small letters and without a path, each by itself"
            )


def origin_of(url: str) -> str | None:
    """Scheme, host and port of a URL, as a browser writes them; None if it is none."""
    parsed = _parsed(url)
    return None if parsed is None else f"{parsed.scheme}://{parsed.netloc.decode()}"


def _parsed(url: str) -> httpx.URL | None:
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return None
    named = _HOST_AND_PORT.fullmatch(parsed.netloc.decode())
    return parsed if parsed.scheme in ("http", "https") and named else None
