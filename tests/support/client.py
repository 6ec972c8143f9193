"""A small HTTP client for tests: submit, look up, cancel, read a stream and resume it on any gateway."""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx
import msgspec

from llorch_shared.errors import ErrorBody
from llorch_shared.wire.frames import End, Event, Metrics, Narration, Started, Token, parse_cursor, split_events
from llorch_shared.wire.run import TaskView
from llorch_shared.wire.task import Engine, Priority, TaskAccepted, TaskRequest, Workload

JSON = {"content-type": "application/json"}
_SENT_ALONG = ("authorization", "x-correlation-id")


class Refusal(Exception):
    """The server answered with an error envelope."""

    def __init__(self, status: int, headers: Mapping[str, str], content: bytes) -> None:
        super().__init__(f"{status}: {content.decode(errors='replace')[:500]}")
        self.status = status
        self.headers = headers
        self.body = msgspec.json.decode(content, type=ErrorBody)


class StreamCut(Exception):
    """The stream ended before its terminal event: resume it."""


def task_request(**changes: Any) -> TaskRequest:
    """A valid task for the mock pool; `changes` replace fields."""
    fields: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": Workload.COMPLETION,
        "model_ref": "mock:words",
        "engine": Engine.MOCK,
        "ctx": 2048,
        "priority": Priority.INTERACTIVE,
        "max_tokens": 20,
        "deadline_ms": 120_000,
        "prompt": "Say something.",
    }
    return msgspec.convert({**fields, **changes}, TaskRequest)


@dataclass
class Transcript:
    """Everything one reader saw of one task, over all its connections."""

    task_id: str
    started: list[Started] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    metrics: list[Metrics] = field(default_factory=list)
    waited: list[Metrics] = field(default_factory=list)
    """What was told while the task waited."""
    narrations: list[Narration] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    end: End | None = None
    error: ErrorBody | None = None
    connections: int = 0

    @property
    def text(self) -> str:
        """The result: what came before the output began anew is void."""
        void = max((each.restarted_at or 0 for each in self.metrics), default=0)
        return "".join(token.t for token in self.tokens[void:])

    @property
    def indices(self) -> list[int]:
        return [token.i for token in self.tokens]

    @property
    def finished(self) -> bool:
        return self.end is not None or self.error is not None

    @property
    def cursor(self) -> str:
        """What a browser would send as Last-Event-ID."""
        return self.ids[-1] if self.ids else ""

    def add(self, event: Event) -> None:
        assert not self.finished, f"{event} after the terminal event of {self.task_id}"
        if event.id:
            parse_cursor(event.id)
            self.ids.append(event.id)
        match event.event:
            case "started":
                self.started.append(msgspec.json.decode(event.data, type=Started))
            case "token":
                self.tokens.append(msgspec.json.decode(event.data, type=Token))
            case "metrics":
                told = msgspec.json.decode(event.data, type=Metrics)
                (self.waited if told.waits_for else self.metrics).append(told)
            case "narration":
                self.narrations.append(msgspec.json.decode(event.data, type=Narration))
            case "end":
                self.end = msgspec.json.decode(event.data, type=End)
            case "error":
                self.error = msgspec.json.decode(event.data, type=ErrorBody)
            case other:
                raise AssertionError(f"unknown event {other}")

    def check(self) -> None:
        """No token is missing or doubled, `started` came at most once, and `end` counts what was sent."""
        assert self.indices == list(range(len(self.tokens))), f"{self.task_id}: indices {self.indices}"
        assert len(self.started) <= 1
        if self.end is not None:
            assert self.end.tokens_out == len(self.tokens), f"{self.end} but {len(self.tokens)} tokens"
            told = [each.restarted_at for each in self.metrics if each.restarted_at is not None]
            assert self.end.restarted_at == max(told, default=None), f"{self.end} but {told}"


class _Transport(httpx.AsyncHTTPTransport):
    """On uvloop a connection that breaks while it is being made has no socket any more to be asked for its peer."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        try:
            return await super().handle_async_request(request)
        except AttributeError as error:
            if "getpeername" not in str(error):
                raise
            raise httpx.ConnectError("the connection broke while it was being made", request=request) from error


class TaskClient:
    """One gateway seen by one caller. Use as an async context manager.

    Streams have connections of their own: httpx looks at every open connection whenever one is opened or closed, which
    costs hundreds of readers more than everything they wait for.
    """

    def __init__(self, base_url: str, *, token: str = "", timeout_s: float = 30) -> None:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self.http = httpx.AsyncClient(
            base_url=base_url, headers=headers, timeout=timeout_s, transport=_Transport(limits=limits)
        )
        self._base_url = base_url
        self._silence = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        self._streams: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "TaskClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self.http.aclose()
        if self._streams is not None:
            await self._streams.close()

    def _stream(self, path: str, headers: dict[str, str], params: dict[str, str]) -> Any:
        if self._streams is None:
            connector = aiohttp.TCPConnector(limit=0, force_close=True)
            self._streams = aiohttp.ClientSession(self._base_url, connector=connector, timeout=self._silence)
        own = {name: self.http.headers[name] for name in _SENT_ALONG if name in self.http.headers}
        return self._streams.get(path, headers={**own, **headers}, params=params)

    async def submit(self, request: TaskRequest | None = None, **changes: Any) -> TaskAccepted:
        """Raises Refusal. The request is `task_request(**changes)` unless given."""
        body = msgspec.json.encode(request or task_request(**changes))
        response = await self.http.post("/v1/tasks", content=body, headers=JSON)
        return msgspec.json.decode(_checked(response, 202).content, type=TaskAccepted)

    async def get(self, task_id: str) -> TaskView:
        return msgspec.json.decode(_checked(await self.http.get(f"/v1/tasks/{task_id}"), 200).content, type=TaskView)

    async def cancel(self, task_id: str) -> int:
        """204, or 202 when the receipt did not come in time. Raises Refusal."""
        response = await self.http.post(f"/v1/tasks/{task_id}/cancel")
        return _checked(response, 202, 204).status_code

    async def events(self, task_id: str, *, after: str = "", header: bool = True) -> AsyncGenerator[Event]:
        """Events until the terminal one. Raises StreamCut when the connection ends before it, Refusal."""
        headers = {"last-event-id": after} if after and header else {}
        params = {"after": after} if after and not header else {}
        try:
            async with self._stream(f"/v1/tasks/{task_id}/stream", headers, params) as response:
                if response.status != 200:
                    raise Refusal(response.status, response.headers, await response.read())
                buffer = b""
                async for chunk in response.content.iter_any():
                    buffer += chunk
                    whole, found, rest = buffer.rpartition(b"\n\n")
                    if not found:
                        continue
                    buffer = rest
                    for event in split_events(whole):
                        yield event
                        if event.event in ("end", "error"):
                            return
        except (aiohttp.ClientError, OSError) as error:
            raise StreamCut(f"{task_id}: {error!r}") from error
        raise StreamCut(f"{task_id}: closed before its end")

    async def read(self, task_id: str, *, into: Transcript | None = None, tokens_max: int | None = None) -> Transcript:
        """Read on one connection, from where `into` stands, until the end or until it holds `tokens_max` tokens."""
        transcript = into or Transcript(task_id)
        transcript.connections += 1
        async with contextlib.aclosing(self.events(task_id, after=transcript.cursor)) as events:
            async for event in events:
                if event.event == "started" and transcript.started:
                    continue
                transcript.add(event)
                if tokens_max is not None and len(transcript.tokens) >= tokens_max:
                    break
        return transcript


async def follow(
    clients: Sequence[TaskClient], task_id: str, *, into: Transcript | None = None, deadline_s: float = 60
) -> Transcript:
    """Read a task to its end, resuming on the next gateway whenever the present one fails."""
    transcript = into or Transcript(task_id)
    async with asyncio.timeout(deadline_s):
        turn = 0
        while not transcript.finished:
            try:
                await clients[turn % len(clients)].read(task_id, into=transcript)
            except StreamCut:
                turn += 1
                await asyncio.sleep(0.05)
            except Refusal as refusal:
                if refusal.status not in (429, 503):
                    raise
                turn += 1
                await asyncio.sleep(0.1)
    return transcript


def _checked(response: httpx.Response, *statuses: int) -> httpx.Response:
    if response.status_code not in statuses:
        raise Refusal(response.status_code, response.headers, response.content)
    return response
