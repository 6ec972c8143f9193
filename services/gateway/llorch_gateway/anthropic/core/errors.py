"""Errors in Anthropic's shape: `{"type": "error", "error": {type, message}}`."""

from typing import Final

import msgspec

from llorch_shared.errors import ERRORS, ErrorBody, OrchError
from llorch_shared.wire.anthropic import AnthropicError, AnthropicErrorBody

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_encode: Final = msgspec.json.Encoder().encode


def told(error: OrchError, request_id: str) -> AnthropicErrorBody:
    return _body(error.body, error.status, request_id)


def event(error: ErrorBody, request_id: str) -> bytes:
    """Of an error that came when the answer had begun."""
    return b"event: error\ndata: %b\n\n" % _encode(_body(error, ERRORS[error.code].status, request_id))


def _body(body: ErrorBody, status: int, request_id: str) -> AnthropicErrorBody:
    return AnthropicErrorBody(
        error=AnthropicError(
            type=_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error"),
            message=body.message,
            code=body.code,
            retriable=body.retriable,
            retry_after_ms=body.retry_after_ms,
            policy_label=body.policy_label,
            pool_id=body.pool_id,
            hint=body.hint,
            detail=body.detail,
        ),
        request_id=request_id,
    )
