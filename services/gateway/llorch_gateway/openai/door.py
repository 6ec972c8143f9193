"""What every route of such clients does around its answer: read a body, admit a task with a seat at its stream, pass
the stream on or collect it, reply. The clients of Anthropic come through it, too."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, Protocol

from llorch_gateway.admissions import Admissions
from llorch_gateway.answer_room import AnswerRoom, Held
from llorch_gateway.asgi import STOPPING, STREAM_HEADERS, Receive, Scope, Send, budget_lines
from llorch_gateway.bodies import check_json, read_body
from llorch_gateway.call import Call
from llorch_gateway.failures import as_orch_error, unavailable
from llorch_gateway.http_errors import CORRELATION, JSON_TYPE, SAFE, Headers
from llorch_gateway.openai.core.request import HEADERS
from llorch_gateway.sending import send_parts
from llorch_gateway.snapshot import Snapshot
from llorch_gateway.streams import Opened, Streams
from llorch_shared.errors import ErrorBody, OrchError
from llorch_shared.wire.task import TaskRequest

log = logging.getLogger(__name__)

_WANTED: Final = frozenset({*HEADERS, b"content-length", b"content-type"})


class Collected(Protocol):
    """An answer that is made of the whole stream. `over`: nothing more is to come."""

    over: bool
    error: ErrorBody | None

    @property
    def held(self) -> int:
        """Bytes that it keeps."""

    def feed(self, data: bytes) -> None: ...


class Streamed(Protocol):
    """Frames in, events of another interface out. An error before the first of them gives none: it can still be the
    answer."""

    over: bool
    error: ErrorBody | None

    def feed(self, data: bytes) -> bytes: ...

    def broken(self, error: ErrorBody) -> bytes:
        """The stream goes no further, for a reason that is not the task's."""


class Door:
    def __init__(
        self,
        *,
        admissions: Admissions,
        streams: Streams,
        snapshot: Snapshot,
        body_bytes_max: int,
        body_read_s: float,
        answers: AnswerRoom,
        stall_s: float,
    ) -> None:
        self.answers: Final = answers
        self._stall_s: Final = stall_s
        self._admissions: Final = admissions
        self.streams: Final = streams
        self.snapshot: Final = snapshot
        self._body_bytes_max: Final = body_bytes_max
        self._body_read_s: Final = body_read_s

    async def read(self, scope: Scope, receive: Receive) -> tuple[bytes, Mapping[bytes, bytes]]:
        """The body, and the headers that a request may say something by. Raises OrchError."""
        headers = {name: value for name, value in scope["headers"] if name in _WANTED}
        body = await read_body(receive, headers, self._body_bytes_max, within_s=self._body_read_s)
        check_json(headers, "request")
        if not self.snapshot.held:
            raise unavailable("this gateway has not read the registry yet")
        return body, headers

    async def admit(self, task: TaskRequest, call: Call) -> Opened:
        """The task is in its queue, and its reader has a seat. Raises OrchError, BusError."""
        self.streams.check_room(call)
        await self._admissions.submit_request(task, call)
        try:
            opened = await self.streams.open(task.task_id, None, call)
        except BaseException:
            self.streams.abandon(task.task_id, call)
            raise
        assert opened is not None, "only a cursor can be at the end of a stream"
        return opened

    async def stream(self, answer: Streamed, opened: Opened, receive: Receive, send: Send, call: Call) -> None:
        """The response begins with the first bytes of the answer. After that one that does not come to its end says
        so in its last event. Raises OrchError before it has begun."""
        started = False

        async def write(data: bytes) -> None:
            nonlocal started
            out = answer.feed(data)
            if out:
                if not started:
                    started = True
                    headers = [*STREAM_HEADERS, *names(call, opened)]
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": out, "more_body": True})
            if answer.over:
                opened.seat.close("client")

        last = b""
        try:
            await self.streams.serve(opened, call, start=at_once, write=write, gone=leaving(receive))
            if not (started and answer.over):
                raise failure(answer.error, opened)
        except Exception as error:
            if not started:
                raise
            if not isinstance(error, OrchError):
                ids = {"task_id": opened.task, "correlation_id": call.correlation_id}
                log.exception("the stream of a completion broke off", extra=ids)
            last = answer.broken(as_orch_error(error, call.correlation_id).body)
        await send({"type": "http.response.body", "body": last})

    async def collect(self, answer: Collected, held: Held, opened: Opened, receive: Receive, call: Call) -> None:
        """Until it is over. Raises OrchError where it is not an answer then, or is too large to be kept."""

        async def write(data: bytes) -> None:
            answer.feed(data)
            held.grow(answer.held)
            if answer.over:
                opened.seat.close("client")

        await self.streams.serve(opened, call, start=at_once, write=write, gone=leaving(receive))
        if not answer.over or answer.error is not None:
            raise failure(answer.error, opened)

    async def reply(self, send: Send, call: Call, parts: Sequence[bytes], opened: Opened | None = None) -> None:
        size = sum(map(len, parts))
        headers = [JSON_TYPE, (b"content-length", str(size).encode()), *names(call, opened), *SAFE]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send_parts(send, parts, stall_s=self._stall_s)


async def at_once() -> None:
    """The response begins when there is something to say."""


def leaving(receive: Receive) -> Callable[[], Awaitable[None]]:
    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            continue

    return gone


def failure(error: ErrorBody | None, opened: Opened) -> OrchError:
    """Why there is no answer, or not all of it."""
    if error is not None:
        raised = OrchError(error.code, error.message)
        raised.body = error
        return raised
    return unavailable(STOPPING if opened.seat.closed == "stopping" else "nobody reads this answer any more")


def names(call: Call, opened: Opened | None = None) -> Headers:
    """Ids to look it up by, and what its session has left; `x-request-id` is what OpenAI's clients show, `request-id`
    what Anthropic's do."""
    correlation = call.correlation_id.encode()
    told = [(CORRELATION, correlation), (b"x-request-id", correlation), (b"request-id", correlation)]
    if opened is not None:
        told += [(b"x-llorch-task-id", opened.task.encode()), *budget_lines(opened.left)]
    return told
