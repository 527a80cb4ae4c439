"""The data owner's side of the wire: a client of the service."""

import ipaddress
import os
import re
import ssl
from typing import Any, Self

import httpx

from privacy import arguments
from privacy.inference import InputContract, Plan, accept_plan
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_names import key_id
from privacy.json_text import read_json
from privacy.untrusted_text import one_line

_LARGEST_PLAN = 1 << 22
_LARGEST_ERROR = 1 << 16
_TOKEN = re.compile(r"[\x21-\x7e]+")  # the characters of a header


@arguments.renamed(authority="ca")
class ServiceClient:
    """A client of a service; it holds a token and no key.

    Its methods raise :class:`ServiceError` if the service refuses or cannot be reached.

    Parameters
    ----------
    url : str
        ``https://host:port``.
    token : str, optional
        An owner's.
    ca : path-like, optional
        Certificates to trust, PEM; by default the system's.
    insecure_no_tls : bool
        Allow ``http://``: whoever listens can use the token and forge messages.
    timeout : float
        Seconds that one step of a request may take.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, or the URL is not https without ``insecure_no_tls``.
    OSError
        If ``ca`` cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        insecure_no_tls: bool = False,
        timeout: float = 120.0,
    ) -> None:
        parsed = _url(url)
        if parsed.scheme == "http" and not insecure_no_tls:
            raise ValueError(
                f"url is {url!r}, without TLS: whoever listens can take the token and forge "
                "messages; use https, or give insecure_no_tls=True"
            )
        headers = {"Accept-Encoding": "identity"}  # the plan fixes sizes
        if token:
            if not _TOKEN.fullmatch(token):
                raise ValueError(
                    "token holds characters that no token has, such as spaces or line ends; give "
                    "it as it was shown when it was made"
                )
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=parsed,
            headers=headers,
            verify=_trusting(ca),
            timeout=arguments.seconds("timeout", timeout),
            trust_env=not is_loopback(parsed.host),  # no proxy between a machine and itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def plan_text(self) -> str:
        """The plan, unchecked; for :func:`~privacy.inference.accept_plan`."""
        return self._request("GET", "/v1/plan", largest=_LARGEST_PLAN)[0].decode(errors="replace")

    @arguments.renamed(expectation="contract")
    def plan(self, contract: InputContract) -> Plan:
        """The plan, checked.

        Raises
        ------
        PlanRefusedError
            If it does not fit the contract, or is weak, or too large.
        """
        return accept_plan(self.plan_text(), contract)

    def key_binding(self) -> bytes:
        """The binding for public material: of this token and this start of the service."""
        body, _ = self._request("GET", "/v1/keys/binding")
        try:
            return bytes.fromhex(read_json(body)["binding"])
        except (ValueError, LookupError, TypeError) as error:
            raise ServiceError(
                "no-binding", 0, "the service does not say what keys must be bound to", "update it"
            ) from error

    def send_keys(self, material: bytes) -> str:
        """Send public material, to be held beside earlier material, and return the keys' name.

        Beyond the number that the service holds for one owner, it drops the least lately used.

        Parameters
        ----------
        material : bytes
            ``owner.public_material(binding=client.key_binding())``.
        """
        self._request("PUT", "/v1/keys", material)
        return key_id(material)

    def remove_keys(self, name: str) -> None:
        """Have the service forget keys of one's own."""
        self._request("DELETE", f"/v1/keys/{name}")

    def ask(self, name: str, query: bytes, *, answer_bytes: int) -> tuple[bytes, float]:
        """Send a query under the keys of that name.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took, by the service's word; NaN if it gives none.
        """
        largest = max(answer_bytes, _LARGEST_ERROR)
        body, headers = self._request("POST", f"/v1/keys/{name}/answers", query, largest=largest)
        return body, _seconds(headers.get("server-timing", ""))

    def _request(
        self, method: str, path: str, content: bytes | None = None, *, largest: int = _LARGEST_ERROR
    ) -> tuple[bytes, httpx.Headers]:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        body = bytearray()
        try:
            with self._http.stream(method, path, content=content, headers=headers) as response:
                for part in response.iter_raw():
                    body += part
                    if len(body) > largest:
                        reason = "the service answers with more than it may"
                        raise ServiceError("too-large", 0, reason, "do not use it")
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        if response.is_success:
            return bytes(body), response.headers
        try:
            refusal: Any = read_json(body)
        except ValueError:
            refusal = None
        fields = refusal if isinstance(refusal, dict) else {}
        raise ServiceError.from_dict(response.status_code, fields)


def _url(url: str) -> httpx.URL:
    refusal = ValueError(f"url is {url!r}, which is not one; write https://host:port")
    try:
        parsed = httpx.URL(url)
        port = 443 if parsed.port is None else parsed.port
    except (httpx.InvalidURL, TypeError, ValueError) as error:
        raise refusal from error
    if not parsed.host or parsed.scheme not in ("http", "https") or not 1 <= port <= 65535:
        raise refusal
    return parsed


def _trusting(ca: str | os.PathLike[str] | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:
        reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
        raise OSError(
            f"ca is {os.fspath(ca or '')!r}, which cannot be used: {reason}; give a "
            "file of certificates, PEM"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds(timing: str) -> float:
    _, _, milliseconds = timing.partition("dur=")
    try:
        return float(milliseconds) / 1000
    except ValueError:
        return float("nan")


def _unreachable(url: httpx.URL, error: httpx.HTTPError) -> ServiceError:
    reason = one_line(str(error)) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        return ServiceError(
            "untrusted",
            0,
            f"the certificate of {url} is not from an authority that is trusted here",
            "give its authority's certificate as ca='ca.crt', over a channel you trust",
        )
    remedy = "see that the service runs and that url is right"
    return ServiceError("unreachable", 0, f"{url} cannot be asked: {reason}", remedy)
