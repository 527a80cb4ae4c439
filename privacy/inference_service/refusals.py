"""What the service tells its callers of errors: nothing of other owners, nor of this machine."""

from starlette.exceptions import HTTPException

from privacy.inference.errors import (
    AnsweredBeforeError,
    EvaluatorFailedError,
    EvaluatorTimeoutError,
    KeysDroppedError,
    MessageError,
)
from privacy.inference_service.errors import ServiceError, TokenFileError


def refusal_of(error: Exception) -> ServiceError:
    """An error as its caller sees it: nothing of other owners, nor of this machine."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, HTTPException):
        return ServiceError(
            "no-such-page", error.status_code, error.detail, "see docs/how-to/service.md"
        )
    for kind, code, status, message, remedy in _REFUSALS:
        if isinstance(error, kind):
            return ServiceError(code, status, message or str(error), remedy)
    return ServiceError("internal", 500, "something went wrong here", "tell the operator")


_REFUSALS: tuple[tuple[type[Exception], str, int, str, str], ...] = (
    # Error, code, status, message (where empty, the error's own), remedy; the first that fits.
    (KeysDroppedError, "keys-gone", 410, "", "make new keys and send them"),
    (AnsweredBeforeError, "answered-before", 409, "", "each query is answered once"),
    (MessageError, "refused", 400, "", "encrypt and send again"),
    (
        EvaluatorTimeoutError,
        "too-slow",
        504,
        "the evaluation took too long and was ended",
        "encrypt and ask again",
    ),
    (
        EvaluatorFailedError,
        "evaluator-failed",
        500,
        "the evaluating process ended over this request",
        "encrypt and ask again; if it happens again, tell the operator",
    ),
    (TokenFileError, "misconfigured", 500, "nobody can be let in", "tell the operator"),
)
