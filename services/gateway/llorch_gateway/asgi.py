"""What the routes that are raw ASGI say to each other and to the server: types, headers and the replies that all have.

Submission and streaming are raw ASGI because a framework costs more per request, and much more per event, than the
work itself.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, TypeVar

from llorch_gateway.call import Call
from llorch_gateway.core.sessions import budget_headers
from llorch_gateway.http_errors import CORRELATION, SAFE, Headers, error_reply
from llorch_shared.errors import OrchError
from llorch_shared.wire.session import SessionRemaining
from llorch_shared.wire.task import TaskAccepted

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
App = Callable[[Any, Any, Any], Awaitable[None]]

CALL: Final = "llorch.call"
"""Where the scope carries the Call to Litestar's handlers."""
STOPPING: Final = "this gateway is stopping; another one, or this one in a moment, takes the request"
STREAM_HEADERS: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    *SAFE,
    (b"x-accel-buffering", b"no"),
]


class Counted(Protocol):
    """Counts a request among those that are under way."""

    def __call__(self, work: Awaitable[T]) -> Awaitable[T]: ...


Routes = Callable[[Scope, Receive, Send, Call, Counted], Awaitable[None]]


class ErrorReply(Protocol):
    """An error as status, headers and body."""

    def __call__(self, error: OrchError, correlation_id: str, *, allow: str = "") -> tuple[int, Headers, bytes]: ...


async def reply_error(
    send: Send, error: OrchError, correlation_id: str, *, allow: str = "", told: ErrorReply = error_reply
) -> None:
    """Answer with the envelope, or in the shape of another interface. Only before a reply has begun."""
    status, headers, body = told(error, correlation_id, allow=allow)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def correlated(send: Send, correlation_id: str) -> Send:
    async def with_header(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != CORRELATION]
            message["headers"] = [*headers, (CORRELATION, correlation_id.encode()), *SAFE]
        await send(message)

    return with_header


def with_headers(send: Send, added: Headers) -> Send:
    async def with_added(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return with_added


async def empty(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def budget_lines(left: SessionRemaining | TaskAccepted | None) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in budget_headers(left)]
