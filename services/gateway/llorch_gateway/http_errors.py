"""Errors as HTTP: the one place where a status, its headers and the envelope are put together (ORCH-2006, 2007)."""

from typing import Final

import msgspec

from llorch_shared.errors import ErrorBody, OrchError
from llorch_shared.http_api import BACKOFF_HEADER, RETRY_AFTER_HEADER

Headers = list[tuple[bytes, bytes]]

JSON_TYPE: Final = (b"content-type", b"application/json")
CORRELATION: Final = b"x-correlation-id"
SAFE: Final[Headers] = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
"""On every answer that is not a stream: nobody guesses what it is, and nobody keeps what it says."""
_encode: Final = msgspec.json.Encoder().encode


def error_reply(error: OrchError, correlation_id: str, *, allow: str = "") -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error answer. `allow` lists the methods of a 405."""
    body = _encode(error.body)
    headers = [
        JSON_TYPE,
        (b"content-length", str(len(body)).encode()),
        (CORRELATION, correlation_id.encode()),
        *SAFE,
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b'Bearer realm="llama-orch"'))
    elif error.status == 405:
        headers.append((b"allow", allow.encode()))
    elif error.status in (429, 503):
        headers += _come_back(error)
    return error.status, headers, body


def _come_back(error: OrchError) -> Headers:
    """When to come back: whole seconds rounded up for old clients, milliseconds for ours."""
    wait_ms = _wait_ms(error.body)
    headers = [(RETRY_AFTER_HEADER.lower().encode(), str(max(1, -(-wait_ms // 1000))).encode())]
    if error.status == 429:
        headers.append((BACKOFF_HEADER.lower().encode(), str(wait_ms).encode()))
    return headers


def _wait_ms(body: ErrorBody) -> int:
    return 1000 if body.retry_after_ms is None else body.retry_after_ms
