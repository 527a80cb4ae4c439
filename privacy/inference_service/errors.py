"""Refusals, as the service tells them and as its client understands them."""

from collections.abc import Mapping


class ServiceError(RuntimeError):
    """A request that was refused or failed.

    Attributes
    ----------
    code : str
        For programs: ``"keys-gone"``, ``"busy"``, ...
    status : int
        Of HTTP; 0 where no service was reached.
    message : str
        What is wrong.
    remedy : str
        What to do.
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

    def as_dict(self) -> dict[str, object]:
        """As the service writes it down."""
        told: dict[str, object] = {
            "error": self.code,
            "message": self.message,
            "remedy": self.remedy,
        }
        if self.retry_after is not None:
            told["retry_after"] = self.retry_after
        return told

    @classmethod
    def from_dict(cls, status: int, told: Mapping[str, object]) -> "ServiceError":
        """Read what :meth:`as_dict` wrote; anything missing is replaced by what is known."""
        after = told.get("retry_after")
        return cls(
            str(told.get("error", "unknown"))[:100],
            status,
            str(told.get("message", f"the service answered {status}"))[:500],
            str(told.get("remedy", "look at the service's log"))[:500],
            retry_after=after if isinstance(after, int) and not isinstance(after, bool) else None,
        )


class KeyFileError(ValueError):
    """A file of keys that cannot be used; the message says why."""


class KeyFileInUseError(KeyFileError):
    """Another process has the file open."""


class TokenFileError(ValueError):
    """A file of tokens that cannot be used; the message says why."""
