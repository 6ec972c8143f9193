"""Which path is Anthropic's, and errors there as HTTP."""

from typing import Final

import msgspec

from llorch_gateway.anthropic.core.errors import told
from llorch_gateway.http_errors import Headers, error_reply
from llorch_gateway.openai.core.errors import extra_headers
from llorch_shared.errors import OrchError

MESSAGES_PATH: Final = "/v1/messages"


def is_anthropic(path: str) -> bool:
    return path == MESSAGES_PATH


def anthropic_error_reply(error: OrchError, correlation_id: str, *, allow: str = "") -> tuple[int, Headers, bytes]:
    """Status, headers and body. Their clients obey the same headers as OpenAI's."""
    status, headers, _ = error_reply(error, correlation_id, allow=allow)
    body = msgspec.json.encode(told(error, correlation_id))
    headers = [pair for pair in headers if pair[0] != b"content-length"]
    headers += [(b"content-length", str(len(body)).encode()), (b"request-id", correlation_id.encode())]
    return status, headers + extra_headers(error), body
