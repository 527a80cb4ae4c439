"""What a caller is told of whatever went wrong."""

from starlette.exceptions import HTTPException

from privacy.inference.errors import (
    AnsweredBeforeError,
    EvaluatorFailedError,
    EvaluatorTimeoutError,
    KeysDroppedError,
    MessageError,
)
from privacy.inference_service.errors import ServiceError, TokenFileError


def told_of(error: Exception) -> ServiceError:
    """What the caller is told of an error: nothing of other owners, nor of this machine."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, KeysDroppedError):
        return ServiceError("keys-gone", 410, str(error), "make new keys and send them")
    if isinstance(error, AnsweredBeforeError):
        return ServiceError("answered-before", 409, str(error), "each query is answered once")
    if isinstance(error, MessageError):
        return ServiceError("refused", 400, str(error), "encrypt and send again")
    if isinstance(error, EvaluatorTimeoutError):
        return ServiceError(
            "too-slow", 504, "the evaluation took too long and was ended", "encrypt and ask again"
        )
    if isinstance(error, EvaluatorFailedError):
        return ServiceError(
            "evaluator-failed",
            500,
            "the evaluating process ended over this request",
            "encrypt and ask again; if it happens again, tell the operator",
        )
    if isinstance(error, HTTPException):
        return ServiceError("no-such-page", error.status_code, error.detail, "see docs/service.md")
    if isinstance(error, TokenFileError):
        return ServiceError("misconfigured", 500, "nobody can be let in", "tell the operator")
    return ServiceError("internal", 500, "something went wrong here", "tell the operator")
