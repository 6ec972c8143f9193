"""The routes of OpenAI's clients: a completion is a task that is admitted and read in one request.

It is admitted, queued, run and cancelled as any other; its client leaving is its reader leaving. The response begins
with the first token (or the first heartbeat), so that what goes wrong before it has its HTTP status.
After that an answer that does not come to its end says so in its last event.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from llorch_gateway.admissions import Admissions
from llorch_gateway.asgi import STOPPING, STREAM_HEADERS, Counted, Receive, Scope, Send, read_body, reply_error
from llorch_gateway.call import Call
from llorch_gateway.failures import as_orch_error, unavailable
from llorch_gateway.http_errors import CORRELATION, JSON_TYPE, SAFE, Headers
from llorch_gateway.openai.core import errors, models
from llorch_gateway.openai.core.answer import Answer, Chunks, Whole
from llorch_gateway.openai.core.request import HEADERS, Asked, read
from llorch_gateway.openai.replies import CHAT_PATH, MODELS_PATH, TEXT_PATH
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Opened, Streams
from llorch_shared.errors import OrchError, invalid
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

_WANTED: Final = frozenset({*HEADERS, b"content-length", b"content-type"})
_encode: Final = msgspec.json.Encoder().encode


class OpenAiRoutes:
    def __init__(
        self,
        *,
        admissions: Admissions,
        streams: Streams,
        snapshot: Snapshot,
        body_bytes_max: int,
        body_read_s: float,
    ) -> None:
        self._admissions: Final = admissions
        self._streams: Final = streams
        self._snapshot: Final = snapshot
        self._body_bytes_max: Final = body_bytes_max
        self._body_read_s: Final = body_read_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send, call: Call, answered: Counted) -> None:
        """Raises OrchError, BusError before the response has begun."""
        path = scope["path"]
        allowed = "POST" if path in (CHAT_PATH, TEXT_PATH) else "GET"
        if scope["method"] != allowed:
            error = invalid(f"this path takes {allowed}", status=405)
            await reply_error(send, error, call.correlation_id, allow=allowed, openai=True)
        elif allowed == "GET":
            await _reply(send, call, self._models(path))
        else:
            asked, opened = await answered(self._admit(scope, receive, call, chat=path == CHAT_PATH))
            if asked.stream:
                await self._stream(asked, opened, receive, send, call)
            else:
                body = await answered(self._whole(asked, opened, receive, call))
                await _reply(send, call, body, asked)

    def _models(self, path: str) -> bytes:
        pools, replicas = self._snapshot.pools, self._snapshot.replicas
        name = path.removeprefix(MODELS_PATH).removeprefix("/")
        return _encode(models.one(name, pools, replicas) if name else models.listed(pools, replicas))

    async def _admit(self, scope: Scope, receive: Receive, call: Call, *, chat: bool) -> tuple[Asked, Opened]:
        """The task is in its queue, and its reader has a seat. Raises OrchError, BusError."""
        headers = {name: value for name, value in scope["headers"] if name in _WANTED}
        body = await read_body(receive, headers, self._body_bytes_max, within_s=self._body_read_s)
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
            raise invalid("send the request as content-type application/json", status=415)
        if not self._snapshot.held:
            raise unavailable("this gateway has not read the registry yet")
        asked = read(
            body,
            headers,
            chat=chat,
            new_id=str(uuid.uuid4()),
            pools=self._snapshot.pools,
            replicas=self._snapshot.replicas,
        )
        self._streams.check_room(call)
        await self._admissions.submit_request(asked.task, call)
        try:
            opened = await self._streams.open(asked.task.task_id, None, call)
        except BaseException:
            self._streams.abandon(asked.task.task_id, call)
            raise
        assert opened is not None, "only a cursor can be at the end of a stream"
        return asked, opened

    async def _stream(self, asked: Asked, opened: Opened, receive: Receive, send: Send, call: Call) -> None:
        chunks = Chunks(asked, created=now_ms() // 1000)
        started = False

        async def write(data: bytes) -> None:
            nonlocal started
            out = chunks.feed(data)
            if out:
                if not started:
                    started = True
                    headers = [*STREAM_HEADERS, *_names(call, asked)]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": out, "more_body": True})
            if chunks.over:
                opened.seat.close("client")

        last = b""
        try:
            await self._streams.serve(opened, call, start=_at_once, write=write, gone=_leaving(receive))
            if not (started and chunks.over):
                raise _failure(chunks, opened)
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, OrchError):
                ids = {"task_id": opened.task, "correlation_id": call.correlation_id}
                log.exception("the stream of a completion broke off", extra=ids)
            last = chunks.broken(as_orch_error(error, call.correlation_id).body)
        await send({"type": "http.response.body", "body": last})

    async def _whole(self, asked: Asked, opened: Opened, receive: Receive, call: Call) -> bytes:
        """Raises OrchError."""
        whole = Whole(asked, created=now_ms() // 1000)

        async def write(data: bytes) -> None:
            whole.feed(data)

        await self._streams.serve(opened, call, start=_at_once, write=write, gone=_leaving(receive))
        if not whole.over or whole.error is not None:
            raise _failure(whole, opened)
        return whole.body()


async def _at_once() -> None:
    """The response begins when there is something to say."""


def _leaving(receive: Receive) -> Callable[[], Awaitable[None]]:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue

    return gone


def _failure(answer: Answer, opened: Opened) -> OrchError:
    """Why there is no answer, or not all of it."""
    if answer.error is not None:
        return errors.as_raised(answer.error)
    return unavailable(STOPPING if opened.seat.closed == "stopping" else "nobody reads this answer any more")


def _names(call: Call, asked: Asked | None) -> Headers:
    """Ids to look it up by; `x-request-id` is what OpenAI's clients show."""
    correlation = call.correlation_id.encode()
    task = [] if asked is None else [(b"x-llorch-task-id", asked.task.task_id.encode())]
    return [(CORRELATION, correlation), (b"x-request-id", correlation), *task]


async def _reply(send: Send, call: Call, body: bytes, asked: Asked | None = None) -> None:
    headers = [JSON_TYPE, (b"content-length", str(len(body)).encode()), *_names(call, asked), *SAFE]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
