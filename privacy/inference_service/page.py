"""The owner's page: a question from a browser, with keys that are made there and stay there."""

import base64
import gzip
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import httpx
from fastapi import FastAPI, Request, Response

from privacy.arguments import of_kind
from privacy.inference import InputContract

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
    "release",
    "owner",
)
_PAGE = ("worker", "session", "features", "picture", "pad", "page")
_MODULES = (*(f"owner/{name}.js" for name in _OWNER), *(f"{name}.js" for name in _PAGE))
"""Each behind those that it imports."""
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
class Page:
    """The files of a page that asks about one kind of input.

    The page makes keys in the browser, checks the service's plan against ``contract``, encrypts,
    asks, and decrypts; it shows what the service received. It runs scripts of its own alone, whose
    SHA-384 stand in ``index.html``, and contacts the service alone.

    **Guarantee.** Whoever got an honest ``index.html`` runs honest scripts, from wherever they
    come: a browser refuses others.

    **Assumptions.** The browser. ``index.html`` is honest: compare its SHA-256, or host a copy.

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
    service : str
        URL of the service, for a page that is hosted elsewhere; "" where the service has the page.
    """

    title: str
    contract: InputContract
    inputs: Inputs
    feature_names: tuple[str, ...] = ()
    service: str = ""

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
        if len(self.feature_names) not in (0, shape[0]):
            raise ValueError(f"feature_names has {len(self.feature_names)} names for {shape[0]}")
        if self.service and _origin(self.service) is None:
            raise ValueError(f"service is {self.service!r}; write https://host:port")

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files by their paths, ``index.html`` first."""
        scripts = {name: (_FOLDER / name).read_bytes() for name in _MODULES}
        named = {name: (_FOLDER / name).read_bytes() for name in ("boot.js", "page.css")}
        data = {
            "modules": [[name, _integrity(content)] for name, content in scripts.items()],
            "model": {
                "service": self.service.rstrip("/"),
                "inputs": self.inputs,
                "features": self.feature_names,
                "contract": {
                    "inputShape": self.contract.input_shape,
                    "inputRange": self.contract.input_range,
                    "classes": self.contract.classes,
                    "multiLabel": self.contract.multi_label,
                    "maxBytes": self.contract.max_bytes,
                },
            },
        }
        values = {
            "title": html.escape(self.title),
            "policy": html.escape(self.policy),
            "root": _ROOT,
            "style": _integrity(named["page.css"]),
            "boot": _integrity(named["boot.js"]),
            # Inside a script no "<" may stand.
            "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        }
        text = re.sub(
            r"\{\{(\w+)\}\}", lambda hole: values[hole[1]], (_FOLDER / "index.html").read_text()
        )
        pieces = {_ROOT + name: content for name, content in (named | scripts).items()}
        return {"index.html": text.encode(), **pieces}

    @property
    def policy(self) -> str:
        """The page's Content-Security-Policy."""
        origin = _origin(self.service) if self.service else None
        connect = f"'self' {origin}" if origin else "'self'"
        return (
            f"default-src 'none'; script-src 'self' blob:; worker-src blob:; style-src 'self'; "
            f"img-src data:; connect-src {connect}; base-uri 'none'; form-action 'none'"
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


def add_page(app: FastAPI, page: Page) -> None:
    """Serve a page at ``/``, to everybody: it holds no secret."""
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


def _integrity(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def _origin(url: str) -> str | None:
    """Scheme, host and port of a URL, as a browser writes them; None if it is none."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, TypeError):
        return None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        return None
    return f"{parsed.scheme}://{parsed.netloc.decode()}"
