"""The routes of OpenAI's clients: a completion is a task that is admitted and read in one request.

It is admitted, queued, run and cancelled as any other; its client leaving is its reader leaving. The response begins
with the first token (or the first heartbeat), so that what goes wrong before it has its HTTP status.
After that an answer that does not come to its end says so in its last event.
"""

import logging
import uuid
from typing import Final

import msgspec

from llorch_gateway.admissions import Admissions
from llorch_gateway.asgi import STREAM_HEADERS, Counted, Receive, Scope, Send, reply_error
from llorch_gateway.call import Call
from llorch_gateway.failures import as_orch_error
from llorch_gateway.openai.core import models
from llorch_gateway.openai.core.answer import Chunks, Whole
from llorch_gateway.openai.core.request import Asked, read
from llorch_gateway.openai.door import Door, at_once, failure, leaving, names, reply
from llorch_gateway.openai.replies import CHAT_PATH, MODELS_PATH, RESULT_PATHS, TEXT_PATH
from llorch_gateway.openai.results import ResultRoutes
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Opened, Streams
from llorch_shared.errors import OrchError, invalid
from llorch_shared.wall_clock import now_ms

log = logging.getLogger(__name__)

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
        self._door: Final = Door(
            admissions=admissions,
            streams=streams,
            snapshot=snapshot,
            body_bytes_max=body_bytes_max,
            body_read_s=body_read_s,
        )
        self._streams: Final = streams
        self._snapshot: Final = snapshot
        self._results: Final = ResultRoutes(self._door)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, call: Call, answered: Counted) -> None:
        """Raises OrchError, BusError before the response has begun."""
        path = scope["path"]
        allowed = "POST" if path in (CHAT_PATH, TEXT_PATH) or path in RESULT_PATHS else "GET"
        if scope["method"] != allowed:
            error = invalid(f"this path takes {allowed}", status=405)
            await reply_error(send, error, call.correlation_id, allow=allowed, openai=True)
        elif allowed == "GET":
            await reply(send, call, self._models(path))
        elif path in RESULT_PATHS:
            task_id, body = await answered(self._results(scope, receive, call))
            await reply(send, call, body, task_id)
        else:
            asked, opened = await answered(self._admit(scope, receive, call, chat=path == CHAT_PATH))
            if asked.stream:
                await self._stream(asked, opened, receive, send, call)
            else:
                body = await answered(self._whole(asked, opened, receive, call))
                await reply(send, call, body, asked.task.task_id)

    def _models(self, path: str) -> bytes:
        pools, replicas = self._snapshot.pools, self._snapshot.replicas
        name = path.removeprefix(MODELS_PATH).removeprefix("/")
        return _encode(models.one(name, pools, replicas) if name else models.listed(pools, replicas))

    async def _admit(self, scope: Scope, receive: Receive, call: Call, *, chat: bool) -> tuple[Asked, Opened]:
        """The task is in its queue, and its reader has a seat. Raises OrchError, BusError."""
        body, headers = await self._door.read(scope, receive)
        asked = read(
            body,
            headers,
            chat=chat,
            new_id=str(uuid.uuid4()),
            pools=self._snapshot.pools,
            replicas=self._snapshot.replicas,
        )
        return asked, await self._door.admit(asked.task, call)

    async def _stream(self, asked: Asked, opened: Opened, receive: Receive, send: Send, call: Call) -> None:
        chunks = Chunks(asked, created=now_ms() // 1000)
        started = False

        async def write(data: bytes) -> None:
            nonlocal started
            out = chunks.feed(data)
            if out:
                if not started:
                    started = True
                    headers = [*STREAM_HEADERS, *names(call, asked.task.task_id)]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": out, "more_body": True})
            if chunks.over:
                opened.seat.close("client")

        last = b""
        try:
            await self._streams.serve(opened, call, start=at_once, write=write, gone=leaving(receive))
            if not (started and chunks.over):
                raise failure(chunks.error, opened)
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
        await self._door.collect(whole, opened, receive, call)
        return whole.body()
