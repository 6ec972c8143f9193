"""An ASGI client that sees every piece of a body as it is sent, may read slowly, and may leave."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import Event, split_events

DEADLINE_S = 30.0


@dataclass
class Reply:
    """An answer, or one that is still being sent."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: int = 0
    ended: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    flowing: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    running: "asyncio.Task[None] | None" = None

    @property
    def events(self) -> list[Event]:
        return split_events(self.body)

    @property
    def names(self) -> list[str]:
        """`event id` of everything received."""
        return [f"{event.event} {event.id}".strip() for event in self.events]

    @property
    def error(self) -> ErrorBody:
        return msgspec.json.decode(self.body, type=ErrorBody)

    def json(self, type_: Any = Any) -> Any:
        return msgspec.json.decode(self.body, type=type_)

    async def until(self, condition: Callable[["Reply"], bool]) -> None:
        """Wait until what has been received meets `condition`."""
        async with asyncio.timeout(DEADLINE_S):
            while not condition(self):
                assert not self.ended, f"the reply ended: {self.body[-500:]!r}"
                self.changed.clear()
                await self.changed.wait()

    async def until_event(self, name: str) -> None:
        await self.until(lambda reply: name in reply.names)

    async def end(self) -> "Reply":
        assert self.running is not None
        async with asyncio.timeout(DEADLINE_S):
            await self.running
        return self

    async def leave(self) -> None:
        self.left.set()
        self.flowing.set()
        await self.end()


class AsgiClient:
    """Talks to one ASGI application as `peer`."""

    def __init__(self, app: Callable[..., Awaitable[None]], *, peer: str = "127.0.0.1") -> None:
        self.app = app
        self.peer = peer

    def open(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, *, slow: bool = False
    ) -> Reply:
        """Begin a request. A `slow` reader takes the start and then nothing until `flowing` is set."""
        reply = Reply()
        if not slow:
            reply.flowing.set()
        reply.running = asyncio.create_task(self._run(method, path, body, headers or {}, reply))
        return reply

    async def request(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Reply:
        return await self.open(method, path, body, headers).end()

    async def get(self, path: str, **headers: str) -> Reply:
        return await self.request("GET", path, headers={key.replace("_", "-"): text for key, text in headers.items()})

    async def post(self, path: str, body: bytes = b"", **headers: str) -> Reply:
        sent = {"content-type": "application/json", **{key.replace("_", "-"): text for key, text in headers.items()}}
        return await self.request("POST", path, body, sent)

    async def _run(self, method: str, path: str, body: bytes, headers: Mapping[str, str], reply: Reply) -> None:
        path, _, query = path.partition("?")
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"content-length", str(len(body)).encode()),
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
            ],
            "client": (self.peer, 50_000),
            "server": ("127.0.0.1", 8080),
            "state": {},
        }
        requested = False

        async def receive() -> dict[str, Any]:
            nonlocal requested
            if not requested:
                requested = True
                return {"type": "http.request", "body": body, "more_body": False}
            await reply.left.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                assert not reply.status, "two starts of one response"
                reply.status = message["status"]
                reply.headers = {name.decode().lower(): value.decode() for name, value in message["headers"]}
            else:
                await reply.flowing.wait()
                reply.body += message.get("body", b"")
                reply.pieces += 1
            reply.changed.set()

        try:
            await self.app(scope, receive, send)
        finally:
            reply.ended = True
            reply.changed.set()
