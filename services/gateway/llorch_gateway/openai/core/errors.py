"""Errors in OpenAI's shape: `{"error": {message, type, param, code}}`, and the headers that its clients obey."""

import re
from typing import Final

import msgspec

from llorch_shared.errors import ERRORS, ErrorBody, ErrorCode, OrchError
from llorch_shared.wire.openai import OpenAiError, OpenAiErrorBody

PATH_CHARS_MAX: Final = 200
_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PATH: Final = re.compile(r"at `\$\.([^`]+)`$")
_UNKNOWN: Final = re.compile(r"unknown field `([^`]+)`")
_MISSING: Final = re.compile(r"missing required field `([^`]+)`")


class ParamError(OrchError):
    """A parameter that cannot be served as written."""

    def __init__(self, param: str, message: str, *, status: int = 400, hint: str | None = None) -> None:
        super().__init__(ErrorCode.INVALID_PARAMS, message, status=status, hint=hint)
        self.param: Final = param


def unreadable(error: Exception) -> ParamError:
    """What decoding the body of a request raised."""
    message = str(error)
    at = _PATH.search(message)
    field = _UNKNOWN.search(message) or _MISSING.search(message)
    path = ".".join(part for part in (at[1] if at else "", field[1] if field else "") if part)
    return ParamError(path[:PATH_CHARS_MAX], message)


def told(error: OrchError) -> OpenAiErrorBody:
    return _body(error.body, error.status, error.param or None if isinstance(error, ParamError) else None)


def told_in_stream(error: ErrorBody) -> OpenAiErrorBody:
    """Of an error that came when the answer had begun."""
    return _body(error, ERRORS[error.code].status, None)


def _body(body: ErrorBody, status: int, param: str | None) -> OpenAiErrorBody:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return OpenAiErrorBody(
        error=OpenAiError(
            message=body.message,
            type=kind,
            param=param,
            code=body.code,
            retriable=body.retriable,
            retry_after_ms=body.retry_after_ms,
            policy_label=body.policy_label,
            pool_id=body.pool_id,
            hint=body.hint,
            detail=body.detail,
        )
    )


def event(error: OpenAiErrorBody) -> bytes:
    return b"data: %b\n\n" % msgspec.json.encode(error)


def extra_headers(error: OrchError) -> list[tuple[bytes, bytes]]:
    """OpenAI's clients ask again after every 429 and 5xx unless they are told not to."""
    headers = [(b"x-should-retry", b"true" if error.body.retriable else b"false")]
    if error.status in (429, 503) and error.body.retry_after_ms is not None:
        headers.append((b"retry-after-ms", str(error.body.retry_after_ms).encode()))
    return headers
