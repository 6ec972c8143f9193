"""Which paths are OpenAI's, and errors there as HTTP."""

from typing import Final

import msgspec

from llorch_gateway.http_errors import Headers, error_reply
from llorch_gateway.openai.core.errors import extra_headers, told
from llorch_shared.errors import OrchError

CHAT_PATH: Final = "/v1/chat/completions"
TEXT_PATH: Final = "/v1/completions"
MODELS_PATH: Final = "/v1/models"
RESPONSES_PATH: Final = "/v1/responses"
EMBEDDINGS_PATH: Final = "/v1/embeddings"
RERANK_PATH: Final = "/v1/rerank"
RESULT_PATHS: Final = frozenset({EMBEDDINGS_PATH, RERANK_PATH})
_PATHS: Final = frozenset({CHAT_PATH, TEXT_PATH, RESPONSES_PATH, MODELS_PATH, *RESULT_PATHS})


def is_openai(path: str) -> bool:
    return path in _PATHS or path.startswith(MODELS_PATH + "/")


def openai_error_reply(error: OrchError, correlation_id: str, *, allow: str = "") -> tuple[int, Headers, bytes]:
    """Status, headers and body; the headers are those of any error, and what OpenAI's clients obey."""
    status, headers, _ = error_reply(error, correlation_id, allow=allow)
    body = msgspec.json.encode(told(error))
    headers = [pair for pair in headers if pair[0] != b"content-length"]
    headers += [(b"content-length", str(len(body)).encode()), (b"x-request-id", correlation_id.encode())]
    return status, headers + extra_headers(error), body
