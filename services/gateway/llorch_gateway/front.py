"""The outermost ASGI callable: correlation id, auth, limits and CORS of every request, and who answers it: the hot
routes (`task_routes.py`) and those of other interfaces as raw ASGI, for everything else Litestar.

Whatever is answered here or there carries X-Correlation-Id, and every error the envelope.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Final

from llorch_gateway.answer_room import AnswerRoom
from llorch_gateway.anthropic.replies import anthropic_error_reply, is_anthropic
from llorch_gateway.asgi import (
    CALL,
    STOPPING,
    App,
    ErrorReply,
    Receive,
    Routes,
    Scope,
    Send,
    T,
    correlated,
    empty,
    reply_error,
    with_headers,
)
from llorch_gateway.call import call_of, correlation_of
from llorch_gateway.cors import Cors
from llorch_gateway.failures import as_orch_error, unavailable
from llorch_gateway.http_errors import CORRELATION, error_reply
from llorch_gateway.identity import Identities
from llorch_gateway.limits import Limits
from llorch_gateway.openai.replies import is_openai, openai_error_reply
from llorch_gateway.sending import InPieces
from llorch_gateway.task_routes import STREAM_SUFFIX, TASKS_PATH, TaskRoutes
from llorch_shared.auth import LOCAL, Caller

OPEN_PATHS: Final = frozenset({"/healthz"})
SERVED_WHILE_STOPPING: Final = frozenset({"/healthz", "/readyz", "/metrics"})
LAST_ANSWERS_S: Final = 0.5
"""For the answers to those that are told to come back."""
_WANTED: Final = frozenset(
    {
        b"access-control-request-headers",
        b"access-control-request-method",
        b"authorization",
        b"content-length",
        b"content-type",
        b"forwarded",
        b"origin",
        b"x-api-key",
        b"x-correlation-id",
        b"x-forwarded-for",
        b"x-real-ip",
    }
)


@dataclass(slots=True)
class Front:
    """`control` is the Litestar application. `draining` serves everything, and asks clients to make their next
    connection elsewhere. `stopping` refuses new work while this process goes away."""

    identities: Identities
    tasks: TaskRoutes
    openai: Routes
    anthropic: Routes
    control: App
    limits: Limits
    cors: Cors
    tenant: str
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
            send = with_headers(send, [(b"connection", b"close")])
        origin = headers.get(b"origin")
        if origin is not None and self.cors.permits(origin):
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
                await empty(
                    send,
                    [
                        *self.cors.preflight(origin, headers.get(b"access-control-request-headers", b"")),
                        (CORRELATION, correlation.encode()),
                    ],
                )
                return
            send = with_headers(send, self.cors.headers(origin))
        try:
            if self.stopping and path not in SERVED_WHILE_STOPPING:
                raise unavailable(STOPPING)
            identity = LOCAL if path in OPEN_PATHS else await self.identities.identify(_caller(scope, headers))
            self.limits.take(identity)
            streams = self.limits.streams(identity)
            call = call_of(identity, correlation, tenant=self.tenant, streams=streams)
            if path == TASKS_PATH and scope["method"] == "POST":
                await self._answered(self.tasks.submit(receive, send, call, headers))
            elif path.endswith(STREAM_SUFFIX) and path.startswith(TASKS_PATH):
                await self.tasks.stream(scope, receive, send, call, self._answered)
            elif is_anthropic(path):
                await self.anthropic(scope, receive, send, call, self._answered)
            elif is_openai(path):
                await self.openai(scope, receive, send, call, self._answered)
            else:
                scope[CALL] = call
                pieces = InPieces(send, self.answers, correlation, stall_s=self.stall_s)
                await self._answered(self.control(scope, receive, correlated(pieces, correlation)))
        except Exception as error:  # noqa: BLE001  (this is the edge: every failure becomes an answer)
            await reply_error(send, as_orch_error(error, correlation), correlation, told=_errors_of(path))


def _errors_of(path: str) -> ErrorReply:
    if is_anthropic(path):
        return anthropic_error_reply
    return openai_error_reply if is_openai(path) else error_reply


def _caller(scope: Scope, headers: dict[bytes, bytes]) -> Caller:
    client = scope.get("client")
    return Caller(
        peer=client[0] if client else "",
        authorization=_text(headers.get(b"authorization")),
        api_key=_text(headers.get(b"x-api-key")),
        proxied=b"x-forwarded-for" in headers or b"forwarded" in headers or b"x-real-ip" in headers,
    )


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("latin-1")
