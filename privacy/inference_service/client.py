"""The data owner's side: a client of the service, and a session with keys."""

import ipaddress
import json
import ssl
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from numpy.typing import ArrayLike

from privacy.inference import (
    Answer,
    DataOwner,
    Expectation,
    Plan,
    ReleasePolicy,
    SecretsError,
    accept_plan,
)
from privacy.inference_service.errors import ServiceError
from privacy.inference_service.key_file import KeptKeys, KeyFile
from privacy.inference_service.keys import key_id

_LARGEST_PLAN = 1 << 22
_LARGEST_ERROR = 1 << 16
_ATTEMPTS = 10
_LONGEST_WAIT = 60.0

_T = TypeVar("_T")


class ServiceClient:
    """Speaks with a service; holds a token and no key.

    Parameters
    ----------
    url : str
        ``https://host:port``.
    token : str, optional
        An owner's.
    authority : Path, optional
        Certificates to trust, PEM; by default the system's.
    insecure_no_tls : bool
        Allow ``http://``: whoever listens can use the token and forge messages.
    timeout : float
        Seconds that one step of a request may take.

    Raises
    ------
    ValueError
        If the URL is not one, or is not https without that being allowed.
    OSError
        If the authority cannot be read.
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        authority: Path | None = None,
        insecure_no_tls: bool = False,
        timeout: float = 120.0,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is not a URL; write https://host:port") from error
        if not parsed.host or parsed.scheme not in ("http", "https"):
            raise ValueError(f"{url!r} is not a URL; write https://host:port")
        if parsed.scheme == "http" and not insecure_no_tls:
            raise ValueError(
                f"{url!r} is without TLS: whoever listens can take the token and forge messages; "
                "use https, or say insecure_no_tls (--insecure-no-tls)"
            )
        headers = {"Accept-Encoding": "identity"}  # sizes are what the plan says
        if token:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.Client(
            base_url=parsed,
            headers=headers,
            verify=ssl.create_default_context(cafile=authority),
            timeout=timeout,
            trust_env=not _is_loopback(parsed.host),  # no proxy between a machine and itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def plan_text(self) -> str:
        """The plan, as a stranger sent it; for :func:`~privacy.inference.accept_plan`.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        """
        return self._request("GET", "/v1/plan", largest=_LARGEST_PLAN)[0].decode(errors="replace")

    def plan(self, expectation: Expectation) -> Plan:
        """The plan, checked.

        Raises
        ------
        PlanRefusedError
            If it is not for what the owner has, or is weak, or too large.
        ServiceError
            As :meth:`plan_text`.
        """
        return accept_plan(self.plan_text(), expectation)

    def send_keys(self, material: bytes) -> str:
        """Send public material; what was sent before is dropped there.

        Returns
        -------
        str
            The keys' name.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        """
        self._request("PUT", "/v1/keys", material, largest=_LARGEST_ERROR)
        return key_id(material)

    def remove_keys(self, name: str) -> None:
        """Take one's keys back.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        """
        self._request("DELETE", f"/v1/keys/{name}", largest=_LARGEST_ERROR)

    def ask(self, name: str, query: bytes, *, answer_bytes: int) -> tuple[bytes, float]:
        """Send a query under the keys of that name.

        Returns
        -------
        answer : bytes
        seconds : float
            That the evaluation took, as the service says; NaN if it does not.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        """
        body, headers = self._request(
            "POST", f"/v1/keys/{name}/answers", query, largest=max(answer_bytes, _LARGEST_ERROR)
        )
        return body, _seconds(headers.get("server-timing", ""))

    def _request(
        self, method: str, path: str, content: bytes | None = None, *, largest: int
    ) -> tuple[bytes, httpx.Headers]:
        headers = {"Content-Type": "application/octet-stream"} if content is not None else {}
        try:
            with self._http.stream(method, path, content=content, headers=headers) as response:
                parts, length = [], 0
                for part in response.iter_raw():
                    parts.append(part)
                    length += len(part)
                    if length > largest:
                        raise ServiceError(
                            "too-large",
                            0,
                            "the service answers with more than it may",
                            "do not use it",
                        )
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        body = b"".join(parts)
        if response.is_success:
            return body, response.headers
        try:
            told: Any = json.loads(body)
        except ValueError:
            told = None
        raise ServiceError.from_dict(response.status_code, told if isinstance(told, dict) else {})


class OwnerSession:
    """Asks about inputs: makes keys when they are needed, encrypts, waits its turn, decrypts.

    Parameters
    ----------
    client : ServiceClient
    plan : Plan
        From :meth:`ServiceClient.plan`.
    key_file : KeyFile, optional
        Where keys last until the next session; open it first. Without it they are for this session
        alone: call :meth:`end`.
    release : ReleasePolicy, optional
        What leaves a decryption; by default the class only.
    wait : callable
        Is given seconds to wait when the service is busy.

    Attributes
    ----------
    keys_made : int
        How often keys were made in this session.

    Raises
    ------
    KeyFileError
        If the file cannot be used.
    ReleaseError
        If the plan cannot carry the policy.
    """

    def __init__(
        self,
        client: ServiceClient,
        plan: Plan,
        *,
        key_file: KeyFile | None = None,
        release: ReleasePolicy | None = None,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self.keys_made = 0
        self._client = client
        self._plan = plan
        self._digest = plan.digest.hex()
        self._file = key_file
        self._release = release
        self._wait = wait
        self._owner: DataOwner | None = None
        self._name = ""
        kept = None if key_file is None else key_file.load()
        if kept is not None and kept.plan == self._digest:
            try:
                self._owner = DataOwner.from_secret_state(plan, kept.state, release=release)
                self._name = kept.key_id
            except SecretsError:
                self._owner = None  # new keys are made

    def ask(self, x: ArrayLike) -> tuple[Answer, float]:
        """Ask about one input, or about a batch for a plan of batches.

        Keys that the service does not hold any more are replaced, once.

        Returns
        -------
        answer : Answer
            What the release policy lets out.
        seconds : float
            That the evaluation took, as the service says.

        Raises
        ------
        ServiceError
            If the service refuses or cannot be reached.
        OutOfRangeError, ValueError
            If the input is not what the plan is for.
        MessageError
            If the answer is not one.
        ReleaseError
            If these keys have released as many answers as they may.
        """
        fresh = self._owner is None
        while True:
            owner = self._owner or self._make_keys()
            query = owner.encrypt(x)
            self._save(owner)  # first, so that no number of a query is used twice
            try:
                answer, seconds = self._patiently(partial(self._ask, query))
            except ServiceError as error:
                if error.code in ("keys-gone", "no-keys") and not fresh:
                    self._owner, fresh = None, True
                    continue
                raise
            done = owner.decrypt(answer)
            self._save(owner)
            return done, seconds

    def _ask(self, query: bytes) -> tuple[bytes, float]:
        return self._client.ask(self._name, query, answer_bytes=self._plan.answer_bytes)

    def end(self) -> None:
        """Take keys back that nobody keeps.

        Raises
        ------
        ServiceError
            If the service cannot be reached.
        """
        if self._file is None and self._owner is not None:
            self._owner = None
            self._client.remove_keys(self._name)

    def _make_keys(self) -> DataOwner:
        owner = DataOwner(self._plan, release=self._release)
        material = owner.public_material()
        self._name = self._patiently(partial(self._client.send_keys, material))
        self._owner = owner
        self.keys_made += 1
        return owner

    def _save(self, owner: DataOwner) -> None:
        if self._file is not None:
            self._file.save(KeptKeys(self._name, self._digest, owner.secret_state()))

    def _patiently(self, ask: Callable[[], _T]) -> _T:
        for _ in range(_ATTEMPTS - 1):
            try:
                return ask()
            except ServiceError as error:
                if error.status not in (429, 503):
                    raise
                self._wait(min(float(error.retry_after or 1), _LONGEST_WAIT))
        return ask()


def _is_loopback(host: str) -> bool:
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
    reason = str(error) or type(error).__name__
    remedy = "see that the service runs and that the address is right"
    if "CERTIFICATE_VERIFY_FAILED" in reason:
        reason = "its certificate is not from an authority that is trusted here"
        remedy = "give its authority's certificate with --ca FILE, over a channel you trust"
    return ServiceError("unreachable", 0, f"{url} cannot be asked: {reason}", remedy)
