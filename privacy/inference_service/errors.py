"""Refusals of the service, as it sends them and as its client reads them; errors of its files."""

from collections.abc import Mapping

from privacy.untrusted_text import one_line

_LONGEST_WAIT = 86_400
"""Seconds that a service may ask its callers to wait; what is more is no number of a service's."""


class KeyFileError(ValueError):
    """A file of keys that cannot be used; the message says why."""


class KeyFileInUseError(KeyFileError):
    """Another process has the file open."""


class TokenFileError(ValueError):
    """A file of tokens that cannot be used; the message says why."""


class ServiceError(RuntimeError):
    """A request that was refused or failed.

    Attributes
    ----------
    code : str
        For programs: ``"keys-gone"``, ``"busy"``, ...
    status : int
        Of HTTP; 0 where no service was reached.
    message : str
        The fault.
    remedy : str
    retry_after : int or None
        Seconds after which it is worth asking again.
    """

    def __init__(
        self,
        code: str,
        status: int,
        message: str,
        remedy: str,
        *,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(f"{message}; {remedy}")
        self.code = code
        self.status = status
        self.message = message
        self.remedy = remedy
        self.retry_after = retry_after

    def to_dict(self) -> dict[str, object]:
        """The body of the service's response."""
        body: dict[str, object] = {
            "error": self.code,
            "message": self.message,
            "remedy": self.remedy,
        }
        return body if self.retry_after is None else body | {"retry_after": self.retry_after}

    @classmethod
    def from_dict(cls, status: int, body: Mapping[str, object]) -> "ServiceError":
        """Read the body of a response; missing fields get general texts.

        Whatever a service writes is one line each: it reaches its caller's terminal and logs.
        """

        def text(name: str, otherwise: str, longest: int) -> str:
            return one_line(str(body.get(name, otherwise))[:longest])

        after = body.get("retry_after")
        if not isinstance(after, int) or isinstance(after, bool) or not 0 <= after <= _LONGEST_WAIT:
            after = None
        return cls(
            text("error", "unknown", 100),
            status,
            text("message", f"the service answered {status}", 500),
            text("remedy", "look at the service's log", 500),
            retry_after=after,
        )
