"""The outermost ASGI callable: correlation id, auth, the two hot routes and those of other interfaces; everything else
goes to Litestar.

Submission and streaming are raw ASGI because a framework costs more per request, and much more per event, than the
work itself. Whatever is answered here or there carries X-Correlation-Id, and every error the envelope.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import parse_qs

import msgspec

from llorch_gateway.admissions import Admissions
from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.anthropic.replies import anthropic_error_reply, is_anthropic
from llorch_gateway.bodies import check_json, read_body
from llorch_gateway.call import Call, call_of, correlation_of
from llorch_gateway.core.sessions import budget_headers
from llorch_gateway.cors import Cors
from llorch_gateway.failures import as_orch_error, unavailable
from llorch_gateway.http_errors import CORRELATION, JSON_TYPE, SAFE, Headers, error_reply
from llorch_gateway.identity import Identities
from llorch_gateway.limits import Limits
from llorch_gateway.openai.replies import is_openai, openai_error_reply
from llorch_gateway.sending import InPieces
from llorch_gateway.streams import Streams
from llorch_gateway.tasks import task_id
from llorch_shared.auth import LOCAL, Caller
from llorch_shared.errors import OrchError, invalid
from llorch_shared.wire.frames import Cursor, parse_cursor
from llorch_shared.wire.session import SessionRemaining
from llorch_shared.wire.task import TaskAccepted

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
App = Callable[[Any, Any, Any], Awaitable[None]]

CALL: Final = "llorch.call"
"""Where the scope carries the Call to Litestar's handlers."""
OPEN_PATHS: Final = frozenset({"/healthz"})
SERVED_WHILE_STOPPING: Final = frozenset({"/healthz", "/readyz", "/metrics"})
STOPPING: Final = "this gateway is stopping; another one, or this one in a moment, takes the request"
LAST_ANSWERS_S: Final = 0.5
"""For the answers to those that are told to come back."""
TASKS_PATH: Final = "/v1/tasks"
STREAM_SUFFIX: Final = "/stream"
_WANTED: Final = frozenset(
    {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"authorization",
        b"content-length",
        b"content-type",
        b"forwarded",
        b"last-event-id",
        b"origin",
        b"x-api-key",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-real-ip",
    }
)
STREAM_HEADERS: Final[Headers] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    *SAFE,
    (b"x-accel-buffering", b"no"),
]

_encode: Final = msgspec.json.Encoder().encode


class Counted(Protocol):
    """Counts a request among those that are under way."""

    def __call__(self, work: Awaitable[T]) -> Awaitable[T]: ...


Routes = Callable[[Scope, Receive, Send, Call, Counted], Awaitable[None]]


class ErrorReply(Protocol):
    """An error as status, headers and body."""

    def __call__(self, error: OrchError, correlation_id: str, *, allow: str = "") -> tuple[int, Headers, bytes]: ...


@dataclass(slots=True)
class Front:
    """`control` is the Litestar application. `draining` serves everything, and asks clients to make their next
    connection elsewhere. `stopping` refuses new work while this process goes away."""

    identities: Identities
    admissions: Admissions
    streams: Streams
    openai: Routes
    anthropic: Routes
    control: App
    limits: Limits
    cors: Cors
    tenant: str
    body_bytes_max: int
    body_read_s: float
    answers: AnswerRoom
    stall_s: float
    draining: bool = False
    stopping: bool = False
    _answering: set["asyncio.Task[Any]"] = field(default_factory=set)
    """Requests under way that are not streams, or not yet."""

    async def finish(self, within_s: float) -> None:
        """Let what is under way be answered; what takes longer is told to come back, so that nobody is left without
        a word when the server closes."""
        for patience_s in (within_s, LAST_ANSWERS_S):
            if not self._answering:
                return
            _, late = await asyncio.wait(tuple(self._answering), timeout=patience_s)
            for task in late:
                task.cancel()

    async def _answered(self, work: Awaitable[T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            return await work
        except asyncio.CancelledError:
            if not self.stopping:
                raise
            task.uncancel()
            raise unavailable(STOPPING) from None
        finally:
            self._answering.discard(task)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name: value for name, value in scope["headers"] if name in _WANTED}
        correlation = correlation_of(_text(headers.get(b"x-correlation-id")))
        path = scope["path"]
        if self.draining and scope["http_version"].startswith("1"):
            send = _with_headers(send, [(b"connection", b"close")])
        origin = headers.get(b"origin")
        if origin is not None and self.cors.permits(origin):
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await _empty(
                    send,
                    [
                        *self.cors.preflight(origin, headers.get(b"access-control-request-headers", b"")),
                        (CORRELATION, correlation.encode()),
                    ],
                )
                return
            send = _with_headers(send, self.cors.headers(origin))
        try:
            if self.stopping and path not in SERVED_WHILE_STOPPING:
                raise unavailable(STOPPING)
            identity = LOCAL if path in OPEN_PATHS else await self.identities.identify(_caller(scope, headers))
            self.limits.take(identity)
            streams = self.limits.streams(identity)
            call = call_of(identity, correlation, tenant=self.tenant, streams=streams)
            if path == TASKS_PATH and scope["method"] == "POST":
                await self._answered(self._submit(scope, receive, send, call, headers))
            elif path.endswith(STREAM_SUFFIX) and path.startswith(TASKS_PATH):
                await self._stream(scope, receive, send, call, headers)
            elif is_anthropic(path):
                await self.anthropic(scope, receive, send, call, self._answered)
            elif is_openai(path):
                await self.openai(scope, receive, send, call, self._answered)
            else:
                scope[CALL] = call
                pieces = InPieces(send, self.answers, correlation, stall_s=self.stall_s)
                await self._answered(self.control(scope, receive, _correlated(pieces, correlation)))
        except Exception as error:  # noqa: BLE001  (this is the edge: every failure becomes an answer)
            await reply_error(send, as_orch_error(error, correlation), correlation, told=_errors_of(path))

    async def _submit(
        self, scope: Scope, receive: Receive, send: Send, call: Call, headers: dict[bytes, bytes]
    ) -> None:
        body = await read_body(receive, headers, self.body_bytes_max, within_s=self.body_read_s)
        check_json(headers, "task")
        told = await self.admissions.submit(body, call)
        accepted = _encode(told)
        await send(
            {
                "type": "http.response.start",
                "status": 202,
                "headers": [
                    JSON_TYPE,
                    (b"content-length", str(len(accepted)).encode()),
                    (CORRELATION, call.correlation_id.encode()),
                    *budget_lines(told),
                    *SAFE,
                ],
            }
        )
        await send({"type": "http.response.body", "body": accepted})

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, call: Call, headers: dict[bytes, bytes]
    ) -> None:
        task, slash, _ = scope["path"][len(TASKS_PATH) + 1 :].partition("/")
        if not slash or scope["path"] != f"{TASKS_PATH}/{task}{STREAM_SUFFIX}":
            raise invalid("there is no such path", status=404)
        if scope["method"] != "GET":
            await _not_allowed(send, call, "GET")
            return
        cursor = _cursor(headers.get(b"last-event-id"), scope["query_string"])
        opened = await self._answered(self.streams.open(task_id(task), cursor, call))
        correlation = (CORRELATION, call.correlation_id.encode())
        if opened is None:
            await _empty(send, [correlation])
            return

        async def write(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        headers_sent = [*STREAM_HEADERS, correlation, *budget_lines(opened.left)]
        started = False

        async def start() -> None:
            nonlocal started
            started = True
            await send({"type": "http.response.start", "status": 200, "headers": headers_sent})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue

        try:
            await self.streams.serve(opened, call, start=start, write=write, gone=gone, news=True)
        except Exception:
            if not started:
                raise
            log.exception("a stream broke off", extra={"task_id": opened.task, "correlation_id": call.correlation_id})
        await send({"type": "http.response.body", "body": b""})


async def reply_error(
    send: Send, error: OrchError, correlation_id: str, *, allow: str = "", told: ErrorReply = error_reply
) -> None:
    """Answer with the envelope, or in the shape of another interface. Only before a reply has begun."""
    status, headers, body = told(error, correlation_id, allow=allow)
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _errors_of(path: str) -> ErrorReply:
    if is_anthropic(path):
        return anthropic_error_reply
    return openai_error_reply if is_openai(path) else error_reply


async def _not_allowed(send: Send, call: Call, allow: str) -> None:
    error = invalid(f"this path takes {allow}", status=405)
    await reply_error(send, error, call.correlation_id, allow=allow)


def _correlated(send: Send, correlation_id: str) -> Send:
    async def with_header(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            headers = [pair for pair in message.get("headers", ()) if pair[0].lower() != CORRELATION]
            message["headers"] = [*headers, (CORRELATION, correlation_id.encode()), *SAFE]
        await send(message)

    return with_header


def _with_headers(send: Send, added: Headers) -> Send:
    async def with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *added]
        await send(message)

    return with_headers


async def _empty(send: Send, headers: Headers) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def budget_lines(left: SessionRemaining | TaskAccepted | None) -> Headers:
    return [(name.lower().encode(), value.encode()) for name, value in budget_headers(left)]


def _caller(scope: Scope, headers: dict[bytes, bytes]) -> Caller:
    client = scope.get("client")
    return Caller(
        peer=client[0] if client else "",
        authorization=_text(headers.get(b"authorization")),
        api_key=_text(headers.get(b"x-api-key")),
        proxied=b"x-forwarded-for" in headers or b"forwarded" in headers or b"x-real-ip" in headers,
    )


def _cursor(last_event_id: bytes | None, query: bytes) -> Cursor | None:
    """Last-Event-ID wins over `after`; neither means from the beginning. Raises OrchError, whichever is wrong."""
    asked = parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {}
    given = asked.pop("after", [])
    if asked:
        raise invalid(f"{min(asked)[:80]!r} is no parameter of a stream; it has after")
    cursors = [_parsed_cursor("after", text) for text in given]
    if last_event_id:
        return _parsed_cursor("Last-Event-ID", last_event_id.decode("latin-1"))
    return cursors[0] if cursors else None


def _parsed_cursor(name: str, text: str) -> Cursor:
    try:
        return parse_cursor(text)
    except ValueError as error:
        raise invalid(f"{name}: {error}") from error


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
